"""A cluster of two kinds of nodes: cores decode, GPUs encode, the driver's node does neither."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.media_factory import make_video

NUM_VIDEOS = 12


@pytest.mark.ray
def test_decode_actors_are_on_the_nodes_with_cores_and_the_encoder_takes_the_gpu(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for number in range(NUM_VIDEOS):
        make_video(media / f"{number:02}.mp4", num_frames=10 + number)
    command = [sys.executable, "-m", "tests.flow.two_node_types", str(media), str(tmp_path / "OUT")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["rows"] == NUM_VIDEOS
    assert found["places"] == {
        "ProbeActor": ["cpu"],
        "DecodeActor": ["cpu"],
        "EncodeActor": ["gpu"],
        "WriteActor": ["cpu"],
    }
    assert (found["counts"]["DecodeActor"], found["counts"]["EncodeActor"]) == (2, 1)
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok
