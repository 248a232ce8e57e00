import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import OutputBusyError
from pipeline.sink.compact import read_manifest
from pipeline.sink.lance_table import open_dataset
from pipeline.sink.lease import Lease
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.command import patchwire
from tests.faults.processes import (
    REPOSITORY,
    SETTINGS,
    Command,
    embed_here,
    fragment_bytes,
    fragment_times,
    num_fragments,
    send,
    wait_until,
)
from tests.sink.readers import fragments_table, lance_table

# Looks at the output: some 20 for lease, run.json and plan, then about ten a request.
KILL_POINTS = (1, 8, 20, 24, 25, 26, 27, 28, 29)
# Of a run with nothing left to do, from its first look at the fragments to the table's manifest and `run.json`.
LANCE_POINTS = (15, 17, 40, 77, 78, 79, 80, 81, 82, 83, 30, 40)
COMMIT_POINTS = (13, 14, 15, 30, 55, 56, 57, 58, 59, 60)


def take_up(sources: Path, out: Path, undisturbed: Path) -> None:
    """Go on with an output, and see that only what was missing is done."""
    before = fragment_times(out)
    assert embed_here(sources, out).num_requests == num_fragments(undisturbed) - len(before)
    assert before.items() <= fragment_times(out).items()
    assert fragment_bytes(out) == fragment_bytes(undisturbed)


def killed_runs(sources: Path, out: Path, points: tuple[int, ...], *options: str) -> list[int]:
    command = [sys.executable, "-m", "tests.faults.killed_driver", *options, str(sources), str(out), *map(str, points)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.timeout(300)
def test_a_driver_killed_at_any_point_leaves_what_an_uninterrupted_run_would(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    ends = killed_runs(videos, out, (*KILL_POINTS, 1_000_000))
    assert ends == [-signal.SIGKILL] * len(KILL_POINTS) + [0]
    assert fragment_bytes(out) == fragment_bytes(undisturbed)
    assert not list(out.rglob(".*"))
    assert verify_output(OutputFolder(str(out))).ok


def test_a_driver_killed_in_the_commit_step_leaves_no_table_or_a_whole_one_and_the_next_run_makes_it(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    shutil.copytree(undisturbed, out)
    folder = OutputFolder(str(out))
    ends = killed_runs(videos, out, (*COMMIT_POINTS, 1_000_000), "--compact")
    assert ends == [-signal.SIGKILL] * len(COMMIT_POINTS) + [0]
    made = read_manifest(folder)
    report = verify_output(folder)
    assert (report.ok, report.num_table_rows, report.num_newer_requests) == (True, report.num_rows, 0)
    assert fragment_bytes(out) == fragment_bytes(undisturbed)
    embed_here(videos, out, output={"compact": True})
    assert read_manifest(folder) == made


def test_a_driver_killed_while_it_commits_to_lance_leaves_a_whole_dataset_or_none_and_the_next_run_makes_it(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lance", reason="the development extra brings pylance")
    out = tmp_path / "OUT"
    shutil.copytree(undisturbed, out)
    folder = OutputFolder(str(out))
    ends = killed_runs(videos, out, (*LANCE_POINTS, 1_000_000), "--lance")
    assert ends == [-signal.SIGKILL] * len(LANCE_POINTS) + [0]
    report = verify_output(folder)
    assert (report.ok, report.num_lance_rows, report.num_newer_than_lance) == (True, report.num_rows, 0)
    assert lance_table(folder).equals(fragments_table(folder))
    assert fragment_bytes(out) == fragment_bytes(undisturbed)
    made = open_dataset(folder).version
    embed_here(videos, out, output={"compact": "lance"})
    assert open_dataset(folder).version == made


@pytest.mark.parametrize(
    ("runner", "number"),
    [("local", signal.SIGTERM), pytest.param("ray", signal.SIGINT, marks=pytest.mark.ray)],
)
def test_a_signal_ends_a_run_in_order_and_leaves_no_process_behind(
    videos: Path, undisturbed: Path, tmp_path: Path, runner: str, number: signal.Signals
) -> None:
    out = tmp_path / "OUT"
    with Command("embed", videos, "--out", out, *SETTINGS, "--runner", runner) as command:
        assert wait_until(lambda: num_fragments(out) >= 2)
        os.killpg(command.pid, number)  # as a terminal does: the whole foreground group gets it
        stopped = command.finish(20)
        assert wait_until(lambda: not command.processes(), 30)
    assert stopped.returncode == 1
    assert f"stopped by {number.name}" in stopped.stderr
    assert f"To go on: patchwire embed {videos} --out {out}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (out / "lease.json").exists()
    assert num_fragments(out) < num_fragments(undisturbed)
    take_up(videos, out, undisturbed)


def test_ctrl_c_while_the_command_is_loaded_ends_it_in_words(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    with Command("embed", videos, "--out", out, *SETTINGS, "--runner", "local") as command:
        libraries = Path(f"/proc/{command.pid}/maps")
        assert wait_until(lambda: "pydantic_core" in libraries.read_text())  # the settings' types; much is to come
        os.killpg(command.pid, signal.SIGINT)
        stopped = command.finish(20)
    assert stopped.returncode == 1
    assert stopped.stderr == "patchwire: stopped by SIGINT; nothing was begun\n"
    assert not out.exists()


def test_further_signals_while_a_run_ends_change_nothing(videos: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    with Command("embed", videos, "--out", out, *SETTINGS, "--runner", "local") as command:
        assert wait_until(lambda: num_fragments(out) >= 2)
        while not command.has_ended():
            for number in (signal.SIGINT, signal.SIGTERM):
                send(command.pid, number)
            time.sleep(0.01)
        stopped = command.finish(20)
        assert not command.processes()
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1].startswith("patchwire: stopped by SIG")
    assert "Traceback" not in stopped.stderr
    assert not (out / "lease.json").exists()
    take_up(videos, out, undisturbed)


def test_a_second_run_is_refused_while_the_first_one_lives_and_takes_over_when_it_was_killed(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    arguments = ("embed", videos, "--out", out, *SETTINGS, "--runner", "local")
    with Command(*arguments) as first:
        assert wait_until(lambda: num_fragments(out) >= 2)
        os.kill(first.pid, signal.SIGSTOP)
        refused = patchwire(*arguments)
        assert refused.returncode == 1
        assert f"is held by process {first.pid} on" in refused.stderr
        os.kill(first.pid, signal.SIGKILL)
    take_up(videos, out, undisturbed)


def test_a_second_run_is_refused_before_its_sources_are_looked_at(tmp_path: Path) -> None:
    folder = OutputFolder(str(tmp_path / "OUT"))
    folder.create()
    with Lease(folder), pytest.raises(OutputBusyError, match=f"is held by process {os.getpid()} on"):
        embed_here(tmp_path / "no such folder", tmp_path / "OUT")


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_killed_driver_takes_its_ray_with_it_and_the_next_run_goes_on(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    arguments = ("embed", videos, "--out", out, *SETTINGS, "--set", "ray.num_cpus=2")
    with Command(*arguments) as run:
        assert wait_until(lambda: num_fragments(out) >= 1)
        os.kill(run.pid, signal.SIGKILL)
        # Two agents of Ray's own may look for their raylet for another minute.
        assert wait_until(lambda: set(run.processes()) <= set(run.processes("Agent")), 60)
    take_up(videos, out, undisturbed)
    assert verify_output(OutputFolder(str(out))).ok
