"""Checking one embeddings fragment against its request, a batch of vectors at a time."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sink.books import Findings, PlannedClip, PlannedRequest
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.reading import stream_batches

_COLUMNS = (
    "clip_id",
    "request_id",
    "source_uri",
    "source_id",
    "level",
    "position",
    "embedding",
    "model_id",
    "model_revision",
    "config_hash",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What every row of an output must say."""

    level: str
    model_id: str
    model_revision: str
    config_hash: str


class FragmentCheck:
    """Holds one request's expectations while its rows go by."""

    def __init__(
        self,
        request: PlannedRequest,
        constants: Constants,
        vector_types: dict[str, pa.DataType],
        where: str,
        findings: Findings,
    ) -> None:
        """`vector_types` is filled by the first fragment, and the others are held against it."""
        self._planned = {clip.clip_id: clip for clip in request.clips}
        self._seen = {clip.clip_id: np.zeros(clip.num_rows, dtype=bool) for clip in request.clips}
        self._expected = {
            "request_id": request.request_id,
            "level": constants.level,
            "model_id": constants.model_id,
            "model_revision": constants.model_revision,
            "config_hash": constants.config_hash,
        }
        self._vector_types = vector_types
        self._where = where
        self._findings = findings
        self.num_rows = 0

    def read(self, folder: OutputFolder, stem: str) -> None:
        """Go through all rows. Raises: what `stream_batches` does."""
        # Every column is read, though few are looked at: that is what proves the fragment readable.
        for batch in stream_batches(folder, Kind.EMBEDDINGS, stem):
            absent = [name for name in _COLUMNS if name not in batch.schema.names]
            if absent:
                self._findings.add(f"{self._where}: expected columns {', '.join(absent)}")
                return
            self._check_batch(batch)

    def num_rows_of(self, clip: PlannedClip) -> int:
        """Positions of a clip that were seen."""
        return int(self._seen[clip.clip_id].sum())

    def _check_batch(self, batch: pa.RecordBatch) -> None:
        self.num_rows += batch.num_rows
        for name, expected in self._expected.items():
            for value in batch.column(name).unique().to_pylist():
                if value != expected:
                    self._findings.add(f"{self._where}: {name}: expected {expected!r}, got {value!r}")
        for name in batch.schema.names:
            if name == "embedding" or name.startswith("deepstack_"):
                self._check_type(name, batch.column(name).type)
                self._check_finite(name, batch.column(name))
        if batch.column("position").null_count or batch.column("clip_id").null_count:
            self._findings.add(f"{self._where}: a row has no clip_id or no position")
            return
        for clip_id, uri, source_id, positions in _runs(batch):
            self._check_run(clip_id, uri, source_id, positions)

    def _check_type(self, name: str, found: pa.DataType) -> None:
        expected = self._vector_types.setdefault(name, found)
        if found != expected:
            self._findings.add(f"{self._where}: {name}: expected {expected} as in other fragments, got {found}")

    def _check_finite(self, name: str, vectors: pa.Array) -> None:
        values = vectors.flatten().to_numpy(zero_copy_only=False)
        if vectors.null_count or not np.isfinite(values).all():
            self._findings.add(f"{self._where}: {name}: a vector is missing or holds a value that is not finite")

    def _check_run(self, clip_id: str, uri: str | None, source_id: str | None, positions: NDArray[np.int32]) -> None:
        clip = self._planned.get(clip_id)
        if clip is None:
            self._findings.add(f"{self._where}: clip {clip_id!r} is not planned in this request")
            return
        if (uri, source_id) != (clip.source_uri, clip.source_id):
            self._findings.add(
                f"{self._where}: clip {clip_id!r}: expected {clip.source_uri!r} ({clip.source_id}), "
                f"got {uri!r} ({source_id})"
            )
        seen = self._seen[clip_id]
        known = positions[(positions >= 0) & (positions < clip.num_rows)]
        if len(known) < len(positions):
            self._findings.add(f"{self._where}: clip {clip_id!r} has a position outside 0..{clip.num_rows - 1}")
        if seen[known].any() or len(np.unique(known)) < len(known):
            self._findings.add(f"{self._where}: clip {clip_id!r} has a position twice")
        seen[known] = True


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[str, str | None, str | None, NDArray[np.int32]]]:
    """Stretches of rows with one clip id, path and source id: a loop over clips, not over tokens."""
    names_of_run = ("clip_id", "source_uri", "source_id")
    columns = [batch.column(name).dictionary_encode(null_encoding="encode") for name in names_of_run]
    codes = np.stack([column.indices.to_numpy(zero_copy_only=False) for column in columns])
    values: Sequence[list[str]] = [column.dictionary.to_pylist() for column in columns]
    positions = batch.column("position").to_numpy(zero_copy_only=False)
    changes = np.flatnonzero((codes[:, 1:] != codes[:, :-1]).any(axis=0)) + 1
    edges = [0, *changes.tolist(), batch.num_rows] if batch.num_rows else []
    for begin, end in itertools.pairwise(edges):
        clip_id, uri, source_id = (names[code] for names, code in zip(values, codes[:, begin], strict=True))
        yield clip_id, uri, source_id, positions[begin:end]
