"""Media in a column of a Parquet or Arrow table: one cell at a time, read in streams.

A column counts when it holds bytes, or structs with a field `bytes` (as Hugging Face's Image and Video features are
stored). Rows come out of one row group or record batch, and only the newest is kept: asking for cells in order reads a
table once, going back reads its group again. Of Parquet a batch is one row (3 us more than in large batches): a
stranger's file can repeat a value, or make each from the one before it, so that gigabytes of rows lie in one page, and
its footer need not say so. Memory is bounded by a cell and by the largest page or record batch of that one column
(below 2 GiB in Parquet, 1 GiB where an Arrow batch is compressed); but lengths in delta encodings begin with a count
that Arrow (26.0) takes at its word, up to 8 GiB, which is one reason why decoder processes alone read cells.
Trade-off: a cell is copied out of its batch, so that it does not keep the whole batch in memory.
"""

import bisect
import weakref
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.media.arrow_heads import rows_of_batches
from pipeline.media.parquet_pages import check_pages

_MAX_SMALL_BYTES = 256 << 20  # two columns of numbers, in the driver
_PAGE_BUFFER_BYTES = 1 << 20
_BYTES_FIELD = "bytes"
_PARQUET_MAGIC, _ARROW_MAGIC = b"PAR1", b"ARROW1"


class _Chunks(Protocol):
    """A table as chunks that can be read from their beginning; `starts` holds each one's first row."""

    schema: pa.Schema
    num_rows: int
    starts: list[int]

    def read(self, chunk: int, column: str) -> Iterator[pa.RecordBatch]: ...

    def read_all(self, columns: list[str]) -> pa.Table: ...


def media_columns(schema: pa.Schema) -> list[str]:
    """Name the columns that can hold media: `bytes` where there is one that does, else all that do."""
    found = [field.name for field in schema if _is_binary(field.type) or _bytes_field(field.type) is not None]
    return [_BYTES_FIELD] if _BYTES_FIELD in found else found


class TableCells:
    """An open table; owns the file.

    Raises: pyarrow.ArrowException or OSError, here and from every method, for what is no table or is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        weakref.finalize(self, file.close)
        self._chunks = _open_chunks(file)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._place = ("", 0)  # the column, and the first row of the batch

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return self._chunks.schema

    @property
    def num_rows(self) -> int:
        """Rows of the table. Cost: from a Parquet file's footer; from an Arrow file's headers."""
        return self._chunks.num_rows

    def cell(self, column: str, row: int) -> bytes | None:
        """Give the bytes of one cell, None where it is null.

        Raises: IndexError or KeyError where there is no such cell; ValueError where it holds no bytes.
        """
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of {self.num_rows}")
        if column not in self.schema.names:
            raise KeyError(f"no column {column!r}")
        batch, first = self._batch_of(column, row)
        value = batch.column(0)[row - first]
        if pa.types.is_struct(value.type):
            if _bytes_field(value.type) is None:
                raise ValueError(f"column {column!r} holds {value.type}")
            value = value[_BYTES_FIELD] if value.is_valid else pa.scalar(None)
        elif not _is_binary(value.type):
            raise ValueError(f"column {column!r} holds {value.type}")
        data: bytes | None = value.as_py()
        return data

    def small_columns(self, columns: list[str]) -> dict[str, list[object]]:
        """Whole columns as Python values, for those that are small beside the media."""
        if not columns:
            return {}
        table = self._chunks.read_all(columns)
        return {name: table[name].to_pylist() for name in columns}

    def _batch_of(self, column: str, row: int) -> tuple[pa.RecordBatch, int]:
        known, first = self._place
        batch, self._batch = self._batch, None
        chunk = bisect.bisect_right(self._chunks.starts, row) - 1
        if batch is None or known != column or row < first or self._chunks.starts[chunk] > first + batch.num_rows:
            self._batches, first, batch = self._chunks.read(chunk, column), self._chunks.starts[chunk], None
        while batch is None or row >= first + batch.num_rows:
            first += 0 if batch is None else batch.num_rows
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError(f"the table ends before row {row}")
            batch.validate(full=True)  # a file's own offsets are not to be trusted
        self._batch, self._place = batch, (column, first)
        return batch, first


def _open_chunks(file: BinaryIO) -> _Chunks:
    magic = file.read(len(_ARROW_MAGIC))
    file.seek(0)
    if magic.startswith(_PARQUET_MAGIC):
        return _ParquetChunks(file)
    return _ArrowChunks(file, pa.ipc.open_file if magic == _ARROW_MAGIC else pa.ipc.open_stream)


class _ParquetChunks:
    """Row groups, each streamed page by page."""

    def __init__(self, file: BinaryIO) -> None:
        self._bytes = file
        self._file = pq.ParquetFile(file, buffer_size=_PAGE_BUFFER_BYTES, pre_buffer=False)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = list(accumulate(sizes, initial=0))[:-1]
        self.num_rows = sum(sizes)

    def read(self, chunk: int, column: str) -> Iterator[pa.RecordBatch]:
        """From one row group on, batches of one column, or of the bytes in it."""
        path = column if _is_binary(self.schema.field(column).type) else f"{column}.{_BYTES_FIELD}"
        groups = range(chunk, len(self.starts))
        for group in groups:
            yield from self._file.iter_batches(batch_size=1, row_groups=[group], columns=[path], use_threads=False)

    def read_all(self, columns: list[str]) -> pa.Table:
        """Some columns of the whole table."""
        most = {"max_values": _MAX_SMALL_BYTES // 16, "max_bytes": _MAX_SMALL_BYTES}
        check_pages(self._bytes, self._file.metadata, columns, **most)
        return self._file.read(columns=columns, use_threads=False)


class _ArrowChunks:
    """Record batches of an Arrow file or stream; both are read in order, because a stream knows no other way."""

    def __init__(self, file: BinaryIO, open_reader: Callable[..., object]) -> None:
        self._file, self._open = file, open_reader
        reader = self._reader([])
        self.schema = reader.schema
        is_file = open_reader is pa.ipc.open_file
        sizes = rows_of_batches(file, reader.num_record_batches if is_file else None)
        if is_file and len(sizes) < reader.num_record_batches:
            raise pa.ArrowInvalid(f"its footer names {reader.num_record_batches} record batches, found {len(sizes)}")
        self.starts = list(accumulate(sizes, initial=0))[:-1] if is_file else [0]
        self.num_rows = sum(sizes)

    def read(self, chunk: int, column: str) -> Iterator[pa.RecordBatch]:
        """From one record batch on, one column of each."""
        reader = self._reader([column])
        if self._open is pa.ipc.open_stream:
            yield from reader
        else:
            yield from (reader.get_batch(number) for number in range(chunk, reader.num_record_batches))

    def read_all(self, columns: list[str]) -> pa.Table:
        """Some columns of the whole table."""
        return self._reader(columns).read_all().select(columns)

    def _reader(self, columns: list[str]) -> pa.RecordBatchReader:
        """All columns where none is named."""
        self._file.seek(0)
        fields = [self.schema.names.index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return self._open(pa.PythonFile(self._file, mode="r"), options=options)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_field(kind: pa.DataType) -> pa.Field | None:
    if not pa.types.is_struct(kind):
        return None
    index = kind.get_field_index(_BYTES_FIELD)
    return kind.field(index) if index >= 0 and _is_binary(kind.field(index).type) else None
