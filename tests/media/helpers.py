"""Short ways to call the media layer in this process, for tests of its parts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.media.container import ClipJob, MediaInfo, MediaType
from pipeline.media.frames import open_frames
from pipeline.media.grid import grid_of, row_bytes
from pipeline.media.location import open_binary
from pipeline.media.probe import probe_media
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
    with_times: bool = False,
) -> MediaInfo:
    with open_binary(str(path)) as file:
        return probe_media(file, str(path), images or ImagesConfig(), limits or LimitsConfig(), with_times=with_times)


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
) -> list[NDArray[np.uint8]]:
    job = ClipJob(
        uri=str(path),
        media_type=media_type,
        frame_indices=tuple(indices),
        num_source_frames=num_source_frames or max(indices) + 1,
        resized_height=32,
        resized_width=32,
    )
    decode = DecodeConfig.model_validate({"video": backend})
    with open_binary(str(path)) as file:
        clip = open_frames(job, file, decode, images or ImagesConfig(), LimitsConfig(), cache or IndexCache())
        return list(clip.frames)


def rows_of(sandbox: Sandbox, job: ClipJob, *, offset: int = 0) -> NDArray[np.uint8]:
    t, h, w = grid_of(job.media_type, len(job.frame_indices), job.resized_height, job.resized_width)
    num_bytes = t * h * w * row_bytes(job.media_type)
    buffer = SharedBuffer(offset + num_bytes)
    sandbox.decode(job, buffer, offset)
    return np.frombuffer(buffer.memory, np.uint8, num_bytes, offset).reshape(t * h * w, -1)


def evenly(num_frames: int, count: int) -> list[int]:
    return [int(index) for index in np.linspace(0, num_frames - 1, min(count, num_frames)).round()]
