"""The ways to read an output, by its listing, its table's manifest and Lance; and the same rows in other bytes."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sink.compact import read_manifest
from pipeline.sink.fragments import read_table
from pipeline.sink.lance_table import open_dataset
from pipeline.sink.output import Kind, OutputFolder


def fragments_table(folder: OutputFolder) -> pa.Table:
    """What a reader that lists `embeddings/` sees."""
    return pa.concat_tables(
        read_table(folder, Kind.EMBEDDINGS, stem) for stem in sorted(folder.fragments(Kind.EMBEDDINGS))
    )


def manifest_table(folder: OutputFolder) -> pa.Table:
    """What a reader of the manifest sees."""
    manifest = read_manifest(folder)
    assert manifest is not None
    tables = []
    for part in manifest.parts:
        with folder.open(part.name) as file:
            tables.append(pq.read_table(file))
    return pa.concat_tables(tables)


def lance_table(folder: OutputFolder) -> pa.Table:
    """What a reader of the Lance dataset sees, in the order of the requests' names, which Lance does not keep."""
    dataset = open_dataset(folder)
    assert dataset is not None
    table = dataset.to_table()
    rows = sorted(enumerate(table["request_id"].to_pylist()), key=lambda row: (row[1], row[0]))
    return table.take([number for number, _ in rows])


def rewrite(folder: OutputFolder, stem: str, compression: str) -> None:
    """The same rows in other bytes, as another version of Parquet would write them."""
    sink = pa.BufferOutputStream()
    pq.write_table(read_table(folder, Kind.EMBEDDINGS, stem), sink, compression=compression)
    put(folder, folder.name(Kind.EMBEDDINGS, stem), sink.getvalue().to_pybytes())


def put(folder: OutputFolder, name: str, data: bytes) -> None:
    from fsspec.core import url_to_fs

    store, root = url_to_fs(folder.uri)
    store.pipe_file(f"{root}/{name}", data)
