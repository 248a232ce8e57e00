"""Requests as files: an Arrow IPC file each, named as fragments are, mapped back into memory without a copy.

One record batch of one row in REQUEST_SCHEMA, not compressed, so the patch rows lie in the file as the device wants
them, and a machine with a GPU reads them as fast as its disk gives pages. A file appears whole or not at all, and is
never changed after that; one in an object store is read into memory once.
"""

import mmap
import os
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import OutputError, RequestError
from pipeline.plan.schema import RequestPlan
from pipeline.request.check import check_planned, checked_request
from pipeline.request.table import REQUEST_SCHEMA
from pipeline.sink.atomic import write_atomically
from pipeline.sink.output import Kind, OutputFolder


def write_request(folder: OutputFolder, request_id: str, table: pa.Table) -> None:
    """Write one request as `requests/<request_id>.arrow`.

    Raises: OutputError. Cost: the buffer is written from where it lies.
    """

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, REQUEST_SCHEMA) as writer:
            writer.write_table(table)

    write_atomically(folder, folder.name(Kind.REQUESTS, request_id), write)


def read_request(folder: OutputFolder, plan: RequestPlan) -> pa.Table:
    """Read the request of a plan row: one row in REQUEST_SCHEMA and nothing else, its buffer in the mapped file.

    Raises: RequestError for a file that is damaged, is no request or is not the one that was planned; OutputError where
        there is none or it cannot be read.
    Cost: no copy on a local disk, where pages are read as they are used.
    """
    where = f"prepared {folder.uri!r}: {folder.name(Kind.REQUESTS, plan.request_id)}"
    try:
        data = _bytes_of(folder, plan.request_id)
    except OSError as error:
        raise OutputError(f"{where}: cannot be read: {error.strerror or error}") from error
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:  # Arrow has all three for a damaged file
        raise RequestError(f"{where}: expected an Arrow IPC file: {error}; prepare it again") from error
    check_planned(checked_request(table, where), plan, where)
    return table.select(REQUEST_SCHEMA.names)


def _bytes_of(folder: OutputFolder, request_id: str) -> pa.Buffer:
    with folder.open(folder.name(Kind.REQUESTS, request_id)) as file:
        if folder.local is None:
            return pa.py_buffer(file.read())
        if not os.fstat(file.fileno()).st_size:
            return pa.py_buffer(b"")  # nothing cannot be mapped
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    mapped.madvise(mmap.MADV_WILLNEED)
    return pa.py_buffer(mapped)
