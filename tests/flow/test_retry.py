import os
import signal
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline import Config, embed
from pipeline.errors import ErrorCode, OutputBusyError, OutputError, OutputMismatchError, RunError
from pipeline.flow.plan_store import PLAN_STEM, RETRY, announce_retry, announced_retry, read_plan
from pipeline.flow.run import RunSummary, make_runner, retry
from pipeline.flow.runner import Runner
from pipeline.media.attempts import Attempts, Death
from pipeline.sink.fragments import write_table
from pipeline.sink.lease import Lease
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output
from tests.flow.tables import embeddings_of, errors_of, fragments_of
from tests.media_factory import make_image, make_video


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for seed in range(3):
        make_image(folder / f"{seed}.png", seed=seed)
    make_video(folder / "v.mp4", num_frames=20)
    return folder


def run(media: Path, out: Path, **sections: object) -> RunSummary:
    config = Config.from_values({"model": "random:tiny", **sections})
    return embed(media, out, config=config, runner="local")


def again(out: Path, *overrides: str, lift_quarantine: bool = False) -> RunSummary:
    return retry(out, overrides=overrides, runner="local", lift_quarantine=lift_quarantine)


def is_whole(out: Path) -> bool:
    return verify_output(OutputFolder(str(out))).ok


def break_after_planning(media: Path, out: Path, name: str) -> Path:
    """Make a file of the plan's own request fail: planned whole, unreadable when it is decoded."""
    file = media / name
    run(media, out)
    for fragment in (out / "embeddings").iterdir():
        fragment.unlink()
    file.rename(file.with_suffix(".away"))
    run_known(out)
    return file


def run_known(out: Path) -> RunSummary:
    """Do what the plan holds and no fragment has, without listing anything again."""
    folder = OutputFolder(str(out))
    announce_retry(folder, [])
    return again(out)


