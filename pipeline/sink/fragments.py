"""A request's rows as Parquet files that are named after it: a retry overwrites its own work.

The errors are written first and the embeddings last, so the embeddings fragment is also the mark that the request is
done; it is written even where every clip failed. Vectors are stored plain: a dictionary of floats only costs time.
Pages carry checksums, so that rot on the disk is found when it is read. The bytes depend on nothing but the rows.

A try may hold only some clips of its request: those that failed before and are done again. What the fragments say of
the other clips is carried over to the bit, so a medium that is gone by now keeps the rows it has. In this case the
embeddings exist before the errors are written; that the request is not done is then said elsewhere
(`flow/plan_store.py`).
"""

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.sink.atomic import write_atomically
from pipeline.sink.output import Kind, OutputFolder

ROW_GROUP_BYTES = 64 << 20
_MAX_ROW_GROUP_ROWS = 1 << 20


def write_fragment(folder: OutputFolder, request_id: str, embeddings: pa.Table, errors: pa.Table) -> None:
    """Commit one request.

    Args:
        folder: an output that was created.
        request_id: names both fragments.
        embeddings: rows of `embeddings_schema`, possibly none.
        errors: rows of `errors_schema`; with none of them no file is written, and an earlier try's is removed.
            Each clip of this try is in one of the two tables.
    Raises: OutputError, after which the request is not done.
    Cost: the tables are compressed once; two or four fsyncs on a local disk; one failed open where the request is new.

    """
    tried = pa.chunked_array([*embeddings["clip_id"].chunks, *errors["clip_id"].chunks], pa.string())
    embeddings = _carry_over(folder, Kind.EMBEDDINGS, request_id, tried, embeddings)
    errors = _carry_over(folder, Kind.ERRORS, request_id, tried, errors)
    if errors.num_rows:
        write_table(folder, Kind.ERRORS, request_id, errors)
    else:
        folder.remove(folder.name(Kind.ERRORS, request_id))
    write_table(folder, Kind.EMBEDDINGS, request_id, embeddings)


def _carry_over(folder: OutputFolder, kind: Kind, request_id: str, tried: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    """The rows that an earlier try left of other clips, then this try's."""
    try:
        earlier = read_table(folder, kind, request_id)
    except FileNotFoundError:
        return table
    except (OSError, pa.ArrowException) as error:
        name = folder.name(kind, request_id)
        raise OutputError(
            f"output {folder.uri!r}: {name}: cannot be read: {error}; remove it to have it made again"
        ) from error
    others = earlier.filter(pc.invert(pc.is_in(earlier["clip_id"], value_set=tried)))
    return pa.concat_tables([others.cast(table.schema), table]) if others.num_rows else table


def write_table(folder: OutputFolder, kind: Kind, stem: str, table: pa.Table) -> None:
    """Write one table as `<kind>/<stem>.parquet`, whole or not at all. Raises: OutputError."""
    write_atomically(folder, folder.name(kind, stem), lambda file: _write_parquet(table, file))


def read_table(folder: OutputFolder, kind: Kind, stem: str) -> pa.Table:
    """Read one table back. Raises: OSError or pyarrow.ArrowException where it is missing or damaged."""
    with folder.open(folder.name(kind, stem)) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        return parquet.read()


def count_rows(folder: OutputFolder, kind: Kind, stem: str) -> int:
    """Count a table's rows from its footer alone. Raises: OSError or pyarrow.ArrowException."""
    with folder.open(folder.name(kind, stem)) as file:
        return int(pq.read_metadata(file).num_rows)


def done_requests(folder: OutputFolder, makes: Kind = Kind.EMBEDDINGS) -> set[str]:
    """Name the requests that need no work: those whose fragment of what the folder is for exists. Cost: one listing."""
    return set(folder.fragments(makes))


def _write_parquet(table: pa.Table, file: BinaryIO) -> None:
    pq.write_table(table, file, row_group_size=_rows_a_group(table.schema), **parquet_options(table.schema))


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How all tables are written: for `pyarrow.parquet`'s writers."""
    return {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if pa.types.is_string(field.type)],
        "write_page_checksum": True,
    }


def _rows_a_group(schema: pa.Schema) -> int:
    """Row groups bound what a reader must hold; the vectors decide."""
    vectors = [field.type for field in schema if pa.types.is_fixed_size_list(field.type)]
    row_bytes = sum(vector.list_size * vector.value_type.bit_width // 8 for vector in vectors)
    return max(1, min(_MAX_ROW_GROUP_ROWS, ROW_GROUP_BYTES // max(1, int(row_bytes))))
