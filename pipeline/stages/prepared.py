"""The stages of a flow that is cut in two: one machine decodes and stores requests, another loads and encodes them.

Store    one request    -> a file, and a receipt       (CPU, in the process that decoded it)
Load     one plan row   -> its request, mapped         (in the process that encodes it)
"""

import time

import pyarrow as pa

from pipeline.plan.schema import requests_of
from pipeline.request.table import unwrap_request
from pipeline.sink.fragments import write_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.schema import errors_schema, errors_table
from pipeline.stages.request_file import read_request, write_request
from pipeline.stages.write import WriteTarget, receipt_of


class Store:
    """Writes requests to be embedded elsewhere, and beside each an errors table of the clips that failed."""

    def __init__(self, target: WriteTarget) -> None:
        self._folder = OutputFolder(target.output_uri)
        self._errors_schema = errors_schema(model=target.settings.model, config_hash=target.settings.config_hash)

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of REQUEST_SCHEMA to one row of RECEIPT_SCHEMA; the file exists when it returns."""
        started = time.perf_counter()
        meta = unwrap_request(table).meta
        if meta.failures:
            write_table(self._folder, Kind.ERRORS, meta.request_id, errors_table(meta.failures, self._errors_schema))
        else:
            self._folder.remove(self._folder.name(Kind.ERRORS, meta.request_id))
        write_request(self._folder, meta.request_id, table)
        return receipt_of(meta, write_seconds=time.perf_counter() - started)


class Load:
    """Gives prepared requests as they were stored, checked against the plan."""

    def __init__(self, prepared_uri: str) -> None:
        self._folder = OutputFolder(prepared_uri)

    def __call__(self, plan: pa.Table) -> pa.Table:
        """One row of PLAN_SCHEMA to one row of REQUEST_SCHEMA, whose buffer lies in the mapped file.

        Raises: RequestError or OutputError as `read_request` does.
        """
        (request,) = requests_of(plan)
        return read_request(self._folder, request)
