"""One interface over the CPU's backends: a clip's frames, and the name of who decoded them.

`auto` is PyAV, because it measured cheaper and right on every valid file; decord is tried where PyAV opens
the file but cannot produce a single frame, and PyAV's reason is reported if decord fails too. What PyAV
cannot open decord is not given: without a header that passed the limits nothing is decoded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import ClipJob, FileFormat, MediaType, identify
from pipeline.media.image import read_animation, read_image
from pipeline.media.location import local_path
from pipeline.media.planes import PlaneWriter
from pipeline.media.reading import VideoSource
from pipeline.media.video_decord import read_frames_decord
from pipeline.media.video_pyav import IndexCache, displayed_frames, read_frames

_PYAV_FOUND_NOTHING = frozenset({ErrorCode.CORRUPT_MEDIA, ErrorCode.UNSUPPORTED_MEDIA})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """`backend` is "pyav", "decord" or "pillow"; `frames` yields uint8 (H, W, 3), one a wanted index.

    `pictures` is what to take in place of `frames` where the clip can be had as planes: frames as the decoder has them.
    """

    backend: str
    frames: Iterator[NDArray[np.uint8]]
    pictures: Iterator[VideoFrame] | None = None


def open_frames(
    job: ClipJob,
    file: BinaryIO,
    decode: DecodeConfig,
    images: ImagesConfig,
    limits: LimitsConfig,
    cache: IndexCache,
    planes: PlaneWriter | None = None,
) -> ClipFrames:
    """Start decoding a clip; with `planes`, as pictures where the job wants planes and the first one can be of any.

    Frames come one at a time, so memory does not grow with the clip. The file stays the caller's and
    is read while the frames are taken; where the job tells of a following one, `cache.keeps(file)` says after the
    last frame whether it must stay open.
    Raises: MediaError, here and while the frames are taken.
    """
    file_format = identify(file, job.uri)
    if file_format.media_type is MediaType.IMAGE:
        cache.drop()
        return ClipFrames(backend="pillow", frames=_image_frames(job, file, file_format, images, limits))
    if job.media_type is not MediaType.VIDEO:
        raise MediaError(
            ErrorCode.CHANGED_MEDIA, f"{job.uri}: planned as an image, it is a {file_format.name} video now"
        )
    source = VideoSource(file=file, uri=job.uri, file_format=file_format, limits=limits)
    if decode.video == "decord":
        cache.drop()
        return _decord(source, job)
    try:
        pictures = read_frames(source, job.frame_indices, cache, job.following, job.origin)
        first = next(pictures)
    except MediaError as error:
        if decode.video == "pyav" or error.code not in _PYAV_FOUND_NOTHING:
            raise
        try:
            return _decord(source, job)
        except MediaError:
            raise error from None
    all_pictures = chain([first], pictures)
    is_planar = planes is not None and job.plane_size is not None and planes.takes(first, *job.plane_size)
    frames = displayed_frames(all_pictures)
    return ClipFrames(backend="pyav", frames=frames, pictures=all_pictures if is_planar else None)


def _decord(source: VideoSource, job: ClipJob) -> ClipFrames:
    if local_path(job.uri) is None:
        raise MediaError(
            ErrorCode.UNSUPPORTED_MEDIA, f"{job.uri}: decord reads local files only; use decode.video=pyav"
        )
    frames = read_frames_decord(source, job.frame_indices, job.num_source_frames)
    return ClipFrames(backend="decord", frames=_started(frames))


def _started(frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Decode the first frame now, so that a failure shows while another backend can still be chosen."""
    return chain([next(frames)], frames)


def _image_frames(
    job: ClipJob, file: BinaryIO, file_format: FileFormat, images: ImagesConfig, limits: LimitsConfig
) -> Iterator[NDArray[np.uint8]]:
    if job.media_type is MediaType.VIDEO:
        return read_animation(file, job.uri, file_format, images, limits, job.frame_indices)
    return iter([read_image(file, job.uri, file_format, images, limits)])
