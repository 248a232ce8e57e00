"""Reading a manifest: a CSV, JSONL or Parquet table with a `uri` column and optional spans in seconds.

The three columns are taken and all others ignored. A cell that is wrong stops the run before anything is written,
naming the file and the row, because a wrong span would otherwise embed the wrong seconds in silence.
Rows are counted from 1, without a CSV's header.
"""

import math
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import UsageError

SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")
URI_COLUMN = "uri"
SPAN_COLUMNS = ("start_seconds", "end_seconds")
_COLUMNS = (URI_COLUMN, *SPAN_COLUMNS)
_JSON_BLOCK_BYTES = 16 << 20


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
    Raises: UsageError for a table that cannot be read, lacks `uri`, has no row, or has a bad cell.
    Cost: the three columns in memory.

    """
    try:
        table = _read_table(file, name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
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
        return _read_csv(file)
    return _read_parquet(file) if suffix == "parquet" else _read_json(file)


def _read_csv(file: BinaryIO) -> pa.Table:
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    names = pa.csv.open_csv(file, parse_options=parse).schema.names
    file.seek(0)
    wanted = [name for name in _COLUMNS if name in names]
    # As strings: the spans are converted here so that a bad one is reported with its row.
    convert = pa.csv.ConvertOptions(include_columns=wanted or names[:1], column_types=dict.fromkeys(names, pa.string()))
    return pa.csv.read_csv(file, parse_options=parse, convert_options=convert)


def _read_json(file: BinaryIO) -> pa.Table:
    schema = pa.schema({"uri": pa.string(), "start_seconds": pa.float64(), "end_seconds": pa.float64()})
    table = pa.json.read_json(
        file,
        read_options=pa.json.ReadOptions(block_size=_JSON_BLOCK_BYTES),
        parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    # The reader makes a column of nulls where no object has the key.
    return table.drop_columns(["uri"]) if table["uri"].null_count == table.num_rows > 0 else table


def _read_parquet(file: BinaryIO) -> pa.Table:
    parquet = pa.parquet.ParquetFile(file)
    return parquet.read(columns=[name for name in _COLUMNS if name in parquet.schema_arrow.names])


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
