"""Parquet and Arrow tables with a column of bytes: every row a source, read one cell at a time."""

import io
import resource
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError, UsageError
from pipeline.media.arrow_heads import rows_of_batches
from pipeline.media.content import WHOLE_LIMIT_BYTES
from pipeline.media.location import open_binary
from pipeline.media.sandbox import Sandbox
from pipeline.media.table_cells import TableCells
from pipeline.plan.probe import probe_source
from pipeline.sources.content_id import content_id
from tests.containers import make_table, write_wrong_count

from .factories import list_with, make_file, only_failure, uris_of

CELLS = [b"first", b"second" * 50, b"third", b"fourth", b"fifth"]
NAMES = ["t.parquet", "t.arrow"]


def read(uri: str, **limits: int) -> bytes:
    with open_binary(uri, **limits) as file:
        return file.read()


def refusal(uri: str, **limits: int) -> ErrorCode:
    with pytest.raises(MediaError) as caught:
        read(uri, **limits)
    assert uri in caught.value.message
    return caught.value.code


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("column", ["bytes", "image"])
def test_every_row_is_a_source_in_order_and_its_cell_is_read(tmp_path: Path, name: str, column: str) -> None:
    table = make_table(tmp_path / name, CELLS * 3, column=column)
    uris = [f"row://{column}/{row}::{table}" for row in range(15)]
    for spec in (table, tmp_path):
        assert uris_of(list_with(spec)) == uris
    assert [read(uri) for uri in uris] == CELLS * 3
    assert [read(uri) for uri in reversed(uris)] == list(reversed(CELLS * 3))
    assert list_with(uris[7]).items == (list_with(table).items[7],)


def test_an_arrow_stream_is_read_as_an_arrow_file_is(tmp_path: Path) -> None:
    stream = make_table(tmp_path / "t.stream", CELLS).rename(tmp_path / "t.arrow")
    assert [read(item.uri) for item in list_with(stream).items] == CELLS


@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("is_old", [False, True], ids=["", "before 0.15"])
def test_the_rows_of_an_arrow_file_are_counted_by_its_headers(make, compression: str | None, is_old: bool) -> None:
    table = pa.table({"image": CELLS, "label": pa.array(["a", "b", "a", "c", "b"]).dictionary_encode()})
    file = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression, use_legacy_format=is_old)
    with make(file, table.schema, options=options) as writer:
        for stop in range(1, 6):
            writer.write_table(table.slice(0, stop))
    assert rows_of_batches(file) == [1, 2, 3, 4, 5]
    file.seek(0)
    cells = TableCells(file)
    assert (cells.num_rows, cells.cell("image", 14)) == (15, CELLS[4])


