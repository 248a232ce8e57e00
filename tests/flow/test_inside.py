"""Runs over media inside shards and tables: the vectors of the files, and one error row for what is broken."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import Config, RunSummary, embed
from pipeline.flow.inspect import inspect_media
from pipeline.flow.run import retry
from pipeline.media.inside import inside_of
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.containers import make_shard, make_table
from tests.flow.tables import embeddings_of, errors_of, fragments_of


def run(source: Path, out: Path, runner: str = "local", **sections: object) -> RunSummary:
    return embed(source, out, config=Config.from_values({"model": "random:tiny", **sections}), runner=runner)


def media_of(corpus: Path) -> dict[str, bytes]:
    return {str(path.relative_to(corpus)): path.read_bytes() for path in sorted(corpus.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def inside(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in two shards, with what WebDataset lays beside its media, and in two tables."""
    folder = tmp_path_factory.mktemp("inside")
    members = list(media_of(corpus).items())
    beside = [("0.json", b"{}"), ("0.cls", b"3"), ("0.txt", b"a caption")]
    make_shard(folder / "0.tar", [*beside, *members[:5]])
    make_shard(folder / "1.tar", members[5:])
    make_table(folder / "2.parquet", [content for _, content in members[:5]])
    make_table(folder / "3.arrow", [content for _, content in members[5:]], column="image")
    return folder


@pytest.fixture(scope="module")
def done(inside: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "OUT"
    run(inside, out)
    return out


def test_media_inside_files_have_the_vectors_that_they_have_as_files(
    corpus: Path, inside: Path, done: Path, tmp_path: Path
) -> None:
    run(corpus, tmp_path / "OUT")
    expected = {row["source_id"]: row for row in embeddings_of(tmp_path / "OUT").to_pylist()}
    found = embeddings_of(done).to_pylist()
    assert len(found) == 2 * embeddings_of(tmp_path / "OUT").num_rows
    for row in found:
        same = expected[row["source_id"]]
        assert np.abs(np.subtract(row["embedding"], same["embedding"])).max() < 1e-6
        for name in ("frame_timestamps_seconds", "grid_thw", "decoder", "width", "height", "end_seconds"):
            assert row[name] == same[name]
    names = {inside_of(row["source_uri"]).name for row in found if row["source_uri"].startswith("tar://")}
    assert names == {
        str(Path(row["source_uri"]).relative_to(corpus)).replace(" ", "%20") for row in expected.values()
    } | {
        "a.mp4",
        "deep/copy%20of%20a.mp4",
    }
    assert verify_output(OutputFolder(str(done))).ok


def test_what_is_broken_inside_is_one_error_row_each(done: Path) -> None:
    errors = errors_of(done).to_pylist()
    assert sorted(error["code"] for error in errors) == ["corrupt_media"] * 2 + ["unsupported_media"] * 2
    assert all(inside_of(error["source_uri"]) is not None for error in errors)


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_ray_and_the_serial_runner_give_the_same_rows_to_the_bit(inside: Path, done: Path, tmp_path: Path) -> None:
    run(inside, tmp_path / "OUT", runner="ray")
    assert embeddings_of(tmp_path / "OUT").equals(embeddings_of(done))
    assert errors_of(tmp_path / "OUT").equals(errors_of(done))


def test_a_second_run_does_nothing_and_a_retry_tries_only_what_failed(inside: Path, done: Path) -> None:
    before = fragments_of(done)
    assert run(inside, done).num_requests == 0
    assert fragments_of(done) == before
    tried = retry(done, runner="local")
    assert (tried.num_requests, tried.num_errors) == (0, 4)
    assert verify_output(OutputFolder(str(done))).ok


def test_lost_fragments_are_made_again_from_the_places_in_the_plan(inside: Path, done: Path) -> None:
    contents = {fragment: fragment.read_bytes() for fragment in (done / "embeddings").glob("*.parquet")}
    for fragment in contents:
        fragment.unlink()
    assert run(inside, done).num_requests == len(contents)
    assert {fragment: fragment.read_bytes() for fragment in contents} == contents


def test_a_shard_that_was_written_anew_keeps_the_rows_of_unchanged_members(corpus: Path, tmp_path: Path) -> None:
    media = media_of(corpus)
    shard = make_shard(tmp_path / "s.tar", {"0.png": media["0.png"], "b.mp4": media["b.mp4"]})
    run(shard, tmp_path / "OUT")
    make_shard(shard, {"1.png": media["1.png"], "b.mp4": media["b.mp4"], "0.png": media["2.png"]})
    again = run(shard, tmp_path / "OUT")
    assert again.num_requests == 1
    rows = embeddings_of(tmp_path / "OUT").to_pylist()
    names = [inside_of(row["source_uri"]).name for row in rows]
    assert sorted(names) == ["0.png", "0.png", "1.png", "b.mp4"]
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_container_that_changed_after_planning_never_gives_another_mediums_vector(
    corpus: Path, tmp_path: Path, kind: str
) -> None:
    media = media_of(corpus)
    path = tmp_path / f"s.{kind}"

    def make(*names: str) -> None:
        make_shard(path, {name: media[name] for name in names}) if kind == "tar" else make_table(
            path, [media[name] for name in names]
        )

    make("0.png", "1.png")
    run(path, tmp_path / "OUT")
    before = embeddings_of(tmp_path / "OUT").to_pylist()
    for fragment in (tmp_path / "OUT" / "embeddings").glob("*.parquet"):
        fragment.unlink()
    make("1.png", "2.png")
    run(path, tmp_path / "OUT")
    vectors = {row["source_id"]: row["embedding"] for row in before}
    for row in embeddings_of(tmp_path / "OUT").to_pylist():
        assert vectors.get(row["source_id"], row["embedding"]) == row["embedding"]


def test_limits_hold_for_each_member_and_not_for_its_shard(corpus: Path, tmp_path: Path) -> None:
    media = media_of(corpus)
    largest = max(len(media["0.png"]), len(media["1.png"]))
    shard = make_shard(tmp_path / "s.tar", {name: media[name] for name in ("0.png", "1.png", "a.mp4")})
    table = make_table(tmp_path / "t.parquet", [media["a.mp4"]])
    assert len(media["a.mp4"]) > largest
    summary = embed(
        [shard, table],
        tmp_path / "OUT",
        config=Config.from_values({"model": "random:tiny", "limits": {"max_file_bytes": largest}}),
        runner="local",
    )
    assert (summary.num_new_rows, summary.num_errors) == (2, 2)
    assert set(errors_of(tmp_path / "OUT")["code"].to_pylist()) == {"limit_exceeded"}


def test_a_member_is_inspected_by_its_own_name(corpus: Path, inside: Path) -> None:
    config = Config(model="random:tiny")
    [member] = inspect_media(f"tar://b.mp4::{inside}/0.tar", config)
    [file] = inspect_media(str(corpus / "b.mp4"), config)
    assert np.array_equal(member.patch_rows, file.patch_rows)


def test_decord_refuses_what_is_not_a_file_of_its_own(corpus: Path, tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "s.tar", {"b.mp4": media_of(corpus)["b.mp4"]})
    run(shard, tmp_path / "OUT", decode={"video": "decord"})
    assert errors_of(tmp_path / "OUT")["code"].to_pylist() == ["unsupported_media"]
