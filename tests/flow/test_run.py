import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import Config, embed, prepare
from pipeline.config import SourcesConfig
from pipeline.errors import ModelError, OutputError, OutputMismatchError, UsageError
from pipeline.flow.outside import outside
from pipeline.flow.run import RunSummary, retry
from pipeline.media.content import WHOLE_LIMIT_BYTES
from pipeline.sink.compact import read_manifest
from pipeline.sink.lance_table import open_dataset
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output
from pipeline.sources.listing import list_sources
from tests.flow.tables import embeddings_of, errors_of, fragments_of
from tests.media_factory import make_image, make_video
from tests.sink.readers import fragments_table, lance_table
from tests.test_checkpoint import write_checkpoint


def run(corpus: Path, out: Path, **sections: object) -> RunSummary:
    config = Config.from_values({"model": "random:tiny", **sections})
    return embed(corpus, out, config=config, runner="local")


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "OUT"
    run(corpus, out)
    return out


def test_every_file_ends_as_rows_or_as_one_error(corpus: Path, done: Path) -> None:
    embedded = embeddings_of(done)["source_uri"].to_pylist()
    failed = errors_of(done)["source_uri"].to_pylist()
    assert sorted(embedded + failed) == sorted(str(path) for path in corpus.rglob("*") if path.is_file())
    assert [Path(uri).name for uri in failed] == ["cut.mp4", "text.mp4"]
    assert verify_output(OutputFolder(str(done))).ok


def test_the_record_says_how_requests_reached_the_encoder_and_when_it_was_ready(done: Path) -> None:
    record = json.loads((done / "run.json").read_text())
    assert record["counts"]["transfers_view"] == record["counts"]["requests"] > 0
    assert 0 < record["timings_seconds"]["encoder_start"] < record["timings_seconds"]["elapsed"]


def test_rows_say_what_was_embedded_by_what(done: Path) -> None:
    rows = {Path(row["source_uri"]).name: row for row in embeddings_of(done).to_pylist()}
    video, image = rows["b.mp4"], rows["wide.jpg"]
    assert (video["media_type"], video["width"], video["height"]) == ("video", 64, 96)
    assert (video["start_seconds"], video["end_seconds"]) == (0.0, 33 / 25)
    assert len(video["frame_timestamps_seconds"]) == video["grid_thw"][0] == 2
    assert (video["level"], video["position"], video["decoder"]) == ("clip", 0, "pyav")
    assert (image["media_type"], image["start_seconds"], image["grid_thw"][0]) == ("image", None, 1)
    assert image["decoder"] == "pillow"
    assert {row["model_id"] for row in rows.values()} == {"random:tiny"}
    assert all(np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-5) for row in rows.values())


def test_equal_files_share_a_vector_and_have_a_row_under_each_path(done: Path) -> None:
    rows = [row for row in embeddings_of(done).to_pylist() if row["source_uri"].endswith("a.mp4")]
    assert len({row["clip_id"] for row in rows}) == len(rows) == 2
    assert rows[0]["source_id"] == rows[1]["source_id"]
    assert rows[0]["embedding"] == rows[1]["embedding"]


def test_a_second_run_does_nothing_new(corpus: Path, done: Path) -> None:
    before = fragments_of(done)
    summary = run(corpus, done)
    assert fragments_of(done) == before
    assert (summary.num_new_rows, summary.num_requests, summary.num_errors, summary.exit_code) == (0, 0, 2, 3)


def test_a_lost_fragment_is_made_again_with_the_same_bytes(corpus: Path, done: Path) -> None:
    fragment = next((done / "embeddings").glob("*.parquet"))
    content = fragment.read_bytes()
    fragment.unlink()
    assert run(corpus, done).num_requests == 1
    assert fragment.read_bytes() == content


@pytest.mark.parametrize("kind", [Kind.PLAN, Kind.SOURCES, Kind.ERRORS])
def test_a_table_of_the_plan_that_is_cut_off_is_named_with_what_to_do(tmp_path: Path, kind: Kind) -> None:
    image, out = make_image(tmp_path / "a.png"), tmp_path / "OUT"
    run(image, out)
    os.truncate(out / kind / "plan.parquet", 300)
    said = rf"{kind}/plan.parquet: cannot be read: .*restore it from a copy, or name another --out"
    for again in (run, lambda _, out: retry(out, runner="local")):
        with pytest.raises(OutputError, match=said):
            again(image, out)


