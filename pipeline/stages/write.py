"""The stage that makes results visible: fragments named by their request, written whole."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.request.table import RequestMeta
from pipeline.sink.embeddings import RowSettings, Vectors, embedding_table
from pipeline.sink.fragments import write_fragment
from pipeline.sink.output import OutputFolder
from pipeline.sink.receipt import Receipt
from pipeline.sink.schema import errors_schema, errors_table


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTarget:
    """Where the fragments of a run go, and what is written beside every vector."""

    output_uri: str
    settings: RowSettings


class Write:
    """Writes a request's vectors and errors under names that follow from the request."""

    def __init__(self, target: WriteTarget) -> None:
        self._target = target
        self._folder = OutputFolder(target.output_uri)

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of ENCODED_SCHEMA to one row of RECEIPT_SCHEMA; the fragments exist when it returns."""
        started = time.perf_counter()
        row = table.to_pylist()[0]
        meta = RequestMeta.from_values(row)
        settings = self._target.settings
        embeddings = embedding_table(meta.request_id, meta.clips, meta.decoders, self._vectors(row), settings)
        errors = errors_table(meta.failures, errors_schema(model=settings.model, config_hash=settings.config_hash))
        write_fragment(self._folder, meta.request_id, embeddings, errors)
        return receipt_of(
            meta,
            num_rows=embeddings.num_rows,
            num_device_copies=row["num_device_copies"],
            transfer=row["transfer"],
            encode_seconds=row["encode_seconds"],
            start_seconds=row["start_seconds"],
            write_seconds=time.perf_counter() - started,
        )

    def _vectors(self, row: dict[str, Any]) -> Vectors:
        dim, num_deepstack = row["vector_dim"], row["num_deepstack"]
        flat = np.frombuffer(row["vectors"], dtype=self._target.settings.dtype)
        deepstack = np.frombuffer(row["deepstack"], dtype=self._target.settings.dtype) if num_deepstack else None
        return Vectors(
            embeddings=flat.reshape(-1, dim),
            deepstack=None if deepstack is None else deepstack.reshape(-1, num_deepstack, dim),
            counts=row["vector_counts"],
        )


def receipt_of(
    meta: RequestMeta,
    *,
    write_seconds: float,
    num_rows: int = 0,
    num_device_copies: int = 0,
    transfer: str = "none",
    encode_seconds: float = 0.0,
    start_seconds: float = 0.0,
) -> pa.Table:
    """One row of RECEIPT_SCHEMA for a request that has been written; what was not encoded has the defaults."""
    return Receipt(
        request_id=meta.request_id,
        num_clips=sum(len(clip.clip_ids) for clip in meta.clips),
        num_rows=num_rows,
        num_failures=len(meta.failures),
        num_frames=sum(len(clip.frame_indices) for clip in meta.clips),
        num_patches=meta.layout.num_patches,
        num_device_copies=num_device_copies,
        transfer=transfer,
        video_seconds=sum(clip.video_seconds * len(clip.clip_ids) for clip in meta.clips),
        decode_seconds=meta.decode_seconds,
        encode_seconds=encode_seconds,
        start_seconds=start_seconds,
        write_seconds=write_seconds,
    ).to_table()