def test_no_body_of_an_arrow_file_is_read_where_it_is_listed(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.arrow", [bytes(1 << 20)] * 16)

    class Counting(io.FileIO):
        num_bytes = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            self.num_bytes += len(data)
            return data

    file = Counting(table)
    assert TableCells(file).num_rows == 16
    assert file.num_bytes < 1 << 20


def test_an_arrow_bomb_is_one_error_row_and_is_never_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.media.arrow_heads.MAX_INFLATED_BYTES", 1 << 20)
    table = pa.table({"bytes": [bytes(1 << 20)] * 4})
    with pa.ipc.new_file(
        tmp_path / "t.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_table(table)
    before = pa.total_allocated_bytes()
    with pytest.raises(pa.ArrowInvalid, match=r"inflates to 41943\d\d bytes.*write smaller ones"):
        TableCells((tmp_path / "t.arrow").open("rb"))
    assert uris_of(list_with(tmp_path / "t.arrow")) == [str(tmp_path / "t.arrow")], "a file that is no medium"
    assert refusal(f"row://bytes/0::{tmp_path}/t.arrow") is ErrorCode.CORRUPT_MEDIA
    assert pa.total_allocated_bytes() - before < 1 << 20


@pytest.mark.parametrize("place", range(8, 400, 7))
def test_damaged_headers_of_an_arrow_file_raise_arrows_error_and_nothing_else(tmp_path: Path, place: int) -> None:
    content = bytearray(make_table(tmp_path / "t.arrow", CELLS).read_bytes())
    for value in (0, 1, 127, 255):
        content[place] = value
        try:
            rows_of_batches(io.BytesIO(content))
        except pa.ArrowInvalid as error:
            assert str(error)


def test_a_cell_has_the_content_id_of_an_equal_file(tmp_path: Path) -> None:
    items = list_with(make_table(tmp_path / "t.parquet", CELLS)).items
    with Sandbox(DecodeConfig(), ImagesConfig(), LimitsConfig()) as sandbox:
        assert content_id(items[1], sandbox) == content_id(list_with(make_file(tmp_path / "f", CELLS[1])).items[0])
        large = list_with(make_table(tmp_path / "l.parquet", [bytes(WHOLE_LIMIT_BYTES + 1)])).items[0]
        assert content_id(large, sandbox) == content_id(
            list_with(make_file(tmp_path / "g", bytes(WHOLE_LIMIT_BYTES + 1))).items[0]
        )


def test_spans_beside_the_bytes_are_taken_and_a_bad_one_names_its_row(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.parquet", CELLS[:2], start_seconds=[None, 1.5], end_seconds=[None, 2.0])
    assert [(item.start_seconds, item.end_seconds) for item in list_with(table).items] == [(None, None), (1.5, 2.0)]
    with pytest.raises(UsageError, match=r"t\.parquet', row 1: expected start_seconds < end_seconds"):
        list_with(make_table(tmp_path / "t.parquet", CELLS[:2], start_seconds=[0.0, 3.0], end_seconds=[1.0, 2.0]))


def test_a_table_with_a_uri_column_is_a_manifest_whatever_else_is_in_it(tmp_path: Path) -> None:
    named = make_file(tmp_path / "a.mp4")
    table = make_table(tmp_path / "t.parquet", CELLS[:1], uri=["a.mp4"])
    assert uris_of(list_with(table)) == [str(named)]


def test_bytes_go_before_other_columns_and_several_others_are_refused(tmp_path: Path) -> None:
    masks = pa.array(CELLS[:2], pa.binary())
    both = pa.table({"bytes": pa.array(CELLS[:2], pa.binary()), "mask": masks})
    pq.write_table(both, tmp_path / "t.parquet")
    assert len(list_with(tmp_path / "t.parquet").items) == 2
    pq.write_table(both.rename_columns(["image", "mask"]), tmp_path / "t.parquet")
    failure = only_failure(list_with(tmp_path / "t.parquet"))
    assert "found image, mask" in failure.message
    assert read(f"row://mask/1::{tmp_path}/t.parquet") == CELLS[1]


def test_a_table_without_media_or_that_cannot_be_read_stays_a_plain_file_in_a_folder(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    make_file(tmp_path / "b.parquet", b"PAR1 and no more")
    make_file(tmp_path / "c.arrow", b"ARROW1 and no more")
    assert uris_of(list_with(tmp_path)) == [str(tmp_path / name) for name in ("a.parquet", "b.parquet", "c.arrow")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("bytes/1", ErrorCode.UNSUPPORTED_MEDIA),
        ("bytes/9", ErrorCode.CORRUPT_MEDIA),
        ("none/0", ErrorCode.CORRUPT_MEDIA),
        ("label/0", ErrorCode.CORRUPT_MEDIA),
        ("bytes/-1", ErrorCode.UNREADABLE),
        ("0", ErrorCode.UNREADABLE),
    ],
)
def test_a_cell_that_is_null_or_not_there_is_an_error_that_names_it(
    tmp_path: Path, name: str, place: str, code: ErrorCode
) -> None:
    table = make_table(tmp_path / name, [b"first", None, b"third"])
    assert refusal(f"row://{place}::{table}") is code
    assert read(f"row://bytes/2::{table}") == b"third"


def test_a_cell_over_the_limit_is_refused(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.parquet", CELLS)
    assert refusal(f"row://bytes/1::{table}", max_bytes=100) is ErrorCode.LIMIT_EXCEEDED


def test_a_table_of_more_rows_than_bytes_is_refused_before_they_or_their_spans_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "t.parquet"
    spans = pa.array([1.0] * 100_000)
    pq.write_table(pa.table({"bytes": pa.nulls(100_000, pa.binary()), "start_seconds": spans}), table)
    assert table.stat().st_size < 100_000
    monkeypatch.delattr(TableCells, "small_columns")
    assert only_failure(list_with(table)).code is ErrorCode.CORRUPT_MEDIA


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    cells = [bytes([number]) * 1000 for number in range(6)]
    pq.write_table(pa.table({"bytes": cells}), table, row_group_size=2, compression="zstd", use_dictionary=False)
    place = pq.read_metadata(table).row_group(1).column(0).data_page_offset
    data = bytearray(table.read_bytes())
    data[place : place + 60] = b"\xff" * 60
    table.write_bytes(data)
    uris = uris_of(list_with(table))
    assert [read(uris[row]) for row in (0, 1, 4, 5)] == [cells[row] for row in (0, 1, 4, 5)]
    for row in (2, 3):
        assert refusal(uris[row]) in (ErrorCode.UNREADABLE, ErrorCode.CORRUPT_MEDIA)


def test_offsets_of_an_arrow_file_that_point_outside_it_are_refused(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 1 << 30, 3)))
    wild = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"abc")])
    with pa.ipc.new_file(tmp_path / "t.arrow", pa.schema({"bytes": pa.binary()})) as writer:
        writer.write_batch(pa.record_batch({"bytes": wild}))
    assert refusal(f"row://bytes/0::{tmp_path}/t.arrow") is ErrorCode.CORRUPT_MEDIA