def test_a_requests_errors_that_are_cut_off_are_named_and_made_again_as_said(tmp_path: Path) -> None:
    video, out = make_video(tmp_path / "a.mp4", num_frames=10), tmp_path / "OUT"
    run(video, out)
    next((out / "embeddings").glob("*.parquet")).unlink()
    make_image(tmp_path / "other.png").replace(video)
    assert run(video, out).exit_code == 3
    [errors] = [path for path in (out / "errors").iterdir() if path.stem != "plan"]
    content = errors.read_bytes()
    os.truncate(errors, 100)
    name = errors.name
    with pytest.raises(OutputError, match=rf"remove embeddings/{name} and errors/{name} and run the same"):
        run(video, out)
    (out / "embeddings" / name).unlink()
    errors.unlink()
    assert run(video, out).exit_code == 3
    assert errors.read_bytes() == content
    assert verify_output(OutputFolder(str(out))).ok


def test_an_added_file_is_the_only_work_of_the_next_run(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "media").symlink_to(corpus)
    first = run(corpus / "a.mp4", tmp_path / "OUT")
    before = fragments_of(tmp_path / "OUT")
    config = Config(model="random:tiny")
    second = embed([corpus / "a.mp4", corpus / "b.mp4"], tmp_path / "OUT", config=config, runner="local")
    after = fragments_of(tmp_path / "OUT")
    assert (first.num_clips, second.num_clips, second.num_requests) == (1, 2, 1)
    assert all(after[name] == written for name, written in before.items() if name.startswith("embeddings"))


def test_changed_bytes_under_a_path_get_their_own_row(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", num_frames=10)
    run(video, tmp_path / "OUT")
    make_video(video, num_frames=12)
    run(video, tmp_path / "OUT")
    rows = embeddings_of(tmp_path / "OUT").to_pylist()
    assert len({row["source_id"] for row in rows}) == len(rows) == 2
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


def test_another_config_refuses_to_mix_and_names_the_key(corpus: Path, done: Path) -> None:
    with pytest.raises(OutputMismatchError, match=r"frames.fps: null there, 1.0 now"):
        run(corpus, done, frames={"fps": 1.0})


def edit_record(out: Path, **changes: object) -> None:
    record = json.loads((out / "run.json").read_text()) | changes
    (out / "run.json").write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))


def arithmetic_of(out: Path) -> str | None:
    return json.loads((out / "run.json").read_text())["arithmetic"]


def test_an_output_in_another_machines_arithmetic_is_refused_and_goes_on_where_that_is_asked(tmp_path: Path) -> None:
    media, out = tmp_path / "media", tmp_path / "OUT"
    media.mkdir()
    make_image(media / "a.png")
    run(media, out, encode={"device": "cpu"})
    assert arithmetic_of(out) == "float32"
    edit_record(out, arithmetic="bfloat16")  # as a GPU would have made it
    make_image(media / "b.png", seed=1)
    before = fragments_of(out)
    with pytest.raises(OutputMismatchError, match=r'"bfloat16" there, is "float32" now(.|\n)*encode.dtype=bfloat16'):
        run(media, out, encode={"device": "cpu"})
    assert fragments_of(out) == before
    assert run(media, out, encode={"device": "cpu", "dtype": "bfloat16"}).num_new_rows == 1
    assert arithmetic_of(out) == "bfloat16"
    rows = embeddings_of(out).to_pylist()
    assert len({row["config_hash"] for row in rows}) == 1
    in_float32 = embeddings_of_run(media, tmp_path / "F", encode={"device": "cpu", "dtype": "float32"})
    difference = np.abs(np.array(rows[1]["embedding"]) - np.array(in_float32[1]["embedding"])).max()
    assert 1e-5 < difference < 1e-1
    assert verify_output(OutputFolder(str(out))).ok
    with pytest.raises(OutputMismatchError, match=r'encode.dtype: "auto" there, "float32" now'):
        run(media, out, encode={"dtype": "float32"})


def embeddings_of_run(media: Path, out: Path, **sections: object) -> list[dict[str, object]]:
    run(media, out, **sections)
    return embeddings_of(out).to_pylist()


