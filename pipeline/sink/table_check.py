"""Checking the copies of the embeddings, compacted table and Lance dataset, against the fragments they were made of.

Every part is read once; a part is good when its rows are those of its fragments, in order, and no more. A fragment
that was written anew since, or that is not in the copy, is newer and no fault of the copy.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import OutputError, UsageError
from pipeline.sink.books import Findings
from pipeline.sink.compact import Manifest, part_rows, read_manifest
from pipeline.sink.fragments import read_table
from pipeline.sink.lance_table import DATASET, file_name, file_rows, has_rows, open_dataset, read_books
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.parts import CompactedFragment, Part, Rows, fragment_digest

if TYPE_CHECKING:
    from lance import LanceDataset


class _CopyCheck:
    """What the checks of both copies know; `num_rows` is None where there is no copy."""

    def __init__(self, folder: OutputFolder, findings: Findings) -> None:
        self._folder = folder
        self._findings = findings
        self.num_rows: int | None = None
        self.num_newer_requests = 0


class TableCheck(_CopyCheck):
    """Checks the compacted table."""

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
            newer |= _newer_after_check(self._folder, self._findings, part, part_rows(self._folder, part))
        self.num_newer_requests = len(newer)

    def _check_ids(self, manifest: Manifest) -> None:
        if sum(len(part.fragments) for part in manifest.parts) != len(manifest.digests):
            self._findings.add(f"table {manifest.generation}: a request is in it twice")


class LanceCheck(_CopyCheck):
    """Checks the current version of the Lance dataset.

    What cannot be read for want of pylance is not proven, and so a finding.
    """

    def read(self, request_ids: Sequence[str]) -> None:
        """Check the dataset of an output that holds these fragments."""
        try:
            dataset = open_dataset(self._folder)
            if dataset is not None:
                self._check(dataset, read_books(self._folder), request_ids)
        except (OutputError, UsageError) as error:
            self._findings.add(f"{DATASET}: {error}")

    def _check(self, dataset: "LanceDataset", books: dict[str, Part], request_ids: Sequence[str]) -> None:
        self.num_rows = 0
        newer: set[str] = set()
        held: set[str] = set()
        for fragment in dataset.get_fragments():
            self.num_rows += fragment.metadata.num_rows
            name = file_name(fragment.metadata)
            part = books.get(name)
            if part is None:
                self._findings.add(f"{name}: not written by Patchwire; `patchwire compact --lance` makes it anew")
                continue
            requests = {copied.request_id for copied in part.fragments}
            for request_id in sorted(held & requests):
                self._findings.add(f"{name}: request {request_id!r} is in the dataset twice")
            held |= requests
            rows = nullcontext(file_rows(dataset, fragment))
            newer |= _newer_after_check(self._folder, self._findings, part, rows)
        newer |= {request_id for request_id in set(request_ids) - held if has_rows(self._folder, request_id)}
        self.num_newer_requests = len(newer)


def _newer_after_check(
    folder: OutputFolder, findings: Findings, part: Part, opened: AbstractContextManager[Rows]
) -> set[str]:
    """Hold a part's rows against their fragments, and say which of those were written anew since."""
    newer = set()
    try:
        with opened as rows:
            for fragment in part.fragments:
                found = rows.take(fragment.num_rows)
                if _is_newer(folder, findings, fragment):
                    newer.add(fragment.request_id)
                elif not found.equals(read_table(folder, Kind.EMBEDDINGS, fragment.request_id)):
                    findings.add(f"{part.name}: the rows of request {fragment.request_id!r} differ from its own")
            if rows.take(1).num_rows:
                findings.add(f"{part.name}: more rows than its requests have")
    except (OSError, ValueError, pa.ArrowException) as error:
        findings.add(f"{part.name}: cannot be read: {error}")
    return newer


def _is_newer(folder: OutputFolder, findings: Findings, fragment: CompactedFragment) -> bool:
    try:
        return fragment_digest(folder, fragment.request_id) != fragment.digest
    except FileNotFoundError:
        findings.add(f"request {fragment.request_id!r} is in the table and has no fragment")
        return True
