"""A Ray that was started for a run ends where the run cannot begin."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import Config
from pipeline.errors import UsageError
from pipeline.flow.cluster import RayRunner
from tests.faults.processes import REPOSITORY
from tests.media_factory import make_image

BEGIN = """
import sys
import ray
from pipeline import Config, embed
from pipeline.errors import UsageError
config = Config.from_values(
    {
        "model": "random:tiny",
        "encode": {"device": "cuda"},
        "ray": {"num_cpus": 2, "object_store_bytes": 100_000_000},
    }
)
try:
    embed(sys.argv[1], sys.argv[2], config=config)
except UsageError as error:
    print(error)
print("left running:", ray.is_initialized())
"""


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_ray_without_the_gpu_that_is_asked_for_ends_and_leaves_no_output(tmp_path: Path) -> None:
    image, out = make_image(tmp_path / "a.png"), tmp_path / "OUT"
    command = [sys.executable, "-c", BEGIN, str(image), str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert "encode.device=cuda: this Ray cluster has no GPU" in done.stdout, done.stderr
    assert "left running: False" in done.stdout
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_a_ray_without_the_gpu_that_is_asked_for_is_refused_where_encode_workers_are_named() -> None:
    config = Config.from_values({"encode": {"device": "cuda"}, "ray": {"encode_workers": 1}})
    with RayRunner(config) as runner, pytest.raises(UsageError, match="this Ray cluster has no GPU"):
        _ = runner.device
