import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.sink.fragments import read_table, write_fragment, write_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.run_record import write_run_record
from pipeline.sink.verify import verify_output

from .factories import (
    GRID,
    ROWS,
    Books,
    Row,
    make_clip,
    make_embeddings,
    make_errors,
    make_failure,
    make_folder,
    make_record,
    make_rows,
    make_source,
)


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return make_folder(tmp_path)


def only_discrepancy(folder: OutputFolder) -> str:
    report = verify_output(folder)
    assert not report.ok
    [sentence] = report.discrepancies
    return sentence


@pytest.mark.parametrize("level", ["clip", "frame", "token"])
def test_the_books_of_a_whole_output_close_at_every_level(folder: OutputFolder, level: str) -> None:
    Books(level=level).write(folder)
    report = verify_output(folder)
    assert report.discrepancies == ()
    assert report.ok
    assert (report.num_sources, report.num_failed_sources, report.num_requests) == (5, 1, 2)
    assert (report.num_clips, report.num_embedded_clips, report.num_failed_clips) == (4, 3, 1)
    assert (report.num_rows, report.num_error_rows) == (3 * ROWS[level], 2)


def test_rows_of_several_batches_and_mixed_order_close_too(folder: OutputFolder) -> None:
    books = Books(level="token")
    rows = {name: list(reversed(content)) for name, content in books.rows.items()}
    books.write(folder, rows)
    assert verify_output(folder).ok


def test_an_output_on_an_object_store_is_verified_alike() -> None:
    folder = OutputFolder("memory://verified/out")
    folder.create()
    Books().write(folder)
    assert verify_output(folder).ok


def test_a_missing_fragment_is_one_discrepancy_that_names_it(folder: OutputFolder) -> None:
    Books().write(folder)
    folder.remove("embeddings/r1.parquet")
    assert only_discrepancy(folder) == "embeddings/r1.parquet is missing: 3 clips are not done"


def test_a_torn_fragment_is_a_discrepancy_that_names_it(folder: OutputFolder, tmp_path: Path) -> None:
    Books().write(folder)
    path = tmp_path / "out" / "embeddings" / "r2.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert only_discrepancy(folder).startswith("embeddings/r2.parquet: cannot be read")


def test_a_fragment_that_nobody_planned_is_a_discrepancy(folder: OutputFolder) -> None:
    Books().write(folder)
    write_fragment(folder, "r9", make_embeddings(), make_errors())
    assert only_discrepancy(folder) == "embeddings/r9.parquet: no such request is planned"


Change = Callable[[list[Row]], list[Row]]


def changed(**values: object) -> Change:
    return lambda rows: [{**rows[0], **values}, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: rows[1:], "has 2 of 3 rows and no error row"),
        (lambda rows: [], "has 0 of 3 rows and no error row"),
        (lambda rows: [*rows, rows[0]], "has a position twice"),
        (lambda rows: [*rows, {**rows[0], "position": 3}], "outside 0..2"),
        (lambda rows: [*rows, {**rows[0], "position": -1}], "outside 0..2"),
        (lambda rows: [*rows, {**rows[0], "clip_id": "clip-x"}], "'clip-x' is not planned"),
        (lambda rows: [*rows, {**rows[0], "clip_id": None}], "no clip_id"),
        (changed(source_uri="/other"), "'/other'"),
        (changed(source_id="b2-other"), "b2-other"),
        (changed(model_id="another"), "model_id: expected 'random:tiny', got 'another'"),
        (changed(model_revision=None), "model_revision: expected 'r1', got None"),
        (changed(config_hash="d"), "config_hash"),
        (changed(level="clip"), "level: expected 'frame', got 'clip'"),
        (changed(request_id="r1"), "request_id: expected 'r2', got 'r1'"),
        (changed(embedding=[0.0, float("nan"), 0.0, 0.0]), "not finite"),
        (changed(embedding=[0.0, float("inf"), 0.0, 0.0]), "not finite"),
        (changed(embedding=None), "not finite"),
    ],
)
def test_a_wrong_row_is_a_discrepancy_that_names_its_fragment(folder: OutputFolder, change: Change, what: str) -> None:
    books = Books(level="frame")
    rows = books.rows
    books.write(folder, {**rows, "r2": change(rows["r2"])})
    report = verify_output(folder)
    assert not report.ok
    assert any(what in sentence and "embeddings/r2.parquet" in sentence for sentence in report.discrepancies)


