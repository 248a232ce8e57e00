"""Tar shards and tables around media that were made in the test."""

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def make_shard(
    path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], *, tar_format: int = tarfile.PAX_FORMAT
) -> Path:
    """Pack members in order; a name may come twice, and carry undecodable bytes as Python does."""
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(path, "w", format=tar_format, encoding="utf-8", errors="surrogateescape") as shard:
        for name, content in pairs:
            add_member(shard, name, content)
    return path


def add_member(shard: tarfile.TarFile, name: str, content: bytes = b"", **facts: object) -> None:
    """Add one member; `facts` are TarInfo's own (type, linkname, ...)."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in facts.items():
        setattr(member, key, value)
    shard.addfile(member, io.BytesIO(content))


def make_table(
    path: Path, cells: Sequence[bytes | None], *, column: str = "bytes", rows_a_group: int = 2, **columns: list[object]
) -> Path:
    """Write cells as a Parquet or Arrow table by the name; a column named otherwise holds structs, as HF's do."""
    values = cells if column == "bytes" else [{"bytes": cell, "path": None} for cell in cells]
    kind = pa.binary() if column == "bytes" else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"label": list(range(len(cells))), column: pa.array(values, kind), **columns})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_a_group)
    else:
        opened = pa.ipc.new_stream if path.suffix == ".stream" else pa.ipc.new_file
        with opened(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_a_group)
    return path


def write_wrong_count(path: Path, kind: pa.DataType, column: str, encoding: str) -> Path:
    """Write a Parquet table of 300 values in a delta encoding whose first count of lengths says a thousand million.

    A reader that believes it makes room for four gigabytes, and fills it: all lengths are one block of zero bits.
    """
    values = pa.array([f"value {number:05d}" for number in range(300)]).cast(kind)
    schema = pa.schema([pa.field(column, kind, nullable=False)])  # so that no levels are before the count
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(pa.table([values], schema), path, column_encoding={column: encoding}, **options)
    data = bytearray(path.read_bytes())
    written = _varint(128) + _varint(4) + _varint(300)  # values of a block, its parts, and all values
    wrong = _varint(1 << 30) + _varint(1) + _varint(1_000_000_000)
    place = data.index(written)
    data[place : place + 32] = wrong.ljust(32, b"\0")
    path.write_bytes(data)
    return path


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, as Parquet's lengths are written."""
    rest, low = divmod(number, 128)
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
