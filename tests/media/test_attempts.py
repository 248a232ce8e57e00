import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError, RunError, Stage
from pipeline.media.attempts import Attempts, Death
from pipeline.media.sandbox import Sandbox
from tests.media.helpers import make_job, probe, rows_of


@pytest.fixture(params=["disk", "store"])
def folder_uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "attempts")
        return
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://bucket/out/attempts"
    memory.store.clear()


def death(uri, code=ErrorCode.DECODER_CRASHED):
    return Death(uri=str(uri), code=code, message=f"it ended by {code}")


def is_refused(attempts, uri):
    try:
        attempts.require_allowed(str(uri), Stage.DECODE)
    except MediaError as error:
        return error.code
    return None


def make_sandbox(folder, timeout_seconds=20):
    decode = DecodeConfig(timeout_seconds=timeout_seconds)
    return Sandbox(decode, ImagesConfig(), LimitsConfig(), Attempts(str(folder)))


def end_in_mid_job(box, signal_number):
    """Stop the decoder, so that it cannot finish the next job, and end it with a signal while the job waits."""
    pid = box.pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (pid, signal_number)).start()


def test_a_medium_is_refused_after_two_deaths_and_others_are_not(folder_uri):
    attempts = Attempts(folder_uri)
    assert attempts.record(death("/a.mp4")) == 1
    assert is_refused(attempts, "/a.mp4") is None
    assert attempts.record(death("/a.mp4", ErrorCode.DECODER_TIMEOUT)) == 2
    with pytest.raises(MediaError, match=r"/a\.mp4: not tried again.*2 times.*lift-quarantine"):
        attempts.require_allowed("/a.mp4", Stage.DECODE)
    assert is_refused(attempts, "/b.mp4") is None


def test_deaths_are_known_to_the_next_run_until_the_quarantine_is_lifted(folder_uri):
    for _ in range(2):
        Attempts(folder_uri).record(death("/a.mp4"))
    later, asked_afterwards = Attempts(folder_uri), Attempts(folder_uri)
    assert is_refused(later, "/a.mp4") is ErrorCode.DECODER_CRASHED
    later.forget_all()
    assert is_refused(later, "/a.mp4") is None
    assert is_refused(asked_afterwards, "/a.mp4") is None
    assert is_refused(Attempts(folder_uri), "/a.mp4") is None


def test_a_death_of_a_gpus_decoder_counts_for_gpus_alone_and_is_lifted_like_the_others(folder_uri):
    on_device, on_cpu = Attempts(folder_uri, on_device=True), Attempts(folder_uri)
    on_cpu.record(death("/b.mp4"))
    assert on_device.record(death("/a.mp4", ErrorCode.DECODER_TIMEOUT)) == 1
    later = Attempts(folder_uri, on_device=True)
    assert (is_refused(later, "/a.mp4"), is_refused(later, "/b.mp4")) == (ErrorCode.DECODER_TIMEOUT, None)
    assert on_cpu.record(death("/a.mp4")) == 1
    assert is_refused(on_cpu, "/a.mp4") is None
    on_cpu.forget_all()
    assert is_refused(Attempts(folder_uri, on_device=True), "/a.mp4") is None


def test_a_store_that_cannot_be_reached_ends_the_run_in_words(monkeypatch):
    class LostNetworkError(Exception):
        """What a store's driver may raise of a lost network: no OSError."""

    def lose(*_, **__):
        raise LostNetworkError("no route to the store")

    for name in ("ls", "pipe_file", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, lose)
    attempts = Attempts("memory://bucket/out/attempts")
    for act in (partial(attempts.allows, "/a.mp4"), partial(attempts.record, death("/a.mp4")), attempts.forget_all):
        with pytest.raises(RunError, match=r"memory://bucket/out/attempts: .*LostNetworkError: no route"):
            act()


def test_another_workers_deaths_are_known_at_the_next_job(tmp_path):
    mine, other = Attempts(str(tmp_path / "attempts")), Attempts(str(tmp_path / "attempts"))
    for _ in range(2):
        other.record(death("/a.mp4"))
    assert is_refused(mine, "/a.mp4") is ErrorCode.DECODER_CRASHED


def test_a_death_in_the_same_tick_of_the_folders_clock_as_the_last_one_is_seen(tmp_path):
    folder = tmp_path / "attempts"
    mine, other = Attempts(str(folder)), Attempts(str(folder))
    other.record(death("/a.mp4"))
    assert is_refused(mine, "/a.mp4") is None
    tick = folder.stat()
    other.record(death("/a.mp4"))
    os.utime(folder, ns=(tick.st_atime_ns, tick.st_mtime_ns))
    assert is_refused(mine, "/a.mp4")


