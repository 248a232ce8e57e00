"""Vectors become rows: one a clip, a temporal patch or a token, once for every path a clip lies under."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.plan.schema import Clip
from pipeline.sink.run_record import ModelIdentity
from pipeline.sink.schema import embeddings_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """What all rows of a run share."""

    model: ModelIdentity
    config_hash: str
    level: str
    dtype: Literal["float16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vectors:
    """What the encoder gave for one request.

    `embeddings` is (N, D), `deepstack` (N, K, D) or None; float16 or float32. `counts` says how many of the N
    belong to each clip, in the order of the clips.
    """

    embeddings: NDArray[np.floating[Any]]
    deepstack: NDArray[np.floating[Any]] | None
    counts: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A clip under one of its paths, and where its vectors begin."""

    clip: Clip
    decoder: str
    clip_id: str
    source_uri: str
    first: int
    count: int


def embedding_table(
    request_id: str, clips: Sequence[Clip], decoders: Sequence[str], vectors: Vectors, settings: RowSettings
) -> pa.Table:
    """The rows of one request in the embeddings schema.

    Cost: one gather of the vectors.
    """
    copies = _copies(clips, decoders, vectors.counts)
    schema = embeddings_schema(
        dim=vectors.embeddings.shape[1],
        dtype=settings.dtype,
        model=settings.model,
        config_hash=settings.config_hash,
        num_deepstack=0 if vectors.deepstack is None else vectors.deepstack.shape[1],
    )
    columns = _vector_columns(copies, vectors)
    columns["position"] = [position for copy in copies for position in range(copy.count)]
    scalars = [_scalars(request_id, copy, settings) for copy in copies]
    for field in schema:
        if field.name not in columns:
            columns[field.name] = [
                values[field.name] for copy, values in zip(copies, scalars, strict=True) for _ in range(copy.count)
            ]
    return pa.Table.from_arrays([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _copies(clips: Sequence[Clip], decoders: Sequence[str], counts: Sequence[int]) -> list[_Copy]:
    starts = list(accumulate(counts, initial=0))[:-1]
    return [
        _Copy(clip=clip, decoder=decoder, clip_id=clip_id, source_uri=uri, first=first, count=count)
        for clip, decoder, first, count in zip(clips, decoders, starts, counts, strict=True)
        for clip_id, uri in zip(clip.clip_ids, clip.source_uris, strict=True)
    ]


def _vector_columns(copies: Sequence[_Copy], vectors: Vectors) -> dict[str, Any]:
    order = np.concatenate([np.arange(0), *(np.arange(copy.first, copy.first + copy.count) for copy in copies)])
    columns: dict[str, Any] = {"embedding": vectors.embeddings[order]}
    if vectors.deepstack is not None:
        for tap in range(vectors.deepstack.shape[1]):
            columns[f"deepstack_{tap}"] = vectors.deepstack[order, tap]
    return columns


def _scalars(request_id: str, copy: _Copy, settings: RowSettings) -> dict[str, Any]:
    clip = copy.clip
    return {
        "clip_id": copy.clip_id,
        "request_id": request_id,
        "source_uri": copy.source_uri,
        "source_id": clip.source_id,
        "media_type": clip.media_type.value,
        "clip_index": clip.clip_index,
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "frame_timestamps_seconds": clip.timestamps_seconds or None,
        "width": clip.width,
        "height": clip.height,
        "grid_thw": clip.grid_thw,
        "level": settings.level,
        "decoder": copy.decoder,
        "model_id": settings.model.model_id,
        "model_revision": settings.model.model_revision,
        "config_hash": settings.config_hash,
    }


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if not isinstance(values, np.ndarray):
        return pa.array(values, kind)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)
