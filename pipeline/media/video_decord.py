"""Wanted frames of a video by decord 0.6: the second backend, contained.

decord gives PyAV's bytes wherever it decodes from the start. Its faults decide the shape of this file:
- it opens MPEG-TS by seeking, and then begins in the middle or fails at the end: only MP4, Matroska, AVI and
  FLV are given to it, whose first bytes no other format of its own, unbounded list shares;
- seeking gives wrong frames in VP9, HEVC, 4:4:4, AVI with B-frames and open groups of pictures, and `skip_frames`
  seeks: there every frame is taken in order with `next`; `get_batch` is for 4:2:0 H.264 in MP4 and Matroska whose
  every keyframe is a place to start from;
- a reader decodes ahead without bound while it is idle: none outlives the chunk it is read for, and a
  chunk holds at most 256 MB of frames, so a long clip outside the seekable formats is read repeatedly;
- its converter differs on odd sides with subsampled colour, on interlaced pictures, above 8 bits and below 16
  pixels, it turns pictures in MP4 only and mirrors none, and of several video streams it may take another one: such
  videos are refused;
- it can spin for ever in native code on damaged files: the decoder process's deadline ends that. A frame
  count other than the container's, which provokes it, is refused before;
- no AV1, no file without a duration, some sizes below 64 pixels: refused by decord itself.
"""

import sys
from collections.abc import Iterator, Sequence

import av
import numpy as np
import torch  # noqa: F401  # before decord: the other order crashes in their C++ runtimes
from numpy.typing import NDArray

from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import open_video
from pipeline.media.index import codec_name, read_index
from pipeline.media.orientation import Orientation, orientation_of
from pipeline.media.reading import PROGRESSIVE, VideoSource
from pipeline.media.video_pyav import displayed, first_frame

_CHUNK_BYTES = 256 << 20
_MAX_BITS = 8
_MIN_SIDE = 16
_SEEKABLE_CODECS = frozenset({"h264"})
_DEMUXERS = frozenset({"mov", "matroska", "avi", "flv"})
_SEEKABLE_DEMUXERS = frozenset({"mov", "matroska"})
_SEEKABLE_PIXELS = frozenset({"yuv420p", "yuvj420p"})


def read_frames_decord(
    source: VideoSource, frame_indices: Sequence[int], num_source_frames: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield one frame for each wanted index, in order.

    Args:
        source: a video in a local file.
        frame_indices: frame numbers in presentation order, never decreasing.
        num_source_frames: what the probe counted.
    Yields: uint8 (H, W, 3) RGB as displayed; an index that repeats gives the same array again.
    Raises: MediaError UNSUPPORTED_MEDIA, CORRUPT_MEDIA or TRUNCATED_MEDIA.
    Cost: up to 256 MB of frames beside decord's own read-ahead.
    """
    can_seek, frame_bytes = _inspect(source)
    wanted = sorted(set(frame_indices))
    chunk_frames = max(1, _CHUNK_BYTES // frame_bytes)
    frames: dict[int, NDArray[np.uint8]] = {}
    for number in frame_indices:
        if number not in frames:
            position = wanted.index(number)
            chunk = wanted[position : position + chunk_frames]
            frames = dict(zip(chunk, _read_chunk(source, chunk, num_source_frames, can_seek), strict=True))
        yield frames[number]


def _inspect(source: VideoSource) -> tuple[bool, int]:
    """Whether seeking is safe, and bytes of one RGB frame. Raises MediaError for what decord gets wrong."""
    if source.file_format.name not in _DEMUXERS:
        raise _refusal(source, f"{source.file_format.name} files rightly")
    source.file.seek(0)
    with open_video(source.file, source.uri, source.file_format, source.limits) as (container, stream):
        context = stream.codec_context
        layout = av.VideoFormat(context.pix_fmt) if context.pix_fmt else None
        is_subsampled = layout is not None and layout.chroma_width(2) == 1
        if is_subsampled and (context.width % 2 or context.height % 2):
            raise _refusal(source, f"odd sides ({context.width}x{context.height}) with subsampled colour")
        if int(context.field_order) not in PROGRESSIVE:
            raise _refusal(source, "interlaced pictures rightly")
        if layout is not None and max(component.bits for component in layout.components) > _MAX_BITS:
            raise _refusal(source, f"{context.pix_fmt} rightly: it has more than {_MAX_BITS} bits")
        if min(context.width, context.height) < _MIN_SIDE:
            raise _refusal(source, f"pictures of {context.width}x{context.height} rightly")
        num_streams = len(container.streams.video)
        first = first_frame(container, stream)
        if num_streams > 1 and first is not None and not _begins_with(source, displayed(first)):
            raise _refusal(source, f"the right one of {num_streams} video streams")
        if first is not None and not _turns_rightly(source, orientation_of(first)):
            raise _refusal(source, "pictures that are to be turned or mirrored like these")
        can_seek = (
            codec_name(stream) in _SEEKABLE_CODECS
            and container.format.name in _SEEKABLE_DEMUXERS
            and context.pix_fmt in _SEEKABLE_PIXELS
            and _all_keyframes_are_starts(source)
        )
        return can_seek, 3 * context.width * context.height


def _begins_with(source: VideoSource, image: NDArray[np.uint8]) -> bool:
    """Whether decord's first frame is this one."""
    import decord

    try:
        first = decord.VideoReader(_path(source), ctx=decord.cpu(0), num_threads=1).next().asnumpy()
    except (decord.DECORDError, StopIteration, RuntimeError):
        return False
    return bool(np.array_equal(first, image))


def _path(source: VideoSource) -> str:
    """Name the verified file by its handle: its own name could mean another file by now, or not be text."""
    return f"/proc/self/fd/{source.file.fileno()}"


def _all_keyframes_are_starts(source: VideoSource) -> bool:
    """Whether decoding may begin at every packet that the container calls a keyframe."""
    source.file.seek(0)
    with open_video(source.file, source.uri, source.file_format, source.limits) as (container, stream):
        index = read_index(container, stream, 0, sys.maxsize)
    return bool((index.is_start | ~index.is_keyframe).all())


def _turns_rightly(source: VideoSource, orientation: Orientation) -> bool:
    if orientation == Orientation():
        return True
    mirrors_once = orientation.mirrors_rows != orientation.mirrors_columns
    return source.file_format.name == "mov" and orientation.swaps_axes == mirrors_once


def _refusal(source: VideoSource, what: str) -> MediaError:
    return MediaError(ErrorCode.UNSUPPORTED_MEDIA, f"{source.uri}: decord does not decode {what}")


def _read_chunk(
    source: VideoSource, chunk: Sequence[int], num_source_frames: int, can_seek: bool
) -> list[NDArray[np.uint8]]:
    import decord

    try:
        reader = decord.VideoReader(_path(source), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != num_source_frames:
            raise _refusal(source, f"a file in which it counts {len(reader)} frames and the probe {num_source_frames}")
        if chunk[-1] >= len(reader):
            raise MediaError(
                ErrorCode.TRUNCATED_MEDIA,
                f"{source.uri}: expected frame {chunk[-1]}, the file ends after {len(reader)} frames",
            )
        if can_seek:
            return list(reader.get_batch(list(chunk)).asnumpy())
        wanted = set(chunk)
        taken = ((number, reader.next()) for number in range(chunk[-1] + 1))
        return [frame.asnumpy() for number, frame in taken if number in wanted]
    except (decord.DECORDError, IndexError, StopIteration, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MediaError(ErrorCode.CORRUPT_MEDIA, f"{source.uri}: decord: {first_line}") from error
