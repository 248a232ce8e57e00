"""Shared by all tests: the sample media, where they are present, loaded decoders, and no stopwatch in Hypothesis."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.kept_templates import Templates

# Machines that run these tests are slow and noisy: a deadline in seconds would only measure them.
settings.register_profile("patient", deadline=None, max_examples=60)
settings.load_profile("patient")

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
