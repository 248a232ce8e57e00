"""Shared by all tests: sample media, where they are present, loaded decoders, a Ray, and no stopwatch in Hypothesis."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.kept_templates import Templates

# Several processes share few cores here, and torch's idle threads would spin: with this, the encoder's tests take 39
# seconds of CPU instead of 71. libgomp reads it when torch is loaded, which is later; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Machines that run these tests are slow and noisy: a deadline in seconds would only measure them.
settings.register_profile("patient", deadline=None, max_examples=60)
settings.load_profile("patient")

CORES = 2
STORE_BYTES = 256 << 20
SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "media"


@pytest.fixture(scope="session")
def sample_media() -> Path:
    """The folder of real sample media and bad files that lies beside the checkout on development machines."""
    if not SAMPLES.is_dir():
        pytest.skip("the sample media lie beside the checkout on development machines only")
    return SAMPLES


@pytest.fixture(scope="session")
def templates() -> Iterator[Templates]:
    kept = Templates()
    yield kept
    kept.end()


@pytest.fixture(scope="module", autouse=True)
def kept_templates(request: pytest.FixtureRequest, templates: Templates) -> Iterator[None]:
    """For all files but those whose subject is the template."""
    if request.node.get_closest_marker("own_templates"):
        yield
    else:
        with templates.kept():
            yield


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
