import signal
from pathlib import Path

import pyarrow as pa

from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output
from tests.command import patchwire
from tests.faults.processes import SETTINGS, Command, fragment_bytes, send, wait_until


def test_a_killed_preparation_leaves_whole_requests_and_goes_on_with_the_rest(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder, out = OutputFolder(str(tmp_path / "P")), tmp_path / "OUT"
    arguments = ("prepare", videos, "--out", tmp_path / "P", *SETTINGS, "--runner", "local")
    with Command(*arguments) as command:
        assert wait_until(lambda: folder.fragments(Kind.REQUESTS))
        send(command.pid, signal.SIGKILL)
    before = {}
    for stem in folder.fragments(Kind.REQUESTS):
        path = tmp_path / "P" / folder.name(Kind.REQUESTS, stem)
        assert pa.ipc.open_file(path.read_bytes()).read_all().num_rows == 1
        before[path] = path.stat().st_mtime_ns
    finished = patchwire(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list((tmp_path / "P").rglob(".*"))

    embedded = patchwire("embed", tmp_path / "P", "--out", out, "--runner", "local", "--set", "encode.threads=1")
    assert embedded.returncode == 0, embedded.stderr
    assert fragment_bytes(out) == fragment_bytes(undisturbed)
    assert verify_output(OutputFolder(str(out))).ok
