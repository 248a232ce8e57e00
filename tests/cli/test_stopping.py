"""A signal stops a command wherever it comes up."""

import subprocess
import sys

import pytest

from tests.faults.processes import REPOSITORY

IN_A_DESTRUCTOR = """
import os, signal, sys, time
from pipeline.cli.stopping import stoppable
from pipeline.errors import RunError

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        time.sleep(60)

class Other:
    def __del__(self):
        raise ValueError("an error of its own")

try:
    with stoppable():
        Other()
        Dying()
        time.sleep(60)
        print("went on")
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_up_in_a_destructor_is_not_lost(name: str) -> None:
    command = [sys.executable, "-c", IN_A_DESTRUCTOR, name]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.startswith(f"stopped by {name}; what is finished is kept. To go on: patchwire"), done.stderr
    assert "an error of its own" in done.stderr
    assert "Stop" not in done.stderr
