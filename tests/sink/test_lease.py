import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import OutputBusyError, OutputError
from pipeline.sink.lease import LEASE, Holder, Lease, refuse_if_held
from pipeline.sink.output import OutputFolder

from .factories import make_folder

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pipeline.sink.lease import Lease
from pipeline.sink.output import OutputFolder
with Lease(OutputFolder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def stored() -> Iterator[OutputFolder]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    folder = OutputFolder("memory://bucket/out")
    folder.create()
    yield folder
    memory.store.clear()


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    return make_folder(tmp_path) if request.param == "disk" else request.getfixturevalue("stored")


def write_lease(folder: OutputFolder, holder: Holder) -> None:
    values = {name: getattr(holder, name) for name in Holder.__slots__}
    store, root = fsspec.core.url_to_fs(folder.uri)
    store.pipe_file(f"{root}/{LEASE}", json.dumps(values).encode())


def read_lease(folder: OutputFolder) -> Holder:
    with folder.open(LEASE) as file:
        return Holder(**json.loads(file.read()))


def elsewhere(heartbeat_at: str) -> Holder:
    """A run on another machine."""
    return replace(Holder.this_process(), run_id="other", host="far", machine="far", pid=1, heartbeat_at=heartbeat_at)


def wait_for(condition: threading.Event | object, tries: int = 200) -> bool:
    pause = threading.Event()
    return any(condition() or pause.wait(0.02) for _ in range(tries))  # type: ignore[operator]


def test_a_second_run_is_refused_with_who_and_since_when(folder: OutputFolder) -> None:
    with Lease(folder):
        holder = read_lease(folder)
        with pytest.raises(OutputBusyError) as refused, Lease(folder):
            pass
        assert read_lease(folder) == holder
    assert str(os.getpid()) in str(refused.value)
    assert holder.host in str(refused.value)
    assert holder.started_at in str(refused.value)


def test_a_clean_end_gives_the_output_back(folder: OutputFolder) -> None:
    with Lease(folder):
        pass
    with pytest.raises(FileNotFoundError):
        folder.open(LEASE)
    with Lease(folder):
        pass


def test_an_error_gives_the_output_back_too(folder: OutputFolder) -> None:
    with pytest.raises(KeyboardInterrupt), Lease(folder):
        raise KeyboardInterrupt
    with Lease(folder):
        pass


def test_a_run_elsewhere_with_an_old_heartbeat_is_taken_over_and_a_fresh_one_is_not(folder: OutputFolder) -> None:
    write_lease(folder, elsewhere("2020-01-01T00:00:00.000+00:00"))
    with Lease(folder):
        assert read_lease(folder).pid == os.getpid()
    write_lease(folder, elsewhere(Holder.this_process().heartbeat_at))
    with pytest.raises(OutputBusyError, match="far"), Lease(folder):
        pass


def test_a_run_that_was_taken_over_finds_out_and_leaves_the_lease_alone(folder: OutputFolder) -> None:
    thief = elsewhere(Holder.this_process().heartbeat_at)

    def is_lost() -> bool:
        try:
            lease.check()
        except OutputBusyError as error:
            return "far" in str(error)
        return False

    with Lease(folder, period_seconds=0.05) as lease:
        lease.check()
        write_lease(folder, thief)
        assert wait_for(is_lost)
    assert read_lease(folder) == thief


class DriverError(Exception):
    """What a store's driver may raise of a lost network: no OSError."""


@pytest.fixture
def lost_network(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The memory store without a network; undo it to have it back."""

    def lost(*_: object, **__: object) -> None:
        raise DriverError("could not connect")

    for name in ("pipe_file", "_open"):
        monkeypatch.setattr(MemoryFileSystem, name, lost)
    return monkeypatch


def test_a_lost_network_that_comes_back_leaves_the_heartbeat_beating_and_a_takeover_seen(
    stored: OutputFolder, request: pytest.FixtureRequest
) -> None:
    with Lease(stored, period_seconds=0.05, stale_periods=100) as lease:
        network: pytest.MonkeyPatch = request.getfixturevalue("lost_network")
        threading.Event().wait(0.3)
        lease.check()
        network.undo()
        first = read_lease(stored).heartbeat_at
        assert wait_for(lambda: read_lease(stored).heartbeat_at > first)
        write_lease(stored, elsewhere(Holder.this_process().heartbeat_at))
        assert wait_for(lambda: raises_busy(lease))


def raises_busy(lease: Lease) -> bool:
    try:
        lease.check()
    except OutputBusyError:
        return True
    return False


def test_a_run_without_a_heartbeat_for_as_long_as_another_waits_stops_by_itself(
    stored: OutputFolder, request: pytest.FixtureRequest
) -> None:
    with Lease(stored, period_seconds=0.05, stale_periods=6) as lease:
        lease.check()
        request.getfixturevalue("lost_network")
        since = time.monotonic()
        with pytest.raises(OutputError, match=r"DriverError: could not connect.*Run the same command again") as caught:
            while time.monotonic() < since + 20:
                lease.check()
                time.sleep(0.01)
        assert not isinstance(caught.value, OutputBusyError)
        assert time.monotonic() - since > 0.2  # a shorter loss passes


def test_a_heartbeat_that_gets_no_answer_stops_the_run_too(
    stored: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    with Lease(stored, period_seconds=0.05, stale_periods=4) as lease:
        monkeypatch.setattr(Lease, "_refresh", lambda _: answered.wait(30))
        with pytest.raises(OutputError, match="no answer yet"):
            while not answered.wait(0.01):
                lease.check()
        answered.set()


def test_a_store_that_cannot_be_reached_is_an_output_error_that_names_the_lease(
    stored: OutputFolder, lost_network: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"lease\.json.*DriverError: could not connect"), Lease(stored):
        pass
    with pytest.raises(OutputError, match=r"lease\.json.*DriverError: could not connect"):
        refuse_if_held(stored)


def test_the_heartbeat_goes_on_while_the_run_does(folder: OutputFolder) -> None:
    with Lease(folder, period_seconds=0.05):
        first = read_lease(folder).heartbeat_at
        assert wait_for(lambda: read_lease(folder).heartbeat_at > first)


def test_a_killed_run_of_this_machine_is_taken_over_at_once_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    command = [sys.executable, "-c", HOLD, folder.uri]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(OutputBusyError, match=str(holder.pid)), Lease(folder):
            pass
        holder.kill()
    with Lease(folder):
        assert read_lease(folder).pid == os.getpid()


def test_a_process_number_that_is_used_again_does_not_keep_the_output(folder: OutputFolder) -> None:
    write_lease(folder, replace(Holder.this_process(), run_id="dead", process_started=1))
    with Lease(folder):
        assert read_lease(folder).run_id != "dead"


def test_of_many_runs_that_find_a_stale_lease_one_gets_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_lease(folder, elsewhere("2020-01-01T00:00:00.000+00:00"))
    start, end, outcomes = threading.Barrier(8), threading.Event(), []

    def contend() -> None:
        start.wait()
        try:
            with Lease(folder):
                outcomes.append("held")
                end.wait(30)
        except OutputBusyError:
            outcomes.append("refused")

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert wait_for(lambda: len(outcomes) == 8)
    end.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 7]


def test_a_lease_from_the_future_says_so_instead_of_asking_to_wait(folder: OutputFolder) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    write_lease(folder, elsewhere(ahead.isoformat(timespec="milliseconds")))
    with pytest.raises(OutputBusyError, match=r"clock is (3600|3599) s ahead.*or remove lease\.json"), Lease(folder):
        pass


@pytest.mark.parametrize("heartbeat", ["soon", "2026-01-01T00:00:00", 5, None], ids=str)
def test_a_lease_whose_heartbeat_is_no_time_is_an_error_that_names_it(folder: OutputFolder, heartbeat: object) -> None:
    write_lease(folder, elsewhere(heartbeat))  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"lease\.json: expected a lease of this version.*remove it"):
        refuse_if_held(folder)


@pytest.mark.parametrize("content", [b'{"run": 1}', b"", b"null", b"[]", b"\xff"])
def test_a_lease_of_another_version_is_neither_ignored_nor_removed(folder: OutputFolder, content: bytes) -> None:
    store, root = fsspec.core.url_to_fs(folder.uri)
    store.pipe_file(f"{root}/{LEASE}", content)
    with pytest.raises(OutputError, match="remove it"), Lease(folder):
        pass
    assert store.exists(f"{root}/{LEASE}")
