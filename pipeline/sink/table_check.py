"""Checking the compacted table against the fragments it was made of, a request at a time."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.sink.books import Findings
from pipeline.sink.compact import CompactedFragment, Manifest, Part, PartReader, fragment_digest, read_manifest
from pipeline.sink.fragments import read_table
from pipeline.sink.output import Kind, OutputFolder


class TableCheck:
    """Reads every part once; a part is good when its rows are those of its fragments, in order, and no more.

    A fragment that was written anew since, or that is not in the table, is newer and no fault of the table.
    """

    def __init__(self, folder: OutputFolder, findings: Findings) -> None:
        self._folder = folder
        self._findings = findings
        self.num_rows: int | None = None
        self.num_newer_requests = 0

    def read(self, request_ids: Sequence[str]) -> None:
        """Check the table of an output that holds these fragments."""
        try:
            manifest = read_manifest(self._folder)
        except OutputError as error:
            self._findings.add(str(error))
            return
        if manifest is None:
            return
        self.num_rows = manifest.num_rows
        self._check_ids(manifest)
        newer = set(request_ids) - manifest.digests.keys()
        for part in manifest.parts:
            try:
                newer |= self._check_part(part)
            except (OSError, ValueError, pa.ArrowException) as error:
                self._findings.add(f"{part.name}: cannot be read: {error}")
        self.num_newer_requests = len(newer)

    def _check_ids(self, manifest: Manifest) -> None:
        if sum(len(part.fragments) for part in manifest.parts) != len(manifest.digests):
            self._findings.add(f"table {manifest.generation}: a request is in it twice")

    def _check_part(self, part: Part) -> set[str]:
        newer = set()
        with PartReader(self._folder, part) as rows:
            for fragment in part.fragments:
                found = rows.take(fragment.num_rows)
                if self._is_newer(fragment):
                    newer.add(fragment.request_id)
                elif not found.equals(read_table(self._folder, Kind.EMBEDDINGS, fragment.request_id)):
                    self._findings.add(f"{part.name}: the rows of request {fragment.request_id!r} differ from its own")
            if rows.take(1).num_rows:
                self._findings.add(f"{part.name}: more rows than its requests have")
        return newer

    def _is_newer(self, fragment: CompactedFragment) -> bool:
        try:
            return fragment_digest(self._folder, fragment.request_id) != fragment.digest
        except FileNotFoundError:
            self._findings.add(f"request {fragment.request_id!r} is in the table and has no fragment")
            return True
