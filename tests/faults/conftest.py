"""A corpus of small videos, a request each, and what an uninterrupted run makes of it."""

import sys
from pathlib import Path

import pytest

from tests.faults.processes import embed_here
from tests.media_factory import make_video

NUM_VIDEOS = 20


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(NUM_VIDEOS):
        make_video(folder / f"{number:02}.mp4", num_frames=10 + number)
    return folder


@pytest.fixture(scope="session")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "OUT"
    assert embed_here(videos, out).exit_code == 0
    return out


@pytest.fixture(scope="session", autouse=True)
def _on_linux() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("processes are found and stopped through /proc")
