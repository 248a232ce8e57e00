"""Shared by all tests: the sample media, where they are present, and Hypothesis without a stopwatch."""

from pathlib import Path

import pytest
from hypothesis import settings

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
