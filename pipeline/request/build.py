"""A plan row becomes a request: every clip decoded into its place in one shared buffer.

Where the encoder runs on a GPU, a video clip goes as planes (media/planes.py) if those are not much larger than its
rows: the CPU, which is what a corpus waits for, is spared an eighth to a quarter of a clip's work, and most clips take
fewer bytes on the way.

The buffer is laid out for the whole plan; a clip that fails leaves no hole, because the next one is written
where it would have begun, and the final layout is that of the clips that came through. A clip is one job of the decoder
process, which is told what the next one wants of the same file, so that it need not begin anew.
"""

import time
from dataclasses import dataclass
from itertools import zip_longest

import pyarrow as pa

from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import ClipJob, ClipReport
from pipeline.media.sandbox import Sandbox, SharedBuffer
from pipeline.plan.schema import Clip, Failure, RequestPlan
from pipeline.request.layout import RequestLayout
from pipeline.request.table import RequestMeta, wrap_request
from pipeline.sources.items import SourceItem
from pipeline.sources.version import require_unchanged

_GONE = frozenset({ErrorCode.UNREADABLE, ErrorCode.NOT_A_FILE, ErrorCode.CHANGED_MEDIA})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    clip: Clip
    report: ClipReport


def build_request(plan: RequestPlan, sandbox: Sandbox, *, with_planes: bool = False) -> pa.Table:
    """Decode the clips of one plan row into one request.

    Args:
        plan: clips of one media type and one (h, w).
        sandbox: the decoder process, restarted where a clip kills it.
        with_planes: clips may be planes; the request then says of each whether it is.
    Returns: one row in REQUEST_SCHEMA; failed clips are in its `failures`, one for each path.
    Cost: the buffer is written once, by the child; Arrow wraps it where it lies.
    """
    started = time.perf_counter()
    grids = [clip.grid_thw for clip in plan.clips]
    sizes = [clip.plane_size if with_planes else None for clip in plan.clips]
    rows, planes = (RequestLayout.of(plan.media_type, grids, of_clips) for of_clips in ((), sizes))
    rows_start = planes.rows_start
    largest = [max(rows.clip_bytes(clip), planes.clip_bytes(clip)) for clip in range(len(plan.clips))]
    buffer = sandbox.new_buffer(rows_start + sum(largest))
    decoded: list[_Decoded] = []
    failures: list[Failure] = []
    # Room for the header of all planned clips: if some fail, the shorter header is padded to the same start.
    offset = rows_start
    for number, (clip, following, size) in enumerate(zip_longest(plan.clips, plan.clips[1:], sizes)):
        try:
            report = _decode(clip, following, sandbox, buffer, offset, size)
        except MediaError as error:
            failures.extend(clip_failures(clip, error))
        else:
            decoded.append(_Decoded(clip=clip, report=report))
            offset += (planes if report.is_planar else rows).clip_bytes(number)
    meta = RequestMeta(
        request_id=plan.request_id,
        media_type=plan.media_type,
        clips=tuple(item.clip for item in decoded),
        decoders=tuple(item.report.backend for item in decoded),
        failures=tuple(failures),
        decode_seconds=time.perf_counter() - started,
        planar=tuple(item.report.is_planar for item in decoded) if with_planes else None,
    )
    view = buffer.memory[rows_start - meta.layout.rows_start :]
    view[: meta.layout.rows_start] = meta.layout.header().tobytes()
    return wrap_request(meta, view[: meta.layout.num_bytes])


def _decode(
    clip: Clip,
    following: Clip | None,
    sandbox: Sandbox,
    buffer: SharedBuffer,
    offset: int,
    size: tuple[int, int] | None,
) -> ClipReport:
    """Decode a clip from the first of its paths that still holds what was planned: all held the same bytes."""
    first: MediaError | None = None
    for item in clip.sources:
        try:
            require_unchanged(item, clip.source_id, sandbox)
            return sandbox.decode(clip_job(clip, item, following, size), buffer, offset)
        except MediaError as error:
            if error.code not in _GONE:
                raise
            first = first or error
    assert first is not None
    raise first


def clip_job(
    clip: Clip, item: SourceItem, following: Clip | None = None, size: tuple[int, int] | None = None
) -> ClipJob:
    """What the decoder needs to know of a clip, read from one of its places, and of the clip that comes after it.

    `size` is the clip's `plane_size` where it may be decoded into planes.
    """
    return ClipJob(
        uri=item.uri,
        byte_range=item.byte_range,
        media_type=clip.media_type,
        frame_indices=clip.frame_indices,
        num_source_frames=clip.num_frames,
        resized_height=clip.resized_height,
        resized_width=clip.resized_width,
        following=following.frame_indices if following and following.source_id == clip.source_id else (),
        origin=clip.origin,
        plane_size=size,
    )


def clip_failures(clip: Clip, error: MediaError) -> list[Failure]:
    """One failure for every path the clip lies under."""
    return [
        Failure(
            source_uri=uri,
            source_id=clip.source_id,
            clip_id=clip_id,
            stage=error.stage,
            code=error.code,
            message=error.message,
        )
        for clip_id, uri in zip(clip.clip_ids, clip.source_uris, strict=True)
    ]
