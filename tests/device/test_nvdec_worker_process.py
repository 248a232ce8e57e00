"""A process that hangs or dies takes what it was asked with it, and nothing else."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.config import LimitsConfig
from pipeline.device.nvdec.session import RefusedError
from pipeline.device.nvdec.worker_process import MOST_ENDS, EndedError, NvdecUnavailableError, WorkerProcess
from pipeline.errors import ErrorCode
from tests.device.stand_in_worker import BABBLE
from tests.faults.processes import REPOSITORY, wait_until

PATIENT_SECONDS = 60.0
IMPATIENT_SECONDS = 0.3


@pytest.fixture
def make() -> Iterator[Callable[..., WorkerProcess]]:
    made: list[WorkerProcess] = []

    def start(fails: str = "") -> WorkerProcess:
        made.append(WorkerProcess("tests.device.stand_in_worker", [], {"fails": fails}, num_channels=2))
        return made[-1]

    yield start
    for process in made:
        process.close()


def ask(process: WorkerProcess, do: str, number: int = 0, seconds: float = PATIENT_SECONDS) -> dict:
    return process.ask(number, {"do": do}, seconds, read)


def read(reply: dict) -> dict:
    if not isinstance(reply["pid"], int):
        raise ValueError("no process id")
    return reply


def test_every_channel_is_answered_by_the_same_process(make):
    process = make()
    assert [ask(process, "answer", number)["pid"] for number in (0, 1)] == [process.pid] * 2


@pytest.mark.parametrize(("do", "seconds"), [("die", PATIENT_SECONDS), ("wait", IMPATIENT_SECONDS)])
def test_a_process_that_ends_is_replaced_at_the_next_question(do, seconds, make):
    process = make()
    first = process.pid
    with pytest.raises(RefusedError, match="ended"):
        ask(process, do, seconds=seconds)
    assert process.pid is None
    assert ask(process, "answer")["pid"] == process.pid != first
    assert not process.is_down


@pytest.mark.parametrize("do", [*BABBLE, "too long"])
def test_an_answer_that_makes_no_sense_ends_the_process_and_is_its_questions_fault(do, make):
    process = make()
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(ask, process, "wait", 1)
        assert wait_until(lambda: process._life.waiting)
        with pytest.raises(EndedError, match="ended") as ended:
            ask(process, do)
        assert ended.value.code is ErrorCode.DECODER_CRASHED
        assert type(beside.exception()) is RefusedError
    assert ask(process, "answer")["pid"] == process.pid
    assert not process.is_down


def test_an_answer_that_trickles_in_has_one_deadline(make):
    process = make()
    with pytest.raises(EndedError) as ended:
        ask(process, "trickle", seconds=1.0)
    assert ended.value.code is ErrorCode.DECODER_TIMEOUT


def test_an_answer_that_is_taken_while_a_crash_is_looked_into_is_an_answer(make):
    process = make()
    has_answer, may_take = threading.Event(), threading.Event()

    def take_late(reply: dict) -> dict:
        has_answer.set()
        assert may_take.wait(PATIENT_SECONDS)
        return reply

    class Threads(list):
        """Lets the other channel go on while they are compared."""

        def __getitem__(self, place):
            may_take.set()
            time.sleep(0.3)
            return super().__getitem__(place)

    process._life.threads = Threads(process._life.threads)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(process.ask, 1, {"do": "answer"}, PATIENT_SECONDS, take_late)
        assert has_answer.wait(PATIENT_SECONDS)
        with pytest.raises(EndedError):
            ask(process, "crash")
        assert beside.result()["do"] == "answer"


@pytest.mark.parametrize(
    ("do", "seconds", "code", "blames_the_other"),
    [
        ("wait", IMPATIENT_SECONDS, ErrorCode.DECODER_TIMEOUT, False),
        ("crash", PATIENT_SECONDS, ErrorCode.DECODER_CRASHED, False),
        ("die", PATIENT_SECONDS, ErrorCode.DECODER_CRASHED, True),  # and does not say for whose sake
    ],
)
def test_the_question_that_ends_a_process_is_told_from_one_that_waits_beside_it(
    do, seconds, code, blames_the_other, make
):
    process = make()
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(ask, process, "wait", 1)
        assert wait_until(lambda: process._life.waiting)
        with pytest.raises(EndedError) as ended:
            ask(process, do, seconds=seconds)
        assert ended.value.code is code
        assert isinstance(beside.exception(), EndedError) is blames_the_other
        assert isinstance(beside.exception(), RefusedError)


def test_one_end_refuses_what_the_other_channel_waits_for_and_counts_once(make):
    process = make()
    refused: list[RefusedError] = []

    def wait() -> None:
        try:
            ask(process, "wait", 1)
        except RefusedError as error:
            refused.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)  # until it waits, most likely; where it does not yet, the second end refuses it
    for _ in range(MOST_ENDS - 1):
        with pytest.raises(RefusedError):
            ask(process, "die")
    thread.join()
    assert len(refused) == 1
    assert not process.is_down


def test_a_process_that_keeps_ending_stays_down(make):
    process = make()
    for _ in range(MOST_ENDS):
        with pytest.raises(RefusedError):
            ask(process, "die")
    assert process.is_down
    with pytest.raises(RefusedError, match=f"ended {MOST_ENDS} times"):
        ask(process, "answer")


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("politely", "no decoders here"),
        ("at once", "the stand-in fails"),
        ("without threads", "does not name its threads"),
    ],
)
def test_a_process_that_does_not_start_says_why(fails, reason, make):
    with pytest.raises(NvdecUnavailableError, match=reason):
        make(fails)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_the_decoders_process_says_which_library_is_missing():
    settings = {"limits": LimitsConfig().model_dump(mode="json")}
    with pytest.raises(NvdecUnavailableError, match=r"libnvcuvid\.so\.1"):
        WorkerProcess("pipeline.device.nvdec.worker", ["0"], settings, num_channels=1)


def test_the_decoders_process_does_without_torch():
    code = "import sys, pipeline.device.nvdec.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
