"""Short ways to call the media layer in this process, for tests of its parts."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import ClipJob, MediaInfo, MediaType
from pipeline.media.frames import open_frames
from pipeline.media.grid import grid_of, row_bytes
from pipeline.media.location import open_binary
from pipeline.media.probe import probe_media
from pipeline.media.safe_start import SafeStart
from pipeline.media.sandbox import Sandbox, SharedBuffer
from pipeline.media.video_pyav import IndexCache

SAMPLE_VIDEOS = (
    "asl_book.mkv",
    "av1_video.mkv",
    "bbb_30s_vp8.webm",
    "bbb_720p25_h264.mp4",
    "bbb_noduration_vp9.webm",
    "bbb_segment.ts",
    "bikes_640x272_h264.mp4",
    "bikes_av1_10fps.mkv",
    "bikes_longgop_1080p.mp4",
    "bikes_mpeg4.avi",
    "bikes_odd_vp9.webm",
    "bikes_rot_hevc.mp4",
    "bikes_vfr.mp4",
    "bottle_40s_h264.mp4",
    "carphone_176x144_h264.mp4",
    "hidden_frames_vp9.mp4",
    "nasa_13013.mp4",
    "nasa_13013_rotated.mp4",
    "nasa_hevc.mp4",
    "nonzero_start.mp4",
    "one_frame.mp4",
    "testsrc_odd_vp9.mp4",
    "three_frames.mkv",
)


def probe(
    path: Path | str,
    *,
    images: ImagesConfig | None = None,
    limits: LimitsConfig | None = None,
    **wishes: bool,
) -> MediaInfo:
    with open_binary(str(path)) as file:
        return probe_media(file, str(path), images or ImagesConfig(), limits or LimitsConfig(), **wishes)


def make_job(path: Path | str, info: MediaInfo, indices: Sequence[int], height: int = 64, width: int = 96) -> ClipJob:
    return ClipJob(
        uri=str(path),
        media_type=info.media_type,
        frame_indices=tuple(indices),
        num_source_frames=info.num_frames,
        resized_height=height,
        resized_width=width,
    )


def read(
    path: Path,
    indices: Sequence[int],
    *,
    backend: str = "pyav",
    images: ImagesConfig | None = None,
    cache: IndexCache | None = None,
    num_source_frames: int | None = None,
    media_type: MediaType = MediaType.VIDEO,
    origin: SafeStart | None = None,
) -> list[NDArray[np.uint8]]:
    job = ClipJob(
        uri=str(path),
        media_type=media_type,
        frame_indices=tuple(indices),
        num_source_frames=num_source_frames or max(indices) + 1,
        resized_height=32,
        resized_width=32,
        origin=origin,
    )
    decode = DecodeConfig.model_validate({"video": backend})
    with open_binary(str(path)) as file:
        clip = open_frames(job, file, decode, images or ImagesConfig(), LimitsConfig(), cache or IndexCache())
        return list(clip.frames)


def read_in_a_row(
    path: Path,
    clips: Sequence[Sequence[int]],
    cache: IndexCache | None = None,
    origins: Sequence[SafeStart | None] = (),
) -> list[list[NDArray[np.uint8]] | tuple[ErrorCode, str]]:
    """Frames of each clip, or its error, each clip being told of the next one, as the decoder process does it.

    `origins` has a safe start, or None, for each clip.
    """
    cache = cache or IndexCache()
    results: list[list[NDArray[np.uint8]] | tuple[ErrorCode, str]] = []
    for clip, following, origin in zip(clips, [*clips[1:], ()], origins or repeat(None), strict=False):
        job = ClipJob(
            uri=str(path),
            media_type=MediaType.VIDEO,
            frame_indices=tuple(clip),
            num_source_frames=max(clip) + 1,
            resized_height=32,
            resized_width=32,
            following=tuple(following),
            origin=origin,
        )
        with ExitStack() as stack:
            file = stack.enter_context(open_binary(str(path)))
            try:
                opened = open_frames(job, file, DecodeConfig(video="pyav"), ImagesConfig(), LimitsConfig(), cache)
                results.append(list(opened.frames))
            except MediaError as error:
                results.append((error.code, error.message))
            if cache.keeps(file):
                stack.pop_all()
    cache.drop()
    return results


def damage(path: Path, target: Path, packet_numbers: Iterable[int]) -> Path:
    """Zero the data of some packets, by their number in decode order."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number in packet_numbers:
            start = packets[number].pos
            assert start is not None
            data[start : start + packets[number].size] = bytes(packets[number].size)
    target.write_bytes(data)
    return target


def rows_of(sandbox: Sandbox, job: ClipJob, *, offset: int = 0) -> NDArray[np.uint8]:
    t, h, w = grid_of(job.media_type, len(job.frame_indices), job.resized_height, job.resized_width)
    num_bytes = t * h * w * row_bytes(job.media_type)
    buffer = SharedBuffer(offset + num_bytes)
    sandbox.decode(job, buffer, offset)
    return np.frombuffer(buffer.memory, np.uint8, num_bytes, offset).reshape(t * h * w, -1)


def evenly(num_frames: int, count: int) -> list[int]:
    return [int(index) for index in np.linspace(0, num_frames - 1, min(count, num_frames)).round()]
