import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.media.template import DECODER_NAME as DECODER
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.command import patchwire
from tests.faults.processes import (
    SETTINGS,
    Command,
    fragment_bytes,
    num_fragments,
    send,
    wait_until,
)


def is_at_work(command: Command, out: Path, done: int, victim: str) -> bool:
    return command.has_ended() or (num_fragments(out) >= done and bool(command.processes(victim)))


def assert_not_open(command: Command) -> None:
    """Ray's ports ask for a token, and turn away who has none; its dashboard, if it has one, is on loopback."""
    (raylet,) = command.processes("raylet/raylet")
    for pid in [raylet, *command.processes("gcs_server")]:
        assert b"RAY_AUTH_MODE=token" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    words = Path(f"/proc/{raylet}/cmdline").read_text().split("\0")
    (address,) = (word.partition("=")[2] for word in words if word.startswith("--gcs-address="))
    stranger = f"import ray._raylet as r; r.GcsClient(address={address!r}).internal_kv_keys(b'', namespace=b'cluster')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    asked = subprocess.run(
        [sys.executable, "-c", stranger],
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Unauthenticated" in asked.stderr, asked.stderr
    for pid in command.processes("dashboard.py"):
        assert b"--host=127.0.0.1" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_workers_killed_in_a_ray_run_cost_no_row_and_double_none(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    total = num_fragments(undisturbed)
    with Command("embed", videos, "--out", out, *SETTINGS, "--runner", "ray") as command:
        assert wait_until(lambda: command.processes("(EncodeActor)"))
        for pid in command.processes("(EncodeActor)"):
            send(pid, signal.SIGSTOP)  # nothing gets past it until it is killed
        assert_not_open(command)
        killed = set()
        for done, victim in ((0, "(DecodeActor)"), (0, "(EncodeActor)"), (1, DECODER), (2, "(WriteActor)")):
            assert wait_until(partial(is_at_work, command, out, done, victim))
            if num_fragments(out) == total:
                break  # what was decoded before the last kill came through at once
            for pid in command.processes(victim):
                send(pid, signal.SIGKILL)
                killed.add(victim)
        ended = command.finish()
        assert wait_until(lambda: not command.processes(), 30)
    assert {"(DecodeActor)", "(EncodeActor)"} <= killed
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert fragment_bytes(out) == fragment_bytes(undisturbed)
    assert not list((out / "errors").glob("[!p]*.parquet"))
    assert verify_output(OutputFolder(str(out))).ok


def test_a_decoder_that_hangs_costs_one_error_row_and_a_retry_mends_it(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    hasty = ("--set", "decode.timeout_seconds=3")
    with Command("embed", videos, "--out", out, *SETTINGS, *hasty, "--runner", "local") as command:
        assert wait_until(lambda: num_fragments(out) >= 2)
        (decoder,) = command.processes(DECODER)
        os.kill(decoder, signal.SIGSTOP)
        done = command.finish()
    assert done.returncode == 3, done.stderr
    rows = [row for path in (out / "errors").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [row["code"] for row in rows] == ["decoder_timeout"]
    assert len(list((out / "attempts").iterdir())) == 1
    assert verify_output(OutputFolder(str(out))).ok
    assert patchwire("retry", out, "--set", "decode.timeout_seconds=60", "--runner", "local").returncode == 0
    assert fragment_bytes(out) == fragment_bytes(undisturbed)
    assert verify_output(OutputFolder(str(out))).ok