def test_a_medium_with_a_death_is_tried_by_one_at_a_time_until_it_has_been_decoded(tmp_path):
    attempts = Attempts(str(tmp_path / "attempts"))
    attempts.record(death("/a.mp4"))

    def is_taken():
        with turn.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    with pytest.raises(MediaError), attempts.turn("/a.mp4", Stage.DECODE):
        (turn,) = (tmp_path / "attempts").glob("*.turn")
        assert is_taken()
        raise MediaError(ErrorCode.CORRUPT_MEDIA, "not decoded", Stage.DECODE)
    with attempts.turn("/a.mp4", Stage.DECODE):
        assert is_taken()
        with attempts.turn("/b.mp4", Stage.DECODE):
            pass
    with attempts.turn("/a.mp4", Stage.DECODE), attempts.turn("/a.mp4", Stage.DECODE):
        assert not is_taken()
    attempts.forget_all()
    assert not list((tmp_path / "attempts").iterdir())


def test_who_waited_for_a_turn_is_told_of_the_second_death(tmp_path):
    attempts, waiting = (Attempts(str(tmp_path / "attempts")) for _ in range(2))
    attempts.record(death("/a.mp4"))
    refused = []

    def wait():
        try:
            with waiting.turn("/a.mp4", Stage.DECODE):
                pass
        except MediaError as error:
            refused.append(error.code)

    with attempts.turn("/a.mp4", Stage.DECODE):
        thread = threading.Thread(target=wait)
        thread.start()
        attempts.record(death("/a.mp4"))
    thread.join()
    assert refused == [ErrorCode.DECODER_CRASHED]


def test_a_file_that_was_mended_is_tried_again(tmp_path):
    file = tmp_path / "v.mp4"
    file.write_bytes(b"broken")
    attempts = Attempts(str(tmp_path / "attempts"))
    for _ in range(2):
        attempts.record(death(file))
    assert is_refused(attempts, file)
    file.write_bytes(b"mended now")
    assert is_refused(attempts, file) is None


def test_a_record_that_was_not_finished_still_counts(tmp_path):
    attempts = Attempts(str(tmp_path / "attempts"))
    for _ in range(2):
        attempts.record(death("/a.mp4"))
    for record in (tmp_path / "attempts").iterdir():
        record.write_bytes(b"")
    assert is_refused(Attempts(str(tmp_path / "attempts")), "/a.mp4") is ErrorCode.DECODER_CRASHED


def test_a_name_that_is_not_utf8_can_be_written_down(tmp_path):
    uri = os.fsdecode(b"/odd\xff.mp4")
    attempts = Attempts(str(tmp_path / "attempts"))
    for _ in range(2):
        attempts.record(death(uri))
    assert is_refused(attempts, uri)


def test_a_death_that_cannot_be_written_down_stops_the_run(tmp_path):
    (tmp_path / "attempts").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="cannot write down"):
        Attempts(str(tmp_path / "out" / "attempts")).record(death("/a.mp4"))


def test_a_decoder_that_is_killed_from_outside_costs_nothing(made, tmp_path):
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 9])
    with make_sandbox(tmp_path / "attempts") as box:
        expected = rows_of(box, job)
        end_in_mid_job(box, signal.SIGKILL)
        assert np.array_equal(rows_of(box, job), expected)
        assert len(list((tmp_path / "attempts").glob("*.json"))) == 1


def test_a_medium_that_hangs_twice_is_not_given_to_a_third_decoder(made, tmp_path):
    job = make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 9])
    other = make_job(made("vp9.webm"), probe(made("vp9.webm")), [0, 1])
    for _ in range(2):
        with make_sandbox(tmp_path / "attempts", timeout_seconds=1) as box:
            rows_of(box, other)
            os.kill(box.pid, signal.SIGSTOP)
            with pytest.raises(MediaError, match="killed"):
                rows_of(box, job)
    with make_sandbox(tmp_path / "attempts") as box:
        with pytest.raises(MediaError, match="not tried again") as caught:
            rows_of(box, job)
        assert (caught.value.code, caught.value.stage) == (ErrorCode.DECODER_TIMEOUT, Stage.DECODE)
        assert box.pid is None
        rows_of(box, other)


def test_a_healthy_clip_and_a_bad_file_write_nothing(made, tmp_path):
    bad = tmp_path / "text.mp4"
    bad.write_text("not a video")
    with make_sandbox(tmp_path / "attempts") as box:
        rows_of(box, make_job(made("h264.mp4"), probe(made("h264.mp4")), [0, 9]))
        with pytest.raises(MediaError):
            box.probe(str(bad))
    assert not (tmp_path / "attempts").exists()