def test_a_failed_clip_of_a_request_is_done_again_and_the_others_are_carried_over(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    whole = tmp_path / "WHOLE"
    run(media, whole)
    file = break_after_planning(media, out, "1.png")
    assert errors_of(out)["code"].to_pylist() == ["unreadable"]
    file.with_suffix(".away").rename(file)
    before = embeddings_of(out)
    (media / "0.png").unlink()  # what is embedded needs its file no more
    summary = again(out)
    assert (summary.num_requests, summary.num_new_rows, summary.num_errors, summary.exit_code) == (1, 1, 0, 0)
    after = embeddings_of(out)
    kept = {row["clip_id"]: row for row in after.to_pylist()}
    assert all(kept[row["clip_id"]] == row for row in before.to_pylist())
    assert after["clip_id"].equals(embeddings_of(whole)["clip_id"])
    assert is_whole(out)


def test_a_clip_that_fails_again_keeps_one_error_row(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    break_after_planning(media, out, "1.png")
    before = embeddings_of(out)
    assert again(out).exit_code == 3
    assert errors_of(out).num_rows == 1
    assert embeddings_of(out).equals(before)
    assert is_whole(out)


def test_a_failed_source_is_embedded_with_a_changed_limit_and_its_error_row_is_gone(
    media: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    make_image(media / "large.png", width=600, height=600)
    assert run(media, out, limits={"max_image_pixels": 100_000}).num_errors == 1
    before = fragments_of(out)
    assert again(out).num_errors == 1
    summary = again(out, "limits.max_image_pixels=1000000")
    assert (summary.num_new_rows, summary.num_errors) == (1, 0)
    assert all(fragments_of(out)[name] == written for name, written in before.items() if name.startswith("embed"))
    assert is_whole(out)


def test_new_files_are_not_picked_up_and_a_lost_source_stays_one_error(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    (media / "text.mp4").write_text("not a video")
    run(media, out)
    make_image(media / "new.png", seed=9)
    (media / "text.mp4").unlink()
    summary = again(out)
    assert (summary.num_new_rows, summary.num_errors) == (0, 1)
    assert errors_of(out)["code"].to_pylist() == ["unreadable"]
    assert is_whole(out)


def test_what_decides_the_rows_cannot_be_changed(media: Path, tmp_path: Path) -> None:
    run(media, tmp_path / "OUT")
    with pytest.raises(OutputMismatchError, match=r"frames\.fps"):
        again(tmp_path / "OUT", "frames.fps=1")


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected an output"):
        again(tmp_path)


def test_a_retry_that_was_killed_between_errors_and_embeddings_is_ended_by_the_next_run(
    media: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    file = break_after_planning(media, out, "1.png")
    file.with_suffix(".away").rename(file)
    folder = OutputFolder(str(out))
    (failed,) = {stem for stem in folder.fragments(Kind.ERRORS) if stem != "plan"}
    announce_retry(folder, [failed])
    folder.remove(folder.name(Kind.ERRORS, failed))  # its error row is gone, its row not there yet
    assert not is_whole(out)
    assert run(media, out).num_new_rows == 1
    assert is_whole(out)
    assert not (out / RETRY).exists()
    assert announced_retry(folder) == frozenset()


def test_a_quarantined_medium_is_tried_again_only_where_that_is_asked_for(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    (out / "attempts").mkdir(parents=True)
    for _ in range(2):
        death = Death(uri=str(media / "v.mp4"), code=ErrorCode.DECODER_CRASHED, message="SIGSEGV")
        Attempts(str(out / "attempts")).record(death)
    assert run(media, out).num_errors == 1
    assert errors_of(out)["code"].to_pylist() == ["decoder_crashed"]
    assert "lift-quarantine" in errors_of(out)["message"][0].as_py()
    assert run(media, out).num_errors == 1
    assert again(out).num_errors == 1
    summary = again(out, lift_quarantine=True)
    assert (summary.num_errors, summary.num_new_rows) == (0, 1)
    assert is_whole(out)


def test_a_retry_that_another_run_is_faster_than_leaves_the_quarantine_as_it_was(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "OUT"
    run(media, out)
    attempts = Attempts(str(out / "attempts"))
    for _ in range(2):
        attempts.record(Death(uri=str(media / "v.mp4"), code=ErrorCode.DECODER_CRASHED, message="SIGSEGV"))
    records = {path: path.read_bytes() for path in (out / "attempts").iterdir()}
    with ExitStack() as other:

        def start_slowly(*args: Any) -> Runner:
            """While the workers start, another run takes the lease."""
            other.enter_context(Lease(OutputFolder(str(out))))
            return make_runner(*args)

        monkeypatch.setattr("pipeline.flow.run.make_runner", start_slowly)
        with pytest.raises(OutputBusyError, match="is held by"):
            again(out, lift_quarantine=True)
    assert {path: path.read_bytes() for path in (out / "attempts").iterdir()} == records
    assert not attempts.allows(str(media / "v.mp4"))


def cut_images(folder: Path, number: int) -> None:
    """Images with a good header that break off: they are planned, and fail when they are decoded."""
    for seed in range(number):
        whole = make_image(folder / f"cut-{seed}.png", seed=100 + seed)
        whole.write_bytes(whole.read_bytes()[:-3000])


def test_a_run_with_too_many_bad_sources_stops_before_the_encoder_and_can_go_on(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    for number in range(8):
        (media / f"{number}.txt").write_text(f"text {number}")
    with pytest.raises(RunError, match=r"8 of 12 sources failed: 66\.7%.*unsupported_media \(8 error rows\)"):
        run(media, out, errors={"max_rate": 0.5, "min_clips": 10})
    assert not list((out / "embeddings").iterdir())
    assert read_plan(OutputFolder(str(out)), PLAN_STEM).failures
    summary = run(media, out)
    assert (summary.num_new_rows, summary.num_errors) == (4, 8)
    assert is_whole(out)


def test_a_run_with_too_many_bad_clips_stops_and_can_go_on(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    cut_images(media, 6)
    sections = {"request": {"max_patches": 1}}
    with pytest.raises(RunError, match=r"clips failed.*truncated_media"):
        run(media, out, **sections, errors={"max_rate": 0.3, "min_clips": 3})
    done = fragments_of(out)
    summary = run(media, out, **sections)
    assert (summary.num_clips, summary.num_errors) == (10, 6)
    assert all(fragments_of(out)[name] == time for name, time in done.items() if name.startswith("embeddings"))
    assert is_whole(out)


def test_a_few_bad_files_do_not_stop_a_run(media: Path, tmp_path: Path) -> None:
    (media / "text.mp4").write_text("not a video")
    assert run(media, tmp_path / "OUT", errors={"max_rate": 0.5, "min_clips": 2}).num_errors == 1


def test_a_run_over_bad_input_alone_ends_with_error_rows_and_never_loads_the_encoder(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the encoder was built for nothing")

    monkeypatch.setattr("pipeline.stages.encode.Encode", refuse)
    for file in media.iterdir():
        file.write_bytes(b"not media")
    summary = run(media, tmp_path / "OUT")
    assert (summary.num_errors, summary.exit_code) == (4, 3)
    assert is_whole(tmp_path / "OUT")


def test_a_run_that_lost_its_lease_stops(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.flow.run.Lease", partial(Lease, period_seconds=0.05))
    out = tmp_path / "OUT"
    over = threading.Event()

    def steal() -> None:
        lease = out / "lease.json"
        while not (out / "run.json").exists():  # written when the lease is held and has been read back
            os.sched_yield()
        text = lease.read_text().replace('"run_id": "', '"run_id": "other')
        while not over.wait(0.01):  # its owner may be about to write it once more
            (out / ".stolen").write_text(text)
            (out / ".stolen").rename(lease)

    thief = threading.Thread(target=steal)
    thief.start()
    with pytest.raises(OutputBusyError, match="taken over"):
        run(media, out)
    over.set()
    thief.join()
    assert (out / "lease.json").exists()


def test_the_decoders_death_during_a_run_costs_no_row(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.is_set() and len(killed) < 2:
            for stat in Path("/proc/self/task").glob("*/children"):
                for child in stat.read_text().split():
                    if child not in map(str, killed) and (out / "plan" / "plan.parquet").exists():
                        killed.append(int(child))
                        os.kill(int(child), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(media, out, request={"max_patches": 1})
    done.set()
    killer.join()
    assert killed
    assert (summary.num_errors, summary.num_new_rows) == (0, 4)
    assert is_whole(out)


def test_rows_that_a_request_never_had_do_not_matter_to_a_carry_over(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    run(media, out)
    folder = OutputFolder(str(out))
    stem = folder.fragments(Kind.EMBEDDINGS)[0]
    table = embeddings_of(out)
    write_table(folder, Kind.EMBEDDINGS, stem, table.slice(0, 0))
    announce_retry(folder, [stem])
    run(media, out)
    assert embeddings_of(out)["clip_id"].equals(table["clip_id"])
    assert is_whole(out)
