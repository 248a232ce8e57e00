"""A request's rows as Parquet files that are named after it: a retry overwrites its own work.

The errors are written first and the embeddings last, so the embeddings fragment is also the mark that the request is
done; it is written even where every clip failed. Vectors are stored plain: a dictionary of floats only costs time.
Pages carry checksums, so that rot on the disk is found when it is read. The bytes depend on nothing but the rows.
"""

from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sink.atomic import write_atomically
from pipeline.sink.output import Kind, OutputFolder

_ROW_GROUP_BYTES = 64 << 20
_MAX_ROW_GROUP_ROWS = 1 << 20


def write_fragment(folder: OutputFolder, request_id: str, embeddings: pa.Table, errors: pa.Table) -> None:
    """Commit one request.

    Args:
        folder: an output that was created.
        request_id: names both fragments.
        embeddings: rows of `embeddings_schema`, possibly none.
        errors: rows of `errors_schema`; with none of them no file is written, and an earlier try's is removed.
    Raises: OutputError, after which the request is not done.
    Cost: the tables are compressed once; two or four fsyncs on a local disk.

    """
    if errors.num_rows:
        write_table(folder, Kind.ERRORS, request_id, errors)
    else:
        folder.remove(folder.name(Kind.ERRORS, request_id))
    write_table(folder, Kind.EMBEDDINGS, request_id, embeddings)


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


def done_requests(folder: OutputFolder) -> set[str]:
    """Name the requests that need no work: those whose embeddings fragment exists. Cost: one listing."""
    return set(folder.fragments(Kind.EMBEDDINGS))


def _write_parquet(table: pa.Table, file: BinaryIO) -> None:
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=[field.name for field in table.schema if pa.types.is_string(field.type)],
        row_group_size=_rows_a_group(table.schema),
        write_page_checksum=True,
    )


def _rows_a_group(schema: pa.Schema) -> int:
    """Row groups bound what a reader must hold; the vectors decide."""
    vectors = [field.type for field in schema if pa.types.is_fixed_size_list(field.type)]
    row_bytes = sum(vector.list_size * vector.value_type.bit_width // 8 for vector in vectors)
    return max(1, min(_MAX_ROW_GROUP_ROWS, _ROW_GROUP_BYTES // max(1, int(row_bytes))))