def test_a_clip_with_rows_and_an_error_is_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    rows = books.rows
    rows["r1"] += make_rows("r1", make_clip("bad"), "clip")
    books.write(folder, rows)
    assert "'clip-bad' of '/bad' has 1 rows and an error row" in only_discrepancy(folder)


def test_two_error_rows_of_one_clip_are_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.failures["r1"] *= 2
    books.write(folder)
    assert "has 2 error rows" in only_discrepancy(folder)


def test_an_error_row_of_an_unknown_clip_is_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.failures["r2"] = [make_failure("ghost")]
    books.write(folder)
    assert "'clip-ghost' has an error row and is not planned" in only_discrepancy(folder)


def test_a_source_without_clips_and_without_an_error_row_is_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.failures["plan"] = []
    books.write(folder)
    assert only_discrepancy(folder) == "source '/text' has neither clips nor an error row"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("text", "text"), "source '/text' failed 1 times and has 2 error rows"),
        (("text", "a"), "source '/a' has an error row, and did not fail"),
        (("text", "ghost"), "source '/ghost' has an error row, and did not fail"),
    ],
    ids=["twice", "of a source with clips", "of an unknown source"],
)
def test_an_error_row_too_many_of_a_source_is_a_discrepancy(
    folder: OutputFolder, names: tuple[str, ...], sentence: str
) -> None:
    books = Books()
    books.failures["plan"] = [make_failure(name, whole=True) for name in names]
    books.write(folder)
    assert only_discrepancy(folder) == sentence


def test_a_source_whose_clips_are_not_all_planned_is_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.sources[0] = replace(books.sources[0], num_clips=2)
    books.write(folder)
    assert only_discrepancy(folder) == "source '/a' (b2-a): 2 clips, 1 in the plan"


def test_a_planned_source_that_was_never_listed_is_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.sources = books.sources[1:]
    books.write(folder)
    assert only_discrepancy(folder) == "source '/a' (b2-a) is planned and not among the sources"


def test_a_clip_or_a_request_that_is_planned_twice_is_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.requests["r3"] = [make_clip("b")]
    books.write(folder)
    assert any("clip 'clip-b' is planned twice" in sentence for sentence in verify_output(folder).discrepancies)


def test_a_touched_file_that_was_listed_again_is_no_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.sources.append(replace(books.sources[0], modified_ns=2))
    books.write(folder)
    assert verify_output(folder).ok


def test_a_changed_file_under_the_same_path_is_two_contents_and_no_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    clip = replace(make_clip("b", source_id="b2-new"), clip_ids=("clip-new",))
    books.requests["r3"] = [clip]
    books.sources.append(make_source("b", "b2-new", 1))
    books.write(folder)
    assert verify_output(folder).ok


def test_an_error_row_in_another_file_than_its_requests_is_a_discrepancy(folder: OutputFolder, tmp_path: Path) -> None:
    Books().write(folder)
    (tmp_path / "out/errors/r1.parquet").rename(tmp_path / "out/errors/r2.parquet")
    assert only_discrepancy(folder) == (
        "embeddings/r1.parquet: clip 'clip-bad' of '/bad' has its error row in errors/r2.parquet, "
        "where no retry looks for it"
    )


def test_an_error_row_of_a_source_among_those_of_a_request_is_a_discrepancy(folder: OutputFolder) -> None:
    books = Books()
    books.failures["r1"] += books.failures.pop("plan")
    books.write(folder)
    assert only_discrepancy(folder) == "errors/r1.parquet: an error row of a source, which is the plan's"


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float16(), 4)], ids=["width", "dtype"])
def test_vectors_of_another_kind_than_in_other_fragments_are_a_discrepancy(
    folder: OutputFolder, kind: pa.DataType
) -> None:
    Books().write(folder)
    table = read_table(folder, Kind.EMBEDDINGS, "r2")
    place = table.schema.get_field_index("embedding")
    vectors = pa.array(np.ones((table.num_rows, kind.list_size)).tolist(), kind)
    write_table(folder, Kind.EMBEDDINGS, "r2", table.set_column(place, pa.field("embedding", kind), vectors))
    assert "embeddings/r2.parquet: embedding: expected fixed_size_list" in only_discrepancy(folder)


