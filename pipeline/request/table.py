"""A request as one row of one Arrow table: what was decoded, what failed, and ONE buffer, wrapped without a copy.

`large_list<uint8>` because a request may pass 2 GiB, where int32 offsets end. Grids and what follows from them
are plain lists beside the buffer, so that no stage has to read a tensor to know a shape.
"""

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ErrorCode, RequestError, Stage
from pipeline.media.container import MediaType
from pipeline.plan.schema import CLIP_TYPE, Clip, Failure
from pipeline.request.layout import VERSION, RequestLayout

FAILURE_TYPE = pa.struct(
    {
        "source_uri": pa.string(),
        "source_id": pa.string(),
        "clip_id": pa.string(),
        "stage": pa.string(),
        "code": pa.string(),
        "message": pa.string(),
    }
)

META_SCHEMA = pa.schema(
    {
        "request_id": pa.string(),
        "layout_version": pa.int32(),
        "media_type": pa.string(),
        "clips": pa.list_(CLIP_TYPE),
        "decoders": pa.list_(pa.string()),
        "failures": pa.list_(FAILURE_TYPE),
        "grid_thw": pa.list_(pa.list_(pa.int32())),
        "cu_seqlens": pa.list_(pa.int64()),
        "decode_seconds": pa.float64(),
    }
)
REQUEST_SCHEMA = META_SCHEMA.append(pa.field("buffer", pa.large_list(pa.uint8())))
PLANAR = pa.field("planar", pa.list_(pa.bool_()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMeta:
    """All of a request but its bytes.

    `clips` are the ones whose rows or planes are in the buffer, `decoders` says which backend served each, `failures`
    are the planned clips that are not there. `decode_seconds` is wall time in the decode actor. `planar` says which
    clips are planes and not yet patch rows; it is None in a run where none may be, and a column more in all others, so
    that what is stored in files stays what it was.
    """

    request_id: str
    media_type: MediaType
    clips: tuple[Clip, ...]
    decoders: tuple[str, ...]
    failures: tuple[Failure, ...]
    decode_seconds: float
    planar: tuple[bool, ...] | None = None

    @property
    def grid_thw(self) -> tuple[tuple[int, int, int], ...]:
        """(t, h, w) in patches, a clip each."""
        return tuple(clip.grid_thw for clip in self.clips)

    @property
    def layout(self) -> RequestLayout:
        """Where everything lies in the buffer."""
        flags = self.planar or (False,) * len(self.clips)
        sizes = [(clip.height, clip.width) if flag else None for clip, flag in zip(self.clips, flags, strict=True)]
        return RequestLayout.of(self.media_type, self.grid_thw, sizes)

    def to_values(self) -> dict[str, Any]:
        """As one row of META_SCHEMA."""
        frames = (h * w for t, h, w in self.grid_thw for _ in range(t))
        return {
            **asdict(self),
            "layout_version": VERSION,
            "grid_thw": self.grid_thw,
            "cu_seqlens": list(accumulate(frames, initial=0)),
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """From one row of META_SCHEMA. Raises RequestError for another layout version."""
        if values["layout_version"] != VERSION:
            raise RequestError(f"request layout version {values['layout_version']}: this Patchwire reads {VERSION}")
        return cls(
            request_id=values["request_id"],
            media_type=MediaType(values["media_type"]),
            clips=tuple(Clip.from_values(clip) for clip in values["clips"]),
            decoders=tuple(values["decoders"]),
            failures=tuple(_failure(failure) for failure in values["failures"]),
            decode_seconds=values["decode_seconds"],
            planar=None if values.get(PLANAR.name) is None else tuple(values[PLANAR.name]),
        )


def _failure(values: dict[str, Any]) -> Failure:
    return Failure(**{**values, "stage": Stage(values["stage"]), "code": ErrorCode(values["code"])})


def wrap_request(meta: RequestMeta, buffer: Any) -> pa.Table:
    """One row in REQUEST_SCHEMA, and `planar` where the meta values have it, around a buffer that is not copied.

    Args:
        meta: what is in the buffer.
        buffer: anything with the buffer protocol, uint8, `meta.layout.num_bytes` long; Arrow keeps it alive.
    Cost: microseconds.
    """
    values = pa.Array.from_buffers(pa.uint8(), meta.layout.num_bytes, [None, pa.py_buffer(buffer)])
    column = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    table = pa.Table.from_pylist([meta.to_values()], schema=META_SCHEMA)
    table = table.append_column(REQUEST_SCHEMA.field("buffer"), column)
    return table if meta.planar is None else table.append_column(PLANAR, pa.array([meta.planar], PLANAR.type))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A received request: its meta values and a view of the bytes where Arrow has them.

    `buffer` is uint8 (num_bytes,), read-only; it is valid as long as this object lives, because `owner` holds
    the Arrow memory (in an actor: the object in Ray's store).
    """

    meta: RequestMeta
    buffer: NDArray[np.uint8]
    owner: pa.Buffer

    @property
    def address(self) -> int:
        """Where the first byte lies."""
        return int(self.owner.address)


def unwrap_request(table: pa.Table) -> Request:
    """The request in a one-row table, without copying its bytes.

    Raises: RequestError unless the table holds exactly one row in one chunk, or the header contradicts the row.
    """
    column = table.column("buffer")
    if table.num_rows != 1 or column.num_chunks != 1:
        raise RequestError(f"expected one request in one chunk, got {table.num_rows} rows in {column.num_chunks}")
    names = META_SCHEMA.names + [PLANAR.name] * (PLANAR.name in table.column_names)
    meta = RequestMeta.from_values(table.select(names).to_pylist()[0])
    chunk = column.chunk(0)
    values = chunk.flatten()
    owner = values.buffers()[1].slice(values.offset, len(values))
    buffer = np.frombuffer(owner, dtype=np.uint8)
    meta.layout.check(buffer)
    return Request(meta=meta, buffer=buffer, owner=owner)
