"""A plan in shards: every promise of a run holds across them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import Config, embed
from pipeline.flow.plan_store import assign, plan_stems
from pipeline.flow.progress import QuietDisplay
from pipeline.flow.run import RunSummary, retry
from pipeline.plan.shards import ShardLimits
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output
from pipeline.sources.listing import Listing, SourceFailure, SourceItem
from tests.flow.tables import embeddings_of, errors_of, fragments_of
from tests.media_factory import make_image

STEMS = ("plan", "plan-00001", "plan-00002")


def make_media(folder: Path) -> Path:
    """Six pictures and one file that is none, in three shards of three; the last picture is the first one's copy."""
    folder.mkdir()
    for seed in range(5):
        make_image(folder / f"{seed}.png", seed=seed, width=80 + 8 * seed)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return make_media(tmp_path / "media")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("untouched") / "media")


@pytest.fixture(scope="module")
def done(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "OUT"
    summary = run(untouched, out)
    assert (summary.num_sources, summary.num_clips, summary.num_errors) == (7, 6, 1)
    return out


def run(media: Path, out: Path, display: QuietDisplay | None = None, shard_sources: int = 3) -> RunSummary:
    values = {"model": "random:tiny", "sources": {"shard_sources": shard_sources}}
    return embed(media, out, config=Config.from_values(values), runner="local", display=display)


def stems_of(out: Path) -> tuple[str, ...]:
    return plan_stems(OutputFolder(str(out)))


def by_clip(out: Path) -> pa.Table:
    return embeddings_of(out).sort_by("clip_id")


def is_whole(out: Path) -> bool:
    return verify_output(OutputFolder(str(out))).ok


class Stop(QuietDisplay):
    """Ends a run when a shard has been planned and before any of it is embedded."""

    def __init__(self, shard: int) -> None:
        self._left = shard

    def note(self, text: str) -> None:
        self._left -= text.startswith("plan: ")
        if self._left == 0:
            raise KeyboardInterrupt


def test_a_run_in_shards_gives_the_rows_of_a_run_in_one(untouched: Path, done: Path, tmp_path: Path) -> None:
    whole = run(untouched, tmp_path / "OUT", shard_sources=100)
    assert (whole.num_sources, whole.num_clips, whole.num_errors) == (7, 6, 1)
    assert (stems_of(done), stems_of(tmp_path / "OUT")) == (STEMS, STEMS[:1])
    left, right = by_clip(done), by_clip(tmp_path / "OUT")
    assert left.drop(["embedding", "request_id"]).equals(right.drop(["embedding", "request_id"]))
    vectors = [np.stack(table["embedding"].to_numpy()) for table in (left, right)]
    np.testing.assert_allclose(*vectors, atol=1e-6)
    assert is_whole(done)


def test_equal_files_share_a_vector_across_a_listing_that_is_cut(done: Path) -> None:
    rows = {Path(row["source_uri"]).name: row for row in embeddings_of(done).to_pylist()}
    assert rows["0.png"]["request_id"] == rows["copy.png"]["request_id"]
    assert rows["0.png"]["embedding"] == rows["copy.png"]["embedding"]


def test_a_second_run_over_shards_does_nothing_new(untouched: Path, done: Path) -> None:
    before = fragments_of(done)
    summary = run(untouched, done)
    assert (summary.num_requests, summary.num_clips, summary.num_clips_done_before) == (0, 6, 6)
    assert fragments_of(done) == before


@pytest.mark.parametrize("shard", [1, 3])
def test_a_run_that_was_stopped_between_shards_ends_with_the_same_plan_and_requests(
    untouched: Path, done: Path, tmp_path: Path, shard: int
) -> None:
    out = tmp_path / "OUT"
    with pytest.raises(KeyboardInterrupt):
        run(untouched, out, Stop(shard))
    assert stems_of(out) == STEMS[:shard]
    # What was planned before the last shard has its vectors already.
    assert len(list((out / "embeddings").iterdir())) >= shard - 1
    run(untouched, out)
    assert fragments_of(out).keys() == fragments_of(done).keys()
    assert by_clip(out).equals(by_clip(done))
    assert is_whole(out)


def test_what_a_killed_run_left_of_a_shard_is_not_taken_for_a_plan(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    run(media, out)
    for folder, kept in (("plan", True), ("errors", True), ("sources", False)):
        shard = out / folder / "plan-00002.parquet"
        shard.rename(out / folder / "plan-00003.parquet") if kept else shard.unlink()
    assert stems_of(out) == STEMS[:2]
    run(media, out)
    assert stems_of(out) == STEMS
    assert not list(out.rglob("plan-00003*"))
    assert is_whole(out)


def test_new_files_fill_the_last_shard_and_open_another_where_they_do_not_fit(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    for name in ("3.png", "4.png", "text.png"):
        (media / name).rename(tmp_path / name)
    run(media, out)
    assert len(stems_of(out)) == 2
    before = fragments_of(out)
    (tmp_path / "3.png").rename(media / "3.png")
    assert run(media, out).num_new_rows == 1
    assert len(stems_of(out)) == 2
    for name in ("4.png", "text.png"):
        (tmp_path / name).rename(media / name)
    assert (run(media, out).num_new_rows, len(stems_of(out))) == (1, 3)
    kept = {name: written for name, written in before.items() if name.startswith("embeddings")}
    assert kept.items() <= fragments_of(out).items()
    assert is_whole(out)


def test_a_kill_while_a_shard_is_added_to_plans_nothing_twice(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    for name in ("3.png", "4.png", "text.png"):
        (media / name).rename(tmp_path / name)
    run(media, out)
    sources = out / "sources" / "plan-00001.parquet"
    before = sources.read_bytes()
    (tmp_path / "3.png").rename(media / "3.png")
    run(media, out)
    sources.write_bytes(before)  # as if the list of sources had not been written any more
    for seed in range(3):
        make_image(media / f"new-{seed}.png", seed=20 + seed, width=150 + 8 * seed)
    assert run(media, out).num_new_rows == 3
    assert is_whole(out)


def test_a_touched_file_stays_with_its_shard_and_a_failed_one_is_retried_in_its_own(
    media: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    run(media, out)
    (media / "0.png").touch()
    make_image(media / "text.png", seed=9)
    assert retry(out, runner="local").num_new_rows == 1
    assert run(media, out).num_requests == 0
    assert stems_of(out) == STEMS
    assert errors_of(out).num_rows == 0
    assert is_whole(out)


def test_what_cannot_be_listed_is_one_failed_source_however_often_it_is_planned(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    (media / "dangling.png").symlink_to(tmp_path / "nothing")
    assert [run(media, out).num_errors for _ in range(2)] == [2, 2]
    assert stems_of(out) == STEMS
    assert is_whole(out)


def test_all_spans_of_a_path_are_planned_in_one_shard(tmp_path: Path) -> None:
    folder = OutputFolder(str(tmp_path))
    folder.create()
    spans = [SourceItem(uri="/a", start_seconds=float(n), num_bytes=1, modified_ns=1) for n in range(5)]
    failure = SourceFailure(uri="/gone", code="unreadable", message="/gone: gone")  # type: ignore[arg-type]
    listing = Listing(items=tuple(spans), failures=(failure,))
    ((stem, part),) = assign(folder, listing, ShardLimits(max_sources=2, max_bytes=100))
    assert part == listing
    assert stem not in folder.fragments(Kind.PLAN)
