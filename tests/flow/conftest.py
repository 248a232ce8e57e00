"""A small corpus of real files."""

from pathlib import Path

import pytest

from tests.media_factory import make_image, make_video


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos and images of several shapes, a byte-identical pair, and two files that are bad in different ways."""
    folder = tmp_path_factory.mktemp("corpus")
    make_video(folder / "a.mp4", num_frames=40)
    make_video(folder / "b.mp4", num_frames=33, width=64, height=96)
    (folder / "deep").mkdir()
    (folder / "deep" / "copy of a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    for seed in range(3):
        make_image(folder / f"{seed}.png", seed=seed)
    make_image(folder / "wide.jpg", width=400, height=120)
    whole = (folder / "b.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("not a video")
    return folder