def test_what_was_taken_out_of_all_tables_is_missed_by_the_counts_of_the_last_run(folder: OutputFolder) -> None:
    books = Books()
    books.write(folder)
    write_run_record(folder, replace(make_record(), counts={"sources": 5, "clips": 4}))
    assert verify_output(folder).ok
    del books.requests["r2"]
    books.sources = [source for source in books.sources if source.source_uri != "/b"]
    books.write(folder)
    folder.remove("embeddings/r2.parquet")
    write_run_record(folder, replace(make_record(), counts={"sources": 5, "clips": 4}))
    assert only_discrepancy(folder) == "run.json counts 4 clips, 3 are planned"


def test_settings_that_are_not_those_of_the_hash_are_a_discrepancy(folder: OutputFolder) -> None:
    Books().write(folder)
    write_run_record(folder, replace(make_record(), result_config={**make_record().result_config, "clips": {}}))
    assert only_discrepancy(folder) == "run.json: config_hash is not that of its result_config and model"


@pytest.mark.parametrize("name", ["copy/r1.parquet", "r1.parquet.bak"])
def test_what_a_reader_of_the_folder_would_take_for_a_fragment_is_a_discrepancy(
    folder: OutputFolder, tmp_path: Path, name: str
) -> None:
    Books().write(folder)
    copy = tmp_path / "out/embeddings" / name
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "out/embeddings/r1.parquet", copy)
    assert "no fragment, and readers of the folder may take it for one" in only_discrepancy(folder)


def test_many_discrepancies_are_counted_and_the_first_are_told(folder: OutputFolder) -> None:
    books = Books()
    books.sources += [make_source(f"lost{number}", None, 0) for number in range(50)]
    books.write(folder)
    report = verify_output(folder)
    assert report.num_discrepancies == 50
    assert len(report.discrepancies) == 20


def test_damage_anywhere_is_reported_and_never_raised(folder: OutputFolder, tmp_path: Path) -> None:
    Books().write(folder)
    good = tmp_path / "good"
    shutil.copytree(tmp_path / "out", good)
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
    assert len(files) == 7
    for file in files:
        for content in (b"", b"garbage", (good / file).read_bytes()[: -9 if file.suffix == ".parquet" else 50]):
            (tmp_path / "out" / file).write_bytes(content)
            report = verify_output(folder)
            assert any(str(file) in sentence for sentence in report.discrepancies), (file, report.discrepancies)
        shutil.copy(good / file, tmp_path / "out" / file)
    assert verify_output(folder).ok


def test_a_table_of_other_columns_is_a_discrepancy(folder: OutputFolder) -> None:
    Books().write(folder)
    for kind in (Kind.PLAN, Kind.SOURCES, Kind.ERRORS):
        write_table(folder, kind, "other", pa.table({"x": [1]}))
    write_table(folder, Kind.EMBEDDINGS, "r1", pa.table({"x": [1]}))
    sentences = " ".join(verify_output(folder).discrepancies)
    for file in ("plan/other.parquet", "sources/other.parquet", "errors/other.parquet", "embeddings/r1.parquet"):
        assert file in sentences


def test_an_output_without_its_record_is_a_discrepancy_and_an_empty_folder_an_error(folder: OutputFolder) -> None:
    with pytest.raises(OutputError, match="found none"):
        verify_output(folder)
    Books().write(folder)
    folder.remove("run.json")
    assert "run.json is missing" in only_discrepancy(folder)


def test_rows_of_a_clip_follow_from_its_grid() -> None:
    t, h, w = GRID
    assert {"clip": 1, "frame": t, "token": t * h * w // 4} == ROWS
    assert make_record().result_config["output"] == {"level": "clip", "dtype": "float32"}
