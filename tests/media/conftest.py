"""Shared by the media tests: the kinds of video that are generated, and one long-lived sandbox."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.media.sandbox import Sandbox
from tests.media_factory import make_video

_FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}

VIDEOS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "b_frames.mp4": {"num_frames": 60, "gop": 250, "options": {"x264-params": "bframes=8:b-pyramid=strict:ref=8"}},
    "many_gops.mp4": {"num_frames": 80, "gop": 10, "options": {"x264-params": "scenecut=0"}},
    "open_gop.mp4": {"num_frames": 60, "options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "recovery_points.ts": {"num_frames": 50, "gop": 999, "options": {"x264-params": "intra-refresh=1:keyint=20"}},
    "interlaced.mp4": {"options": {"x264-params": "tff=1"}},
    "h264.mkv": {"num_frames": 40},
    "h264.ts": {"num_frames": 40},
    "h264.flv": {},
    "fragmented.mp4": {"muxer_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": {"codec": "libx265", "num_frames": 40},
    "vp9.webm": {"codec": "libvpx-vp9", "options": _FAST_VP9},
    "hidden_vp9.mp4": {
        "codec": "libvpx-vp9",
        "gop": 1,
        "options": _FAST_VP9,
        "hidden": (3, 4, 11),
        "muxer_options": {"fflags": "-autobsf"},
    },
    "superframes_vp9.mp4": {"codec": "libvpx-vp9", "gop": 1, "options": _FAST_VP9, "hidden": (3, 4, 11)},
    "vp8.webm": {"codec": "libvpx", "num_frames": 30, "options": _FAST_VP9},
    "hidden_vp8.webm": {"codec": "libvpx", "num_frames": 30, "options": _FAST_VP9, "hidden": (5, 13)},
    "mpeg4.avi": {"codec": "mpeg4", "num_frames": 30, "options": {"bf": "2"}},
    "mpeg2.ts": {"codec": "mpeg2video", "num_frames": 30, "options": {"bf": "2"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "portrait.mp4": {"width": 64, "height": 96},
    "quarter_turn.mp4": {"rotation": 90},
    "half_turn.mp4": {"rotation": 180},
    "three_quarter_turn.mkv": {"rotation": -90},
    "variable_rate.mp4": {"num_frames": 20, "ticks": [n * n // 2 + n for n in range(20)]},
    "odd_sides.mp4": {"width": 97, "height": 63, "pixels": "yuv444p"},
    "odd_sides.webm": {"width": 97, "height": 63, "codec": "libvpx-vp9", "options": _FAST_VP9},
    "no_duration.webm": {"codec": "libvpx-vp9", "options": _FAST_VP9, "is_seekable": False},
    "full_range.mkv": {"pixels": "yuvj420p"},
    "odd_count.mp4": {"num_frames": 7},
    "one_frame.mp4": {"num_frames": 1},
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a generated video by its name in VIDEOS, made once a session."""
    folder = tmp_path_factory.mktemp("made")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else make_video(path, **VIDEOS[name])

    return get


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox with the default settings and a short deadline."""
    with Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), LimitsConfig()) as box:
        yield box