def test_an_output_that_does_not_say_its_arithmetic_goes_on_and_says_it_once_something_was_encoded(
    tmp_path: Path,
) -> None:
    media, out = tmp_path / "media", tmp_path / "OUT"
    media.mkdir()
    make_image(media / "a.png")
    run(media, out, encode={"device": "cpu"})
    edit_record(out, arithmetic=...)
    run(media, out, encode={"device": "cpu"})
    assert arithmetic_of(out) is None
    make_image(media / "b.png", seed=1)
    run(media, out, encode={"device": "cpu"})
    assert arithmetic_of(out) == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    image, out = make_image(tmp_path / "a.png"), tmp_path / "OUT"
    with pytest.raises(UsageError, match=r"encode.device=cuda: expected a GPU"):
        run(image, out, encode={"device": "cuda"})
    assert not out.exists()
    config = Config.from_values({"model": "random:tiny", "encode": {"device": "cuda"}})
    assert prepare(image, tmp_path / "P", config=config, runner="local").num_requests == 1


def test_a_clip_does_not_depend_on_what_it_was_packed_with(corpus: Path, done: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "OUT", request={"max_patches": 1})
    packed, alone = embeddings_of(done), embeddings_of(tmp_path / "OUT")
    assert packed["clip_id"].equals(alone["clip_id"])
    difference = np.stack(packed["embedding"].to_numpy()) - np.stack(alone["embedding"].to_numpy())
    assert np.abs(difference).max() < 1e-6


def test_a_request_over_the_encoders_budget_gives_the_same_rows(corpus: Path, done: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "OUT", encode={"max_patches": 50})
    whole, chunked = embeddings_of(done), embeddings_of(tmp_path / "OUT")
    difference = np.stack(whole["embedding"].to_numpy()) - np.stack(chunked["embedding"].to_numpy())
    assert np.abs(difference).max() < 1e-6


def test_the_order_of_the_sources_does_not_matter(corpus: Path, done: Path, tmp_path: Path) -> None:
    files = sorted((path for path in corpus.rglob("*") if path.is_file()), reverse=True)
    embed(files, tmp_path / "OUT", config=Config(model="random:tiny"), runner="local")
    assert embeddings_of(done).equals(embeddings_of(tmp_path / "OUT"))


