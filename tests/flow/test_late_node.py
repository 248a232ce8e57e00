"""A cluster that grows and shrinks under a run: a node joins it, and is taken away again after a warning."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.media_factory import make_image

NUM_IMAGES = 64  # as many as are planned before decode actors would have started


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("late") / "OUT"


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, Any]:
    media = out.parent / "media"
    media.mkdir()
    for number in range(NUM_IMAGES):
        make_image(media / f"{number:02}.png", width=64, height=64, seed=number)
    command = [sys.executable, "-m", "tests.flow.late_node", str(media), str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.ray
def test_a_node_that_joins_a_run_decodes_for_it(found: dict[str, Any]) -> None:
    assert found["used"] and found["runs_when_used"], found
    assert found["decoded"]["late"] > 0


@pytest.mark.ray
def test_a_node_that_is_announced_to_go_gets_no_more_work_and_the_others_go_on(found: dict[str, Any]) -> None:
    assert found["drained"] and found["quiet"], found
    assert found["goes_on"] and found["runs_when_removed"], found


@pytest.mark.ray
def test_rows_of_a_run_whose_node_came_and_went_are_there_once(found: dict[str, Any], out: Path) -> None:
    assert found["rows"] == NUM_IMAGES
    assert found["decoded"]["first"] + found["decoded"]["late"] >= NUM_IMAGES
    report = verify_output(OutputFolder(str(out)))
    assert report.ok
    assert report.num_rows == NUM_IMAGES
