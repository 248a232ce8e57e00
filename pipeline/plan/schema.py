"""The plan's types and their Arrow form: one row a request, everything after it a pure function of the row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from pipeline.digest import digest_values
from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import MediaType
from pipeline.media.grid import planes_bytes, row_bytes
from pipeline.media.safe_start import SafeStart
from pipeline.sources.items import SourceItem

BYTE_RANGE_TYPE = pa.struct({"start": pa.int64(), "num_bytes": pa.int64()})
SAFE_START_TYPE = pa.struct({field.name: pa.int64() for field in fields(SafeStart)})

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CLIP_TYPE = pa.struct(
    {
        "clip_ids": pa.list_(pa.string()),
        "source_uris": pa.list_(pa.string()),
        "source_id": pa.string(),
        "source_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "media_type": pa.string(),
        "clip_index": pa.int32(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "fps": pa.float64(),
        "num_frames": pa.int64(),
        "frame_indices": pa.list_(pa.int64()),
        "timestamps_seconds": pa.list_(pa.float64()),
        "resized_height": pa.int32(),
        "resized_width": pa.int32(),
        "grid_thw": pa.list_(pa.int32()),
        "byte_ranges": pa.list_(BYTE_RANGE_TYPE),
        "codec": pa.string(),
        "origin": SAFE_START_TYPE,
    }
)

PLAN_SCHEMA = pa.schema(
    {
        "request_id": pa.string(),
        "media_type": pa.string(),
        "grid_h": pa.int32(),
        "grid_w": pa.int32(),
        "num_patches": pa.int64(),
        "clips": pa.list_(CLIP_TYPE),
    }
)

PACKED_ROW = "plan_row"
_MOST_TIMES_ROWS = 1.5  # half a minute of 720p as planes is 1.15 times its rows, for a fifth less work


def flat_values(record: "DataclassInstance") -> dict[str, Any]:
    """A record's fields by name, none of them copied: `dataclasses.asdict` took two thirds of the time of planning."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def place_values(byte_range: ByteRange | None) -> dict[str, int] | None:
    """As one value of BYTE_RANGE_TYPE."""
    return None if byte_range is None else byte_range.to_values()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One span of one medium, ready to decode.

    `clip_ids` and `source_uris` run in parallel: byte-identical files share one clip, which is encoded once
    and gets a row under every path. `frame_indices` count shown frames from 0; `timestamps_seconds` has one
    entry a temporal patch and is empty for an image. Sizes are pixels, `grid_thw` is patches. `byte_ranges` runs in
    parallel to the URIs where any of them is the member of a shard, and is empty where none is. `codec` only says how
    dear the clip is to decode. `origin` is a safe start of the medium at or before the first wanted frame, which saves
    reading what is before; None where reading begins at the medium's beginning. Plans of earlier versions have none of
    the three.
    """

    clip_ids: tuple[str, ...]
    source_uris: tuple[str, ...]
    source_id: str
    source_bytes: int
    modified_ns: int
    media_type: MediaType
    clip_index: int
    start_seconds: float | None
    end_seconds: float | None
    width: int
    height: int
    fps: float | None
    num_frames: int
    frame_indices: tuple[int, ...]
    timestamps_seconds: tuple[float, ...]
    resized_height: int
    resized_width: int
    grid_thw: tuple[int, int, int]
    byte_ranges: tuple[ByteRange | None, ...] = ()
    codec: str | None = None
    origin: SafeStart | None = None

    @property
    def sources(self) -> tuple[SourceItem, ...]:
        """The media whose bytes are this clip's, each where it lies, in the version of the first."""
        return tuple(
            SourceItem(uri=uri, num_bytes=self.source_bytes, modified_ns=self.modified_ns, byte_range=byte_range)
            for uri, byte_range in zip_longest(self.source_uris, self.byte_ranges)
        )

    def joined(self, other: Self) -> Self:
        """This clip with the ids and places of an equal one."""
        byte_ranges = tuple(item.byte_range for item in self.sources + other.sources)
        return replace(
            self,
            clip_ids=self.clip_ids + other.clip_ids,
            source_uris=self.source_uris + other.source_uris,
            byte_ranges=byte_ranges if any(byte_ranges) else (),
        )

    @property
    def num_patches(self) -> int:
        """T * h * w."""
        t, h, w = self.grid_thw
        return t * h * w

    @property
    def plane_size(self) -> tuple[int, int] | None:
        """Height and width of its frames, where it may travel as planes that are not much larger than its rows."""
        t, h, w = self.grid_thw
        has_even_sides = min(self.height, self.width) > 0 and self.height % 2 == self.width % 2 == 0
        if self.media_type is not MediaType.VIDEO or not has_even_sides:
            return None
        most_bytes = _MOST_TIMES_ROWS * t * h * w * row_bytes(self.media_type)
        return (self.height, self.width) if planes_bytes(t, self.height, self.width) <= most_bytes else None

    @property
    def video_seconds(self) -> float:
        """Length of the span, in seconds; 0 for an image."""
        return 0.0 if self.start_seconds is None or self.end_seconds is None else self.end_seconds - self.start_seconds

    def to_values(self) -> dict[str, Any]:
        """As one value of CLIP_TYPE."""
        origin = None if self.origin is None else self.origin.to_values()
        return {
            **flat_values(self),
            "byte_ranges": [place_values(place) for place in self.byte_ranges],
            "origin": origin,
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """From one value of CLIP_TYPE, as Arrow gives it; plans of earlier versions lack the last three."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        byte_ranges = tuple(place and ByteRange(**place) for place in values.get("byte_ranges") or ())
        own = {"media_type": MediaType(values["media_type"]), "byte_ranges": byte_ranges}
        return cls(**{**values, **lists, **own, "origin": SafeStart.from_values(values.get("origin"))})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPlan:
    """Clips of one media type and one (h, w) that are decoded, moved and encoded together."""

    request_id: str
    clips: tuple[Clip, ...]

    @classmethod
    def of(cls, clips: Sequence[Clip]) -> Self:
        """Name a request after the clips in it."""
        return cls(request_id=digest_values([clip.clip_ids[0] for clip in clips]), clips=tuple(clips))

    @property
    def media_type(self) -> MediaType:
        """What all clips of the request are."""
        return self.clips[0].media_type

    @property
    def num_patches(self) -> int:
        """Sum over the clips of t * h * w."""
        return sum(clip.num_patches for clip in self.clips)

    @property
    def patches_per_frame(self) -> int:
        """H * w, which all clips share."""
        return self.clips[0].grid_thw[1] * self.clips[0].grid_thw[2]


def plan_table(requests: Iterable[RequestPlan]) -> pa.Table:
    """The plan in Arrow, one row a request, in PLAN_SCHEMA."""
    rows = [
        {
            "request_id": request.request_id,
            "media_type": request.media_type,
            "grid_h": request.clips[0].grid_thw[1],
            "grid_w": request.clips[0].grid_thw[2],
            "num_patches": request.num_patches,
            "clips": [clip.to_values() for clip in request.clips],
        }
        for request in requests
    ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def packed_request(request: RequestPlan) -> pa.Table:
    """One plan row as one binary value: Ray Data keeps a schema with every block, and this one is 45 KB of objects."""
    (batch,) = plan_table([request]).to_batches()
    return pa.table({PACKED_ROW: pa.array([batch.serialize().to_pybytes()], pa.binary())})


def unpacked_request(table: pa.Table) -> pa.Table:
    """The plan row that `packed_request` packed, in PLAN_SCHEMA."""
    data = table[PACKED_ROW][0].as_buffer()
    return pa.Table.from_batches([pa.ipc.read_record_batch(data, PLAN_SCHEMA)])


def requests_of(table: pa.Table) -> list[RequestPlan]:
    """The rows of a plan table (or of a slice of one) as values."""
    columns = table.select(["request_id", "clips"]).to_pylist()
    return [
        RequestPlan(request_id=row["request_id"], clips=tuple(Clip.from_values(clip) for clip in row["clips"]))
        for row in columns
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One error row to be: what failed, where, and why. `clip_id` is None where the whole medium failed."""

    source_uri: str
    source_id: str | None
    clip_id: str | None
    stage: Stage
    code: ErrorCode
    message: str

    @classmethod
    def of_source(cls, source_uri: str, source_id: str | None, error: MediaError) -> Self:
        """A medium that could not be listed, probed or planned."""
        return cls(
            source_uri=source_uri,
            source_id=source_id,
            clip_id=None,
            stage=error.stage,
            code=error.code,
            message=error.message,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """One source as it was planned: what lets the next run leave it alone, and `verify` close the books.

    `source_id` and `media_type` are None where its header could not be read.
    """

    source_uri: str
    source_id: str | None
    start_seconds: float | None
    end_seconds: float | None
    num_bytes: int
    modified_ns: int
    media_type: str | None
    num_clips: int


SOURCES_SCHEMA = pa.schema(
    {
        "source_uri": pa.string(),
        "source_id": pa.string(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "num_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "media_type": pa.string(),
        "num_clips": pa.int32(),
    }
)


def failures_of(table: pa.Table) -> tuple[Failure, ...]:
    """The rows of an errors table as values."""
    names = ["source_uri", "source_id", "clip_id", "stage", "code", "message"]
    return tuple(
        Failure(**{**row, "stage": Stage(row["stage"]), "code": ErrorCode(row["code"])})
        for row in table.select(names).to_pylist()
    )
