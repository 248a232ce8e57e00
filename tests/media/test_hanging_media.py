"""Media that hang or crash the decoder that is given them, in a whole run: one error row each, and no innocent clip.

The template is a real one in which opening a file of a telling name does what a bug in a decoder would do.
"""

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import Config, RunSummary, embed
from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.flow.run import retry
from pipeline.media.attempts import MAX_DEATHS, Attempts
from pipeline.media.sandbox import Sandbox
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.faults.processes import wait_until
from tests.flow.tables import embeddings_of, errors_of
from tests.media.helpers import make_job, probe, rows_of
from tests.media_factory import make_video

pytestmark = pytest.mark.own_templates

VALUES = {
    "model": "random:tiny",
    "request": {"max_patches": 1},
    "encode": {"threads": 1},
    "decode": {"timeout_seconds": 2.0},
}
CODES = {
    "holds_the_lock": ErrorCode.DECODER_TIMEOUT,
    "in_native_code": ErrorCode.DECODER_TIMEOUT,
    "spins": ErrorCode.DECODER_TIMEOUT,
    "aborts": ErrorCode.DECODER_CRASHED,
    "segfaults": ErrorCode.DECODER_CRASHED,
}
BAD_TEMPLATE = """
import ctypes, os
from pipeline.media import template, worker

def spin():
    while True:
        pass

what = {
    "holds_the_lock": lambda: ctypes.PyDLL(None).sleep(1000),  # Python's own lock is kept meanwhile
    "in_native_code": lambda: ctypes.CDLL(None).sleep(1000),
    "spins": spin,
    "aborts": os.abort,
    "segfaults": lambda: ctypes.string_at(0),
}
open_frames = worker.open_frames

def open_or_else(job, *others):
    what.get(job.uri.rpartition("/")[2].removesuffix(".mp4"), lambda: None)()
    return open_frames(job, *others)

worker.open_frames = open_or_else
template.main()
"""


@pytest.fixture
def bad_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda line, **named: start([line[0], "-P", "-c", BAD_TEMPLATE, *line[4:]], **named)
    )


@pytest.fixture(scope="module")
def innocent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("innocent")
    for number in range(3):
        make_video(folder / f"{number}.mp4", num_frames=10 + number)
    return folder


@pytest.fixture(scope="module")
def undisturbed(innocent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "OUT"
    assert run(innocent, out).num_errors == 0
    return out


def run(media: Path, out: Path) -> RunSummary:
    return embed(media, out, config=Config.from_values(VALUES), runner="local")


def num_deaths(out: Path) -> int:
    return len(list((out / "attempts").glob("*.json")))


@pytest.mark.usefixtures("bad_decoders")
@pytest.mark.parametrize("num_early", [1, 4])
def test_workers_at_one_hanging_file_lose_the_decoders_that_were_at_it_and_one_more(
    innocent: Path, tmp_path: Path, num_early: int
) -> None:
    num_workers, clips_each = 4, 3
    hanging, good = make_video(tmp_path / "holds_the_lock.mp4"), innocent / "0.mp4"
    at_once = threading.Barrier(num_workers)

    def work(number: int) -> list[str]:
        attempts = Attempts(str(tmp_path / "attempts"))
        decode = DecodeConfig(timeout_seconds=2)
        with Sandbox(decode, ImagesConfig(), LimitsConfig(), attempts) as box:
            rows_of(box, make_job(good, probe(good), [0, 9]))
            at_once.wait()
            assert number < num_early or wait_until(lambda: num_deaths(tmp_path))
            messages = []
            for start in range(clips_each):
                with pytest.raises(MediaError) as caught:
                    rows_of(box, make_job(hanging, probe(hanging), [start, start + 1]))
                messages.append(caught.value.message)
            rows_of(box, make_job(good, probe(good), [0, 9]))
        return messages

    with ThreadPoolExecutor(num_workers) as pool:
        messages = [message for found in pool.map(work, range(num_workers)) for message in found]
    num_lost = num_deaths(tmp_path)
    assert MAX_DEATHS <= num_lost <= num_early + 1
    assert sum("not tried again" in message for message in messages) == num_workers * clips_each - num_lost


@pytest.mark.usefixtures("bad_decoders")
def test_media_that_end_their_decoder_cost_a_row_each_and_are_never_tried_a_third_time(
    innocent: Path, undisturbed: Path, tmp_path: Path
) -> None:
    media, out = tmp_path / "media", tmp_path / "OUT"
    shutil.copytree(innocent, media)
    for number, name in enumerate(CODES):
        make_video(media / f"{name}.mp4", num_frames=20 + number)
    summary = run(media, out)
    assert (summary.num_clips, summary.num_errors) == (3 + len(CODES), len(CODES))
    for _ in range(2):
        assert codes_by_name(out) == CODES
        retry(out, runner="local")
    assert num_deaths(out) == MAX_DEATHS * len(CODES)
    assert codes_by_name(out) == CODES
    assert vectors_by_name(out) == vectors_by_name(undisturbed)
    assert verify_output(OutputFolder(str(out))).ok


def codes_by_name(out: Path) -> dict[str, str]:
    return {Path(row["source_uri"]).stem: row["code"] for row in errors_of(out).to_pylist()}


def vectors_by_name(out: Path) -> dict[str, list[float]]:
    return {Path(row["source_uri"]).name: row["embedding"] for row in embeddings_of(out).to_pylist()}
