"""Whether a request that comes from a file is what it says.

A request that was decoded in this run needs no check beyond its header. One that was prepared elsewhere, perhaps by
another program, is read by code that computes offsets from its grids and a kernel that trusts them, so everything that
any stage relies on is checked here, in an order in which no claim costs memory before it is held against the bytes that
are there.
"""

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise

import pyarrow as pa

from pipeline.errors import RequestError
from pipeline.media.container import MediaType
from pipeline.media.grid import MERGE_SIZE, PATCH_SIZE, grid_of
from pipeline.plan.schema import Clip, RequestPlan
from pipeline.request.table import REQUEST_SCHEMA, Request, unwrap_request

_LARGEST = 2**31 - 1


def checked_request(table: pa.Table, where: str) -> Request:
    """Read one request whose columns and values may be anything.

    Args:
        table: what was found, its buffers within the memory it was read from.
        where: the file, for the messages.
    Raises: RequestError that names the file and the value that is wrong.
    Cost: the plain columns are read once; of the patch rows only the length, because any byte is a pixel.
    """
    try:
        table.validate(full=True)
        _check_columns(table)
        table = table.select(REQUEST_SCHEMA.names)  # others mean something within a run, and may be anything here
        request = unwrap_request(table)
        problem = next(_problems(request, table), None)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error
    except (pa.ArrowException, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise RequestError(f"{where}: expected a request, one of its values cannot be read: {error}") from error
    if problem is not None:
        raise RequestError(f"{where}: {problem}")
    return request


def check_planned(request: Request, plan: RequestPlan, where: str) -> None:
    """Make sure that a request is the one that was planned: each planned clip is in it, or failed.

    Raises: RequestError that names the first clip that differs.
    """
    meta = request.meta
    if meta.request_id != plan.request_id:
        raise RequestError(f"{where}: expected request {plan.request_id!r}, found {meta.request_id!r}")
    present = {clip.clip_ids: clip for clip in meta.clips}
    failed = {failure.clip_id for failure in meta.failures}
    for clip in plan.clips:
        found = present.pop(clip.clip_ids, None)
        if found is None and not failed.issuperset(clip.clip_ids):
            raise RequestError(f"{where}: planned clip {clip.clip_ids[0]!r} is neither in it nor among its failures")
        if found is not None and found != clip:
            raise RequestError(f"{where}: clip {clip.clip_ids[0]!r} is not as it was planned")
        failed -= set(clip.clip_ids) if found is None else set()
    for clip_id in [clip.clip_ids[0] for clip in present.values()] + sorted(map(str, failed)):
        raise RequestError(f"{where}: clip {clip_id!r} was not planned in it")


def _check_columns(table: pa.Table) -> None:
    if table.num_rows != 1:
        raise RequestError(f"expected one request, found {table.num_rows} rows")
    for field in REQUEST_SCHEMA:
        if table.schema.names.count(field.name) != 1:
            raise RequestError(f"expected one column {field.name!r}, found {', '.join(table.schema.names)}")
        found = table.schema.field(field.name).type
        if found != field.type:
            raise RequestError(f"column {field.name!r}: expected {field.type}, found {found}")
        if table[field.name].null_count:
            raise RequestError(f"column {field.name!r} is null")
    if table["buffer"].chunk(0).flatten().null_count:
        raise RequestError("column 'buffer': expected bytes, found nulls")


def _problems(request: Request, table: pa.Table) -> Iterator[str]:
    """What is wrong, in words; the buffer's length already agrees with the clips' grids."""
    meta = request.meta
    if len(meta.decoders) != len(meta.clips):
        yield f"{len(meta.decoders)} decoders of {len(meta.clips)} clips"
    if not (math.isfinite(meta.decode_seconds) and meta.decode_seconds >= 0):
        yield f"decode_seconds is {meta.decode_seconds}"
    for number, clip in enumerate(meta.clips):
        for problem in _problems_of_clip(clip, meta.media_type):
            yield f"clip {number}: {problem}"
    ids = [name for clip in meta.clips for name in clip.clip_ids] + [failure.clip_id for failure in meta.failures]
    if len(set(ids)) != len(ids):
        yield "a clip id is in it twice"
    grids, sequence_ends = table["grid_thw"][0].as_py(), table["cu_seqlens"][0].as_py()
    if grids != [list(grid) for grid in meta.grid_thw]:
        yield f"grid_thw is {grids}, its clips' are {[list(grid) for grid in meta.grid_thw]}"
    if sequence_ends != list(accumulate((h * w for t, h, w in meta.grid_thw for _ in range(t)), initial=0)):
        yield "cu_seqlens does not follow from grid_thw"


def _problems_of_clip(clip: Clip, media_type: MediaType) -> Iterator[str]:
    if clip.media_type is not media_type:
        yield f"a clip of media type {clip.media_type} in a request of {media_type}"
    if not clip.clip_ids or len(clip.clip_ids) != len(clip.source_uris):
        yield f"{len(clip.clip_ids)} clip ids for {len(clip.source_uris)} source URIs"
    if clip.byte_ranges and len(clip.byte_ranges) != len(clip.source_uris):
        yield f"{len(clip.byte_ranges)} byte ranges for {len(clip.source_uris)} source URIs"
    for name, low in (("width", 1), ("height", 1), ("num_frames", 1), ("clip_index", 0)):
        if not low <= getattr(clip, name) <= _LARGEST:
            yield f"{name} is {getattr(clip, name)}"
    yield from _problems_of_grid(clip)
    yield from _problems_of_times(clip)


def _problems_of_grid(clip: Clip) -> Iterator[str]:
    t, h, w = clip.grid_thw
    if min(t, h, w) < 1 or h % MERGE_SIZE or w % MERGE_SIZE:
        yield f"grid_thw is {[t, h, w]}: expected positive numbers, h and w multiples of {MERGE_SIZE}"
    if (clip.resized_height, clip.resized_width) != (h * PATCH_SIZE, w * PATCH_SIZE):
        yield f"resized to {clip.resized_height} x {clip.resized_width} pixels, which is not {h} x {w} patches"
    indices = clip.frame_indices
    if not indices or indices[0] < 0 or indices[-1] >= clip.num_frames or any(b < a for a, b in pairwise(indices)):
        yield f"frame_indices: expected numbers from 0 to {clip.num_frames - 1} that never decrease"
    elif grid_of(clip.media_type, len(indices), clip.resized_height, clip.resized_width)[0] != t:
        yield f"{len(indices)} frames do not make {t} temporal patches"


def _problems_of_times(clip: Clip) -> Iterator[str]:
    expected = clip.grid_thw[0] if clip.media_type is MediaType.VIDEO else 0
    if len(clip.timestamps_seconds) != expected:
        yield f"{len(clip.timestamps_seconds)} timestamps for {expected} temporal patches of video"
    times = [*clip.timestamps_seconds, clip.start_seconds or 0.0, clip.end_seconds or 0.0, clip.fps or 0.0]
    if not all(map(math.isfinite, times)):
        yield "a time is not a finite number"