@pytest.mark.parametrize(("level", "rows"), [("frame", 2), ("token", 2 * 4 * 6 // 4)])
def test_levels_give_a_row_a_vector_with_its_position(corpus: Path, tmp_path: Path, level: str, rows: int) -> None:
    output = {"level": level, "dtype": "float16", "deepstack": True, "normalize": False}
    run(corpus / "b.mp4", tmp_path / "OUT", output=output)
    table = embeddings_of(tmp_path / "OUT")
    grid = table["grid_thw"][0].as_py()
    assert table["position"].to_pylist() == list(range(rows if level == "frame" else np.prod(grid) // 4))
    assert table.schema.field("embedding").type.value_type == "halffloat"
    assert ("deepstack_0" in table.column_names) == (level == "token")
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_both_video_backends_give_the_same_vectors_and_say_who_served(
    corpus: Path, done: Path, tmp_path: Path, backend: str
) -> None:
    run(corpus, tmp_path / "OUT", decode={"video": backend})
    expected, found = embeddings_of(done), embeddings_of(tmp_path / "OUT")
    assert expected["embedding"].equals(found["embedding"])
    videos = {row["decoder"] for row in found.to_pylist() if row["media_type"] == "video"}
    assert videos == {backend}


def test_a_file_that_changed_after_planning_is_an_error_row_and_new_content_next_time(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", num_frames=10)
    run(video, tmp_path / "OUT")
    next((tmp_path / "OUT" / "embeddings").glob("*.parquet")).unlink()
    make_image(tmp_path / "other.png").replace(video)
    run(video, tmp_path / "OUT")
    codes = errors_of(tmp_path / "OUT")["code"].to_pylist()
    assert codes == ["changed_media"]
    assert [row["media_type"] for row in embeddings_of(tmp_path / "OUT").to_pylist()] == ["image"]


def test_a_touched_file_is_still_the_one_that_was_planned(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", num_frames=10)
    run(video, tmp_path / "OUT")
    fragment = next((tmp_path / "OUT" / "embeddings").glob("*.parquet"))
    content = fragment.read_bytes()
    fragment.unlink()
    os.utime(video, ns=(0, 12345))
    assert run(video, tmp_path / "OUT").exit_code == 0
    assert fragment.read_bytes() == content


def test_a_large_picture_that_was_touched_and_copied_keeps_its_one_vector(tmp_path: Path) -> None:
    large = tmp_path / "media" / "a.bmp"
    large.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (1, 8, 3), dtype=np.uint8)
    Image.fromarray(np.tile(pixels, (4800, 600, 1))).save(large)
    assert large.stat().st_size > WHOLE_LIMIT_BYTES
    shutil.copy(large, large.with_name("b.bmp"))
    small = {"sizes": {"max_tokens_per_frame": 16}}
    assert run(large.parent, tmp_path / "OUT", **small).num_requests == 1
    for path in large.parent.iterdir():
        os.utime(path, ns=(1, 1))
    assert run(large.parent, tmp_path / "OUT", **small).num_requests == 0
    rows = embeddings_of(tmp_path / "OUT").to_pylist()
    assert [Path(row["source_uri"]).name for row in rows] == ["a.bmp", "b.bmp"]
    assert len({row["source_id"] for row in rows}) == 1
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


def test_an_output_with_ids_of_large_files_of_an_earlier_version_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows stay; a file that was touched since is new content, as it was then."""
    video = make_video(tmp_path / "v.mp4", num_frames=10)
    monkeypatch.setattr("pipeline.plan.probe.content_id", lambda item, _: f"sampled-{item.modified_ns:032x}")
    run(video, tmp_path / "OUT")
    monkeypatch.undo()
    next((tmp_path / "OUT" / "embeddings").glob("*.parquet")).unlink()
    assert run(video, tmp_path / "OUT").num_requests == 1
    os.utime(video, ns=(1, 1))
    assert run(video, tmp_path / "OUT").num_requests == 1
    ids = embeddings_of(tmp_path / "OUT")["source_id"].to_pylist()
    assert sorted(source_id.partition("-")[0] for source_id in ids) == ["b2", "sampled"]
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


def test_a_clip_is_read_from_another_of_its_paths_where_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    shutil.copy(make_video(folder / "a.mp4", num_frames=10), folder / "b.mp4")
    run(folder, tmp_path / "OUT")
    next((tmp_path / "OUT" / "embeddings").glob("*.parquet")).unlink()
    (folder / "a.mp4").unlink()
    run(folder, tmp_path / "OUT")
    assert embeddings_of(tmp_path / "OUT").num_rows == 2
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


def test_sources_that_match_nothing_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        embed(tmp_path / "nothing.mp4", tmp_path / "OUT", model="random:tiny", runner="local")


def test_an_output_inside_its_own_sources_is_not_embedded(tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    for _ in range(2):
        summary = run(tmp_path, tmp_path / "OUT")
        assert (summary.num_sources, summary.exit_code) == (1, 0)


@pytest.mark.parametrize("source", [".", "../src", "../link", "../src/*"])
@pytest.mark.parametrize("out", ["OUT", "../src/OUT", "../link/OUT", "../link/../src/OUT", "../elsewhere"])
def test_an_output_inside_its_sources_is_known_however_either_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str
) -> None:
    """`elsewhere` is a link to OUT, and `src` has a link to one of OUT's files."""
    folder = tmp_path / "src"
    (folder / "OUT").mkdir(parents=True)
    make_image(folder / "a.png")
    (folder / "table.parquet").symlink_to("OUT/plan/plan.parquet")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "elsewhere").symlink_to(folder / "OUT")
    (folder / "OUT" / "plan").mkdir()
    (folder / "OUT" / "plan" / "plan.parquet").write_bytes(b"")
    (folder / "OUTER").mkdir()
    make_image(folder / "OUTER" / "b.png", seed=1)
    monkeypatch.chdir(folder)
    listing = outside(list_sources([source], SourcesConfig()), OutputFolder(out))
    assert {Path(item.uri).name for item in listing.items} == {"a.png", "b.png"}
    assert not listing.failures


def test_an_output_in_a_store_is_known_by_another_spelling_of_its_url(tmp_path: Path) -> None:
    (tmp_path / "OUT").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "OUT" / "b.png"):
        make_image(path)
    for source in (f"local://{tmp_path}", f"file://{tmp_path}", str(tmp_path)):
        for out in (f"local://{tmp_path}/OUT", f"file://{tmp_path}/OUT/", str(tmp_path / "OUT")):
            listing = outside(list_sources([source], SourcesConfig()), OutputFolder(out))
            assert [Path(item.uri).name for item in listing.items] == ["a.png"], (source, out)


def test_a_second_run_into_a_folder_of_the_sources_named_by_its_parent_finds_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    make_image(tmp_path / "src" / "a.png")
    monkeypatch.chdir(tmp_path / "src")
    for _ in range(2):
        summary = run(Path("../src"), Path("../src/OUT"))
        assert (summary.num_sources, summary.exit_code) == (1, 0)


def test_a_mistyped_source_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(tmp_path / "typo", tmp_path / "OUT")
    assert not (tmp_path / "OUT").exists()


def test_a_checkpoint_that_cannot_be_loaded_leaves_no_folder_behind(tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.png")
    model = write_checkpoint(tmp_path / "model")
    for says in ("model.safetensors: not a readable safetensors file", "no safetensors file with vision weights"):
        with pytest.raises(ModelError, match=says):
            embed(image, tmp_path / "OUT", model=str(model), runner="local")
        (model / "model.safetensors").unlink(missing_ok=True)
    assert not (tmp_path / "OUT").exists()
    # Requests are made of the settings alone.
    assert prepare(image, tmp_path / "P", model=str(model), runner="local").num_requests == 1


def test_a_model_that_went_missing_leaves_an_output_as_it_was(tmp_path: Path) -> None:
    image, out = make_image(tmp_path / "a.png"), tmp_path / "OUT"
    run(image, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ModelError, match="no such folder"):
        embed(image, out, model=str(tmp_path / "gone"), runner="local")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_run_ends_with_its_lance_dataset_where_that_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("lance", reason="the development extra brings pylance")
    media, out = tmp_path / "media", tmp_path / "OUT"
    media.mkdir()
    make_image(media / "a.png")
    make_video(media / "v.mp4", num_frames=10)
    run(media, out)
    folder = OutputFolder(str(out))
    assert open_dataset(folder) is None
    first = run(media, out, output={"compact": "lance"})
    assert (first.num_new_rows, first.table) == (0, f"{out}/embeddings.lance")
    make_image(media / "b.png", seed=1)
    assert run(media, out, output={"compact": "lance"}).num_new_rows == 1
    report = verify_output(folder)
    assert (report.ok, report.num_lance_rows, report.num_newer_than_lance) == (True, 3, 0)
    assert lance_table(folder).equals(fragments_table(folder))
    made = open_dataset(folder).version
    run(media, out, output={"compact": "lance"})
    assert open_dataset(folder).version == made


def test_a_lance_dataset_that_cannot_be_had_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    config = Config.from_values({"model": "random:tiny", "output": {"compact": "lance"}})
    with pytest.raises(UsageError, match="a local folder or to s3://"):
        embed(tmp_path / "a.png", "memory://lance/OUT", config=config, runner="local")
    assert not OutputFolder("memory://lance/OUT").fragments(Kind.PLAN)
    # What is prepared is no table yet.
    assert prepare(tmp_path / "a.png", "memory://lance/P", config=config, runner="local").table is None


def test_a_run_ends_with_its_table_where_that_is_asked_for_and_the_same_rows_without(tmp_path: Path) -> None:
    media, out = tmp_path / "media", tmp_path / "OUT"
    media.mkdir()
    make_image(media / "a.png")
    run(media, out)
    folder = OutputFolder(str(out))
    assert read_manifest(folder) is None
    run(media, out, output={"compact": True})
    make_image(media / "b.png", seed=1)
    assert run(media, out, output={"compact": True}).num_new_rows == 1
    report = verify_output(folder)
    assert (report.ok, report.num_table_rows, report.num_newer_requests) == (True, 2, 0)
    made = read_manifest(folder)
    run(media, out, output={"compact": True})
    assert read_manifest(folder) == made
