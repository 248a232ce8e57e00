"""Reading a manifest: a CSV, JSONL or Parquet table with a `uri` column and optional spans in seconds.

The three columns are taken and all others ignored. A cell that is wrong stops the run before anything is written,
naming the file and the row, because a wrong span would otherwise embed the wrong seconds in silence.
Rows are counted from 1, without a CSV's header.

A manifest may be a stranger's, and some hundred bytes of Parquet or a megabyte of CSV can stand for more than there is
memory. So it is read in batches and given up where it goes on for too long, only the three columns are ever made, and
repeated values of a Parquet column stay references until their length is known. What inflating the pages of Parquet
takes is known before, from their headers; text in a delta encoding is refused by the same headers, because what it
takes is not. Trade-off: tables of Parquet writers that were asked for version 2 have to be written anew.
"""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import UsageError
from pipeline.media.parquet_pages import check_pages

SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")
URI_COLUMN = "uri"
SPAN_COLUMNS = ("start_seconds", "end_seconds")
_COLUMNS = (URI_COLUMN, *SPAN_COLUMNS)
_JSON_BLOCK_BYTES = 16 << 20
_CSV_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 4096
MAX_ROWS = 5_000_000  # 2 GB of the driver's memory by the time they are sources
MAX_TEXT_BYTES = 1 << 30
MAX_PAGES_BYTES = MAX_TEXT_BYTES + 32 * MAX_ROWS  # a length, two numbers and levels a row


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """One row as it was written: `uri` is still relative to the manifest if it was."""

    number: int
    uri: str
    start_seconds: float | None
    end_seconds: float | None


def is_manifest(name: str) -> bool:
    """Whether a directly named source is read as a manifest, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def read_manifest(file: BinaryIO, name: str) -> list[ManifestRow]:
    """Read all rows of a manifest.

    Args:
        file: its bytes.
        name: its path or URL: the suffix chooses the format, and messages name it.
    Raises: UsageError for a table that cannot be read, lacks `uri`, has no row, or has a bad cell; for one of more than
        MAX_ROWS rows, or MAX_TEXT_BYTES of text in the three columns; for Parquet with text in a delta encoding.
    Cost: the three columns in memory.

    """
    try:
        table = _read_table(file, name)
    except (pa.ArrowException, csv.Error, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"manifest {name!r}: cannot be read: {error}") from error
    if URI_COLUMN not in table.column_names:
        raise UsageError(
            f"manifest {name!r}: expected a `uri` column (or in Parquet a column of bytes); "
            "name its folder to embed a file of this suffix"
        )
    if not table.num_rows:
        raise UsageError(f"manifest {name!r}: has no rows")
    columns = [table[column].to_pylist() if column in table.column_names else None for column in _COLUMNS]
    return [
        _row(name, number + 1, *(None if column is None else column[number] for column in columns))
        for number in range(table.num_rows)
    ]


def _read_table(file: BinaryIO, name: str) -> pa.Table:
    suffix = name.lower().rpartition(".")[2]
    if suffix == "csv":
        return _read_csv(file, name)
    return _read_parquet(file, name) if suffix == "parquet" else _read_json(file, name)


def _read_csv(file: BinaryIO, name: str) -> pa.Table:
    # Not by Arrow, which makes columns of all there are, and a header can name half a million.
    header = io.StringIO(file.read(_CSV_BLOCK_BYTES).decode("utf-8-sig", "replace"), newline="")
    names = next(csv.reader(header), [])
    file.seek(0)
    wanted = [column for column in _COLUMNS if column in names] or names[:1]
    reader = pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        # As strings: the spans are converted here so that a bad one is reported with its row.
        convert_options=pa.csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())),
    )
    return _bounded(reader, reader.schema, name)


def _read_json(file: BinaryIO, name: str) -> pa.Table:
    schema = pa.schema({"uri": pa.string(), "start_seconds": pa.float64(), "end_seconds": pa.float64()})
    reader = pa.json.open_json(
        file,
        read_options=pa.json.ReadOptions(block_size=_JSON_BLOCK_BYTES),
        parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    table = _bounded(reader, reader.schema, name)
    # The reader makes a column of nulls where no object has the key.
    return table.drop_columns(["uri"]) if table["uri"].null_count == table.num_rows > 0 else table


def _read_parquet(file: BinaryIO, name: str) -> pa.Table:
    metadata = pa.parquet.read_metadata(file)
    found = metadata.schema.to_arrow_schema()
    columns = [column for column in _COLUMNS if column in found.names]
    for field in map(found.field, columns):
        if pa.types.is_nested(field.type):
            raise UsageError(f"manifest {name!r}: {field.name}: expected text or numbers, got {field.type}")
    check_pages(file, metadata, columns, max_values=MAX_ROWS, max_bytes=MAX_PAGES_BYTES)
    parquet = pa.parquet.ParquetFile(file, metadata=metadata, read_dictionary=columns, pre_buffer=False)
    schema = pa.schema(map(parquet.schema_arrow.field, columns))
    batches = parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False) if columns else ()
    return _bounded(batches, schema, name)


def _bounded(batches: Iterable[pa.RecordBatch], schema: pa.Schema, name: str) -> pa.Table:
    """All batches together. Raises: UsageError as soon as they are too many."""
    kept: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        num_rows += batch.num_rows
        num_bytes += sum(_text_bytes(column) for column in batch.columns)
        if num_rows > MAX_ROWS or num_bytes > MAX_TEXT_BYTES:
            raise UsageError(
                f"manifest {name!r}: expected at most {MAX_ROWS} rows, and {MAX_TEXT_BYTES} bytes of text in them, got "
                f"{num_rows} and {num_bytes} before its end; split it into several manifests"
            )
        kept.append(batch)
    return pa.Table.from_batches(kept, schema)


def _text_bytes(column: pa.Array) -> int:
    """Bytes of the values when each row has its own; none of numbers."""
    values = column.dictionary if pa.types.is_dictionary(column.type) else column
    if pa.types.is_primitive(values.type) or pa.types.is_null(values.type):
        return 0
    lengths = pa.compute.binary_length(values)
    lengths = lengths.take(column.indices) if values is not column else lengths
    return pa.compute.sum(lengths).as_py() or 0


def _row(name: str, number: int, uri: object, start: object, end: object) -> ManifestRow:
    where = f"manifest {name!r}, row {number}"
    if not isinstance(uri, str) or not uri:
        raise UsageError(f"{where}: uri: expected a path or URL, got {uri!r}")
    if "\0" in uri:
        raise UsageError(f"{where}: uri: expected a path or URL, got one with a zero byte: {uri!r}")
    start_seconds, end_seconds = checked_span(where, start, end)
    return ManifestRow(number=number, uri=uri, start_seconds=start_seconds, end_seconds=end_seconds)


def checked_span(where: str, start: object, end: object) -> tuple[float | None, float | None]:
    """Read a span's two cells. Raises: UsageError that begins with `where`."""
    start_seconds, end_seconds = (
        _seconds(where, column, value) for column, value in zip(SPAN_COLUMNS, (start, end), strict=True)
    )
    if start_seconds is not None and end_seconds is not None and start_seconds >= end_seconds:
        raise UsageError(f"{where}: expected start_seconds < end_seconds, got {start_seconds} and {end_seconds}")
    return start_seconds, end_seconds


def _seconds(where: str, column: str, value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise UsageError(f"{where}: {column}: expected a number of seconds, 0 or more, got {value!r}")
    return seconds + 0.0  # -0.0 becomes 0.0, so that equal spans compare and sort as one
