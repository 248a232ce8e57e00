"""A small corpus of real files, and one Ray for all tests of a session."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.media_factory import make_image, make_video

CORES = 2
STORE_BYTES = 256 << 20


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


@pytest.fixture(scope="session")
def one_node_ray() -> Iterator[None]:
    """A real Ray on this machine, shared because it takes seconds to start."""
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=CORES,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
