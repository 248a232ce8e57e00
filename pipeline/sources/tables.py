"""Tables that hold media themselves: a Parquet or Arrow file with exactly one column of bytes.

Each row is a source, `row://<column>/<number>::<file>`, in the span of its `start_seconds` and `end_seconds` if there
are such columns. A `uri` column makes a table a manifest instead. A table without media stays a plain file, and one
with several columns of them is refused, because none is meant more than the others.
"""

import functools
import io
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from pipeline.errors import ErrorCode, MediaError, Stage, UsageError
from pipeline.media.inside import Inside, row_uri
from pipeline.media.location import open_binary
from pipeline.sources.items import Found, SourceFailure, SourceItem, failure_of
from pipeline.sources.manifest import MAX_ROWS, SPAN_COLUMNS, URI_COLUMN, checked_span

_SUFFIXES = (".parquet", ".arrow", ".feather")


def is_table(uri: str) -> bool:
    """Whether a file is looked into as a table, by its suffix."""
    return uri.lower().endswith(_SUFFIXES)


def holds_media(uri: str) -> bool:
    """Whether a table holds media, instead of naming them; one that cannot be read does not."""
    found = next(list_rows(SourceItem(uri=uri, num_bytes=0, modified_ns=0)), None)
    return isinstance(found, SourceFailure) or (found is not None and found.uri != uri)


def list_rows(table: SourceItem) -> Iterator[Found]:
    """Give the rows of a table that holds media in order, or the file itself where it is no such table.

    Raises: UsageError for a bad span.
    """
    from pipeline.media.table_cells import TableCells, media_columns

    try:
        with open_binary(table.uri, stage=Stage.LIST) as file:
            num_bytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            cells = TableCells(file)
            columns = [] if URI_COLUMN in cells.schema.names else media_columns(cells.schema)
            num_rows = cells.num_rows
            # Said by a footer: many rows of equal spans take no bytes in the file, and each would be held in memory.
            is_bomb = num_rows > min(num_bytes, MAX_ROWS)
            spans = {}
            if len(columns) == 1 and not is_bomb:
                named = [name for name in SPAN_COLUMNS if name in cells.schema.names]
                for name in named:
                    _require_numbers(table.uri, cells.schema.field(name))
                spans = cells.small_columns(named)
    except UsageError:
        raise
    except MediaError as error:
        yield SourceFailure(uri=table.uri, code=error.code, message=error.message)
        return
    except Exception:  # Arrow's kinds, a disk's and each store's: no table that can be read
        columns = []
    if not columns:
        yield table
        return
    if len(columns) > 1:
        what = f"expected one column of media, found {', '.join(columns)}; name the one that is meant `bytes`"
        yield failure_of(table.uri, ErrorCode.UNSUPPORTED_MEDIA, what)
        return
    if is_bomb:
        what = f"{num_rows} rows of media in {num_bytes} bytes; expected at most one a byte, and {MAX_ROWS}"
        yield failure_of(table.uri, ErrorCode.CORRUPT_MEDIA, what)
        return
    for row in range(num_rows):
        start, end = (spans[name][row] if name in spans else None for name in SPAN_COLUMNS)
        start, end = checked_span(f"table {table.uri!r}, row {row}", start, end)
        uri = row_uri(table.uri, columns[0], row)
        share = table.num_bytes // num_rows
        yield replace(table, uri=uri, num_bytes=share, start_seconds=start, end_seconds=end)


def _require_numbers(uri: str, field: pa.Field) -> None:
    """Text would be decoded whole before its length is known. Raises: UsageError."""
    if not (pa.types.is_primitive(field.type) or pa.types.is_null(field.type)):
        raise UsageError(f"table {uri!r}: {field.name}: expected a column of numbers of seconds, got {field.type}")


def named_row(item: SourceItem, inside: Inside) -> Found:
    """Give one cell by its own name; whether it is there shows when it is read."""
    if inside.cell is None:
        return failure_of(item.uri, ErrorCode.UNREADABLE, "expected row://<column>/<number>::<file>")
    return replace(item, num_bytes=item.num_bytes // max(1, _num_rows(inside.container, item.modified_ns)))


@functools.lru_cache(maxsize=1)
def _num_rows(uri: str, _modified_ns: int) -> int:
    """Rows of the table that was asked for last, 0 where it cannot be read."""
    from pipeline.media.table_cells import TableCells

    try:
        with open_binary(uri, stage=Stage.LIST) as file:
            return TableCells(file).num_rows
    except Exception:  # reading the cell says it better
        return 0
