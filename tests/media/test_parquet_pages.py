"""What page headers of Parquet say, against what the writer was told."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.media.parquet_pages import check_pages, pages_of

PLAIN, RLE_DICTIONARY, DELTA_BYTE_ARRAY = 0, 8, 7


def write(path: Path, texts: list[str | None], **options: object) -> tuple[io.BytesIO, pq.FileMetaData]:
    pq.write_table(pa.table({"n": range(len(texts)), "uri": pa.array(texts, pa.string())}), path, **options)
    return io.BytesIO(path.read_bytes()), pq.read_metadata(path)


def check(found: tuple[io.BytesIO, pq.FileMetaData], max_values: int = 1000, max_bytes: int = 1 << 20) -> None:
    file, metadata = found
    check_pages(file, metadata, ["uri"], max_values=max_values, max_bytes=max_bytes)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize(
    ("options", "encoding"),
    [
        ({"use_dictionary": False}, PLAIN),
        ({"use_dictionary": True}, RLE_DICTIONARY),
        ({"use_dictionary": False, "column_encoding": {"uri": "DELTA_BYTE_ARRAY"}}, DELTA_BYTE_ARRAY),
    ],
)
def test_every_page_is_found_with_its_encoding_values_and_bytes(
    tmp_path: Path, version: str, compression: str, options: dict[str, object], encoding: int
) -> None:
    """Statistics of a text of 3,000 bytes make a header longer than it usually is."""
    texts = ["a" * 3000, None, *(f"{number}.mp4" for number in range(998))]
    options = {**options, "data_page_version": version, "compression": compression, "data_page_size": 100}
    file, metadata = write(tmp_path / "t.parquet", texts, write_batch_size=100, row_group_size=600, **options)
    for group in range(2):
        chunk = metadata.row_group(group).column(1)
        pages = [page for page in pages_of(file, chunk) if not page.is_dictionary]
        assert len(pages) > 1
        assert {page.encoding for page in pages} == {encoding}
        assert sum(page.num_values for page in pages) == chunk.num_values
        inflated = sum(page.num_bytes for page in pages_of(file, chunk))
        assert inflated < chunk.total_uncompressed_size < inflated + 8000 * (len(pages) + 1), "which counts headers"


def test_a_dictionary_of_more_values_than_allowed_is_refused(tmp_path: Path) -> None:
    found = write(tmp_path / "t.parquet", [str(number) for number in range(100)] * 2)
    check(found, max_values=100)
    with pytest.raises(pa.ArrowInvalid, match="uri: expected a dictionary of at most 99 values, got 100"):
        check(found, max_values=99)


def test_pages_of_more_bytes_than_allowed_are_refused_and_other_columns_do_not_count(tmp_path: Path) -> None:
    found = write(tmp_path / "t.parquet", ["a" * 100_000] * 2, compression="zstd", use_dictionary=False)
    check(found, max_bytes=210_000)
    with pytest.raises(pa.ArrowInvalid, match="uri: expected pages of at most 200000 bytes in all, inflated, got 2000"):
        check(found, max_bytes=200_000)


def test_damaged_headers_raise_arrows_error_and_nothing_else(tmp_path: Path) -> None:
    file, metadata = write(tmp_path / "t.parquet", ["a.mp4", "b.mp4"] * 50)
    whole = file.getvalue()
    start = metadata.row_group(0).column(1).dictionary_page_offset
    num_refused = 0
    for place in range(start, start + 60):
        for value in (0, 1, 0x1C, 127, 255):
            data = bytearray(whole)
            data[place] = value
            try:
                check((io.BytesIO(data), metadata))
            except pa.ArrowInvalid:
                num_refused += 1
    assert num_refused
    for length in range(start, start + 40):
        with pytest.raises(pa.ArrowInvalid):
            check((io.BytesIO(whole[:length]), metadata))
