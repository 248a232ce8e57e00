"""One source's header, read in the killable child: its content id and what it holds, or why not.

A result crosses process borders as one Arrow row, so that probing runs as Ray Data tasks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import MediaInfo, MediaType
from pipeline.media.safe_start import SafeStart
from pipeline.media.sandbox import Sandbox
from pipeline.plan.schema import BYTE_RANGE_TYPE, SAFE_START_TYPE, flat_values, place_values
from pipeline.sources.content_id import content_id
from pipeline.sources.listing import SourceItem

ITEM_SCHEMA = pa.schema(
    {
        "uri": pa.string(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "num_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "byte_range": BYTE_RANGE_TYPE,
    }
)

INFO_TYPE = pa.struct(
    {
        "media_type": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "num_frames": pa.int64(),
        "fps": pa.float64(),
        "frame_times_seconds": pa.list_(pa.float64()),
        "codec": pa.string(),
        "keyframes": pa.list_(pa.int64()),
        "safe_starts": pa.list_(SAFE_START_TYPE),
    }
)

PROBE_SCHEMA = pa.schema(
    [
        *ITEM_SCHEMA,
        pa.field("source_id", pa.string()),
        pa.field("info", INFO_TYPE),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """A source with what probing found: exactly one of `info` and `error` is set."""

    item: SourceItem
    source_id: str | None
    info: MediaInfo | None
    error: MediaError | None


def probe_source(
    item: SourceItem, sandbox: Sandbox, *, with_times: bool = False, with_keyframes: bool = False
) -> ProbeResult:
    """Read one header and hash the content. Never raises MediaError: it is in the result.

    Cost: the bytes that `content_id` and the container's index take, and up to one decoder restart.
    """
    source_id: str | None = None
    try:
        source_id = content_id(item, sandbox)
        info = sandbox.probe(item.uri, byte_range=item.byte_range, with_times=with_times, with_keyframes=with_keyframes)
    except MediaError as error:
        return ProbeResult(item=item, source_id=source_id, info=None, error=error)
    return ProbeResult(item=item, source_id=source_id, info=info, error=None)


def items_table(items: Iterable[SourceItem]) -> pa.Table:
    """Sources in Arrow, one row each, in ITEM_SCHEMA."""
    return pa.Table.from_pylist([_item_values(item) for item in items], schema=ITEM_SCHEMA)


def items_of(table: pa.Table) -> list[SourceItem]:
    """The rows of `items_table` as values."""
    return [_item(row) for row in table.to_pylist()]


def _item_values(item: SourceItem) -> dict[str, Any]:
    return {**flat_values(item), "byte_range": place_values(item.byte_range)}


def _item(values: dict[str, Any]) -> SourceItem:
    place = values["byte_range"]
    return SourceItem(**{**values, "byte_range": None if place is None else ByteRange(**place)})


def results_table(results: Iterable[ProbeResult]) -> pa.Table:
    """Probe results in Arrow, one row each, in PROBE_SCHEMA."""
    rows = [
        {
            **_item_values(result.item),
            "source_id": result.source_id,
            "info": None if result.info is None else _info_values(result.info),
            "error_code": None if result.error is None else result.error.code,
            "error_message": None if result.error is None else result.error.message,
        }
        for result in results
    ]
    return pa.Table.from_pylist(rows, schema=PROBE_SCHEMA)


def results_of(table: pa.Table) -> list[ProbeResult]:
    """The rows of `results_table` as values."""
    items = items_of(table.select(ITEM_SCHEMA.names))
    rest = table.select(["source_id", "info", "error_code", "error_message"]).to_pylist()
    return [_result(item, row) for item, row in zip(items, rest, strict=True)]


def _result(item: SourceItem, row: dict[str, Any]) -> ProbeResult:
    info = row["info"]
    code = row["error_code"]
    return ProbeResult(
        item=item,
        source_id=row["source_id"],
        info=None if info is None else _info(info),
        error=None if code is None else MediaError(ErrorCode(code), row["error_message"], Stage.PROBE),
    )


def _info_values(info: MediaInfo) -> dict[str, Any]:
    return {**flat_values(info), "safe_starts": [start.to_values() for start in info.safe_starts]}


def _info(values: dict[str, Any]) -> MediaInfo:
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    lists["safe_starts"] = tuple(SafeStart(**start) for start in values["safe_starts"])
    return MediaInfo(**{**values, **lists, "media_type": MediaType(values["media_type"])})
