"""Streaming the tables of an output: a batch at a time, and only the columns that are asked for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.sink.output import Kind, OutputFolder

Row = dict[str, object]

PLAN_STEM = "plan"  # how the names of a plan's tables begin; requests are named by hex digits

_BATCH_BYTES = 16 << 20
_MAX_BATCH_ROWS = 1 << 16
_LIST_LEVELS = frozenset({"list", "element", "item"})


def stream_batches(
    folder: OutputFolder,
    kind: Kind,
    stem: str,
    columns: Collection[str] | None = None,
    optional: Collection[str] = (),
    batch_rows: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Read one fragment in batches of about 16 MiB of vectors, checking page checksums.

    Args:
        folder: the output.
        kind: of table.
        stem: the fragment's name.
        columns: names, `a.b` for field b of the structs in list a; None takes every column.
        optional: further names that may be absent.
        batch_rows: rows of one batch, where they are large for another reason than their vectors.
    Raises: OSError or pyarrow.ArrowException for a missing or damaged file, KeyError for a missing column.

    """
    with folder.open(folder.name(kind, stem)) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        leaves = _leaves(parquet)
        if columns is not None:
            missing = [name for name in columns if name not in leaves]
            if missing:
                raise KeyError(f"expected columns {', '.join(missing)}, got {', '.join(leaves)}")
            leaves = {name: path for name, path in leaves.items() if name in columns or name in optional}
        rows = batch_rows or _batch_rows(parquet.schema_arrow)
        yield from parquet.iter_batches(batch_size=rows, columns=list(leaves.values()))


def stream_rows(
    folder: OutputFolder, kind: Kind, stem: str, columns: Collection[str], optional: Collection[str] = ()
) -> Iterator[Row]:
    """Like `stream_batches`, row by row as Python values."""
    batch_rows = 256 if any("." in column for column in columns) else None
    for batch in stream_batches(folder, kind, stem, columns, optional, batch_rows):
        yield from batch.to_pylist()


@contextmanager
def readable(folder: OutputFolder, kind: Kind, stem: str) -> Iterator[None]:
    """Around reading one table that a run cannot do without.

    Raises: OutputError that names it and says what to do, where it is cut off, damaged, gone or of another version.
    """
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        name = folder.name(kind, stem)
        advice = "restore it from a copy, or name another --out"
        if kind is Kind.EMBEDDINGS or (kind is Kind.ERRORS and not stem.startswith(PLAN_STEM)):
            both = " and ".join(folder.name(of, stem) for of in sorted({kind, Kind.EMBEDDINGS}))
            advice = f"remove {both} and run the same command again: the request is done again"
        raise OutputError(f"output {folder.uri!r}: {name}: cannot be read: {error}; {advice}") from error


def _leaves(parquet: pq.ParquetFile) -> dict[str, str]:
    """Readable names of the physical columns to their paths in the file (`clips.list.element.clip_ids...`)."""
    paths = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
    return {".".join(part for part in path.split(".") if part not in _LIST_LEVELS): path for path in paths}


def _batch_rows(schema: pa.Schema) -> int:
    vectors = [field.type for field in schema if pa.types.is_fixed_size_list(field.type)]
    row_bytes = sum(vector.list_size * vector.value_type.bit_width // 8 for vector in vectors)
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, int(row_bytes))))
