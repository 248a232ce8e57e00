"""A Ray that was started for a run ends where the run cannot begin."""

import json
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
import json
import sys
import ray
from pipeline import Config, embed
from pipeline.errors import UsageError
try:
    embed(sys.argv[1], sys.argv[2], config=Config.from_values(json.loads(sys.argv[3])))
except UsageError as error:
    print(error)
print("left running:", ray.is_initialized())
"""


def begin(tmp_path: Path, device: str, **of_ray: float) -> str:
    """What a run says that cannot begin; it leaves no Ray."""
    image, out = make_image(tmp_path / "a.png"), tmp_path / "OUT"
    of_ray = {"num_cpus": 2, "object_store_bytes": 100_000_000, **of_ray}
    config = json.dumps({"model": "random:tiny", "encode": {"device": device}, "ray": of_ray})
    command = [sys.executable, "-c", BEGIN, str(image), str(out), config]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert "left running: False" in done.stdout, done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_ray_without_the_gpu_that_is_asked_for_ends_and_leaves_no_output(tmp_path: Path) -> None:
    assert "encode.device=cuda: this Ray cluster has no GPU" in begin(tmp_path, "cuda")
    assert not (tmp_path / "OUT").exists()


@pytest.mark.ray
def test_a_machine_without_room_for_a_decode_worker_ends_the_run_with_words(tmp_path: Path) -> None:
    said = begin(tmp_path, "cpu", num_cpus=1, decode_cores=1)
    assert "ray.decode_cores=1: no node has so many cores" in said
    assert "leave ray.decode_cores unset" in said


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_a_ray_without_the_gpu_that_is_asked_for_is_refused_where_encode_workers_are_named() -> None:
    config = Config.from_values({"encode": {"device": "cuda"}, "ray": {"encode_workers": 1}})
    with RayRunner(config) as runner, pytest.raises(UsageError, match="this Ray cluster has no GPU"):
        _ = runner.device