def test_a_table_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.parquet", CELLS)
    uri = f"row://bytes/0::{table}"
    assert read(uri) == b"first"
    make_table(table, [b"other" * 100])
    assert read(uri) == b"other" * 100


def test_a_table_in_a_store_is_read_by_the_same_rule(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in NAMES:
        memory.pipe_file(f"/tables/{name}", make_table(tmp_path / name, CELLS).read_bytes())
        listing = list_with(f"memory://tables/{name}")
        assert uris_of(listing) == [f"row://bytes/{row}::memory:///tables/{name}" for row in range(5)]
        assert [read(item.uri) for item in listing.items] == CELLS
    memory.rm("/tables", recursive=True)


def test_one_large_row_group_is_streamed_and_not_held(tmp_path: Path) -> None:
    num_cells, cell_bytes = 96, 1 << 20
    schema = pa.schema({"bytes": pa.binary()})
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, use_dictionary=False, write_batch_size=4) as writer:
        cells = [bytes([number]) * cell_bytes for number in range(num_cells)]
        writer.write_table(pa.table({"bytes": cells}, schema=schema), row_group_size=num_cells)
    del cells
    with (tmp_path / "t.parquet").open("rb") as file:
        table = TableCells(file)
        before = pa.total_allocated_bytes()
        peak = 0
        for row in range(num_cells):
            assert table.cell("bytes", row)[:1] == bytes([row])
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < num_cells * cell_bytes / 2


@pytest.mark.parametrize("encoding", ["RLE_DICTIONARY", "DELTA_BYTE_ARRAY"])
def test_rows_that_repeat_a_large_cell_are_read_one_by_one(tmp_path: Path, encoding: str) -> None:
    """A table of a few kilobytes whose 2,000 cells are a megabyte each."""
    wanted = None if encoding == "RLE_DICTIONARY" else {"bytes": encoding}
    cells = pa.array([bytes(1 << 20)] * 2000)
    options = {"use_dictionary": wanted is None, "column_encoding": wanted, "dictionary_pagesize_limit": 4 << 20}
    pq.write_table(pa.table({"bytes": cells}), tmp_path / "t.parquet", compression="zstd", **options)
    del cells
    assert encoding in pq.read_metadata(tmp_path / "t.parquet").row_group(0).column(0).encodings
    assert (tmp_path / "t.parquet").stat().st_size < 1 << 20
    with (tmp_path / "t.parquet").open("rb") as file:
        table = TableCells(file)
        before, peak = pa.total_allocated_bytes(), 0
        for row in range(0, 100, 9):
            cell = table.cell("bytes", row)
            peak = max(peak, pa.total_allocated_bytes() - before)
            assert cell == bytes(1 << 20)
    assert peak < 16 << 20


def test_a_count_of_lengths_that_would_take_gigabytes_ends_in_the_decoder_process(tmp_path: Path) -> None:
    """The counts that delta encodings begin with are taken at their word."""
    table = write_wrong_count(tmp_path / "t.parquet", pa.binary(), "bytes", "DELTA_LENGTH_BYTE_ARRAY")
    (item, *_) = list_with(table).items
    limits = LimitsConfig(max_decoder_bytes=1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), limits) as sandbox:
        result = probe_source(item, sandbox)
        assert result.error is not None
        assert result.error.code in (ErrorCode.LIMIT_EXCEEDED, ErrorCode.UNREADABLE)
        whole = list_with(make_table(tmp_path / "w.parquet", CELLS)).items[0]
        assert content_id(whole, sandbox).startswith("b2-")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


def test_spans_that_inflate_to_more_than_a_driver_can_hold_are_not_read(tmp_path: Path) -> None:
    """400 MB of zeros in some ten kilobytes."""
    many = tmp_path / "many.parquet"
    spans = pa.table({"start_seconds": np.zeros(50_000_000)})
    pq.write_table(spans, many, compression="zstd", use_dictionary=False)
    del spans
    before = pa.total_allocated_bytes()
    with many.open("rb") as file, pytest.raises(pa.ArrowInvalid, match=r"start_seconds: expected pages of at most"):
        TableCells(file).small_columns(["start_seconds"])
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_spans_of_text_are_refused_before_they_are_read(tmp_path: Path) -> None:
    spans = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["1" * 1_000_000]))
    table = pa.table({"bytes": [number.to_bytes(2, "big") for number in range(2000)], "start_seconds": spans})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", store_schema=False)
    with pytest.raises(
        UsageError, match=r"t\.parquet'.*start_seconds: expected a column of numbers of seconds, got string"
    ):
        list_with(tmp_path / "t.parquet")


def test_a_table_of_more_rows_than_a_driver_can_hold_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.tables.MAX_ROWS", 4)
    failure = only_failure(list_with(make_table(tmp_path / "t.parquet", CELLS)))
    assert failure.code is ErrorCode.CORRUPT_MEDIA
    assert "5 rows of media" in failure.message
