"""Proof, from the files alone, that rows + errors = plan.

Every planned clip has exactly its rows or exactly one error row; every source has its clips or one error row; nothing
is there that was not planned, nothing twice, nothing unreadable, nothing of another config or model, no vector that
is not finite or of another kind than the first, no error row in another file than where a retry looks for it, and no
clip fewer than the last run counted.
Request by request, so that memory holds a batch of vectors and one request's clips at a time.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.sink.books import (
    ErrorBooks,
    Findings,
    PlannedClip,
    PlannedRequest,
    SourceKey,
    planned_requests,
    read_errors,
    read_sources,
)
from pipeline.sink.output import RUN_RECORD, Kind, OutputFolder
from pipeline.sink.rows import Constants, FragmentCheck
from pipeline.sink.run_record import RunRecord, check_purpose, read_run_record
from pipeline.sink.table_check import LanceCheck, TableCheck

_UNREADABLE = (OSError, KeyError, ValueError, TypeError, pa.ArrowException)
_LEVELS = ("clip", "frame", "token")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The books of an output. A clip under two paths counts twice; `discrepancies` holds the first 20 sentences.

    A source counts once a path; it is failed when it has an error row of its own. `num_table_rows` are those of the
    compacted table, None where there is none; `num_newer_requests` were written since it was made. `num_lance_rows`
    and `num_newer_than_lance` are the same of the Lance dataset.
    """

    num_sources: int
    num_failed_sources: int
    num_requests: int
    num_clips: int
    num_embedded_clips: int
    num_failed_clips: int
    num_rows: int
    num_error_rows: int
    num_discrepancies: int
    discrepancies: tuple[str, ...]
    num_table_rows: int | None
    num_newer_requests: int
    num_lance_rows: int | None
    num_newer_than_lance: int

    @property
    def ok(self) -> bool:
        """Whether the books close."""
        return self.num_discrepancies == 0


def verify_output(folder: OutputFolder) -> VerifyReport:
    """Check an output folder.

    Raises: OutputError where there is no such folder, or it holds prepared requests. Everything else that is wrong is
        in the report.
    Cost: every fragment is read once; about a hundred bytes of memory a clip, and a batch of vectors.
    """
    check = _Verification(folder)
    record = check.run_record()
    if record is not None:
        check.errors()
        check.plan(record)
        check.sources()
        check.counts(record)
        check.copies()
    return check.report()


class _Verification:
    """The books while they are being closed."""

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self._findings = Findings()
        self._errors = ErrorBooks()
        self._sources: dict[SourceKey, dict[object, int]] = {}
        self._planned_clips: set[str] = set()
        self._clips_of_source: dict[SourceKey, int] = {}
        self._requests: set[str] = set()
        self._num_embedded = 0
        self._vector_types: dict[str, pa.DataType] = {}
        self._num_rows = 0
        self._table = TableCheck(folder, self._findings)
        self._lance = LanceCheck(folder, self._findings)

    def run_record(self) -> RunRecord | None:
        """Read the run's own statement; without it nothing else can be judged."""
        try:
            record = read_run_record(self._folder)
        except OutputError as error:
            self._findings.add(str(error))
            return None
        if record is not None:
            check_purpose(self._folder, record, Kind.EMBEDDINGS)
        if record is None and not any(self._folder.fragments(kind) for kind in Kind):
            raise OutputError(f"output {self._folder.uri!r}: expected an output of `patchwire embed`, found none")
        if record is None:
            self._findings.add(f"{RUN_RECORD} is missing, so no row can be judged")
        elif _level(record) is None:
            self._findings.add(f"{RUN_RECORD}: output.level: expected one of {', '.join(_LEVELS)}")
            return None
        elif record.config_hash != record.model.hash_with(record.result_config):
            self._findings.add(f"{RUN_RECORD}: config_hash is not that of its result_config and model")
        return record

    def errors(self) -> None:
        """Count the error rows."""
        for stem in self._folder.fragments(Kind.ERRORS):
            self._reading(Kind.ERRORS, stem, partial(read_errors, self._folder, stem, self._errors))
        for stem in sorted(self._errors.strays):
            self._findings.add(f"{self._folder.name(Kind.ERRORS, stem)}: an error row of a source, which is the plan's")

    def plan(self, record: RunRecord) -> None:
        """Hold every request against its fragment, then look for what was never planned."""
        constants = Constants(
            level=_level(record) or "",
            model_id=record.model.model_id,
            model_revision=record.model.model_revision,
            config_hash=record.config_hash,
        )
        present = set(self._folder.fragments(Kind.EMBEDDINGS))
        for stem in self._folder.fragments(Kind.PLAN):
            self._reading(Kind.PLAN, stem, partial(self._plan_file, stem, constants, present))
        for stem in sorted(present - self._requests):
            self._findings.add(f"{self._folder.name(Kind.EMBEDDINGS, stem)}: no such request is planned")
        for name in self._folder.entries(Kind.EMBEDDINGS):
            if not name.startswith((".", "_")) and not name.endswith(Kind.EMBEDDINGS.suffix):
                self._findings.add(
                    f"{Kind.EMBEDDINGS}/{name}: no fragment, and readers of the folder may take it for one"
                )
        for clip_id in sorted(self._errors.by_clip.keys() - self._planned_clips):
            self._findings.add(f"errors: clip {clip_id!r} has an error row and is not planned")

    def sources(self) -> None:
        """Hold every source against the plan."""
        for stem in self._folder.fragments(Kind.SOURCES):
            self._reading(Kind.SOURCES, stem, partial(read_sources, self._folder, stem, self._sources))
        for key, spans in self._sources.items():
            planned = self._clips_of_source.get(key, 0)
            if planned != sum(spans.values()):
                self._findings.add(f"source {key[0]!r} ({key[1]}): {sum(spans.values())} clips, {planned} in the plan")
        without_clips: Counter[str] = Counter()
        for (uri, _), spans in self._sources.items():
            without_clips[uri] += list(spans.values()).count(0)
        for uri in sorted(without_clips.keys() | self._errors.by_source.keys()):
            self._check_failed(uri, without_clips[uri], self._errors.by_source[uri])
        for uri, source_id in self._clips_of_source.keys() - self._sources.keys():
            self._findings.add(f"source {uri!r} ({source_id}) is planned and not among the sources")

    def _check_failed(self, uri: str, num_without_clips: int, num_errors: int) -> None:
        if num_errors == num_without_clips:
            return
        if not num_errors:
            self._findings.add(f"source {uri!r} has neither clips nor an error row")
        elif not num_without_clips:
            self._findings.add(f"source {uri!r} has an error row, and did not fail")
        else:
            self._findings.add(f"source {uri!r} failed {num_without_clips} times and has {num_errors} error rows")

    def counts(self, record: RunRecord) -> None:
        """Hold what is planned against what the last run that came to its end counted: planned clips stay planned.

        Sources do not: a record of a file that failed goes when the file is found mended, before that run's end.
        """
        counted, found = record.counts.get("clips", 0), len(self._planned_clips)
        if counted > found:
            self._findings.add(f"{RUN_RECORD} counts {counted} clips, {found} are planned")

    def copies(self) -> None:
        """Hold the compacted table and the Lance dataset, as far as they are there, against the fragments."""
        request_ids = self._folder.fragments(Kind.EMBEDDINGS)
        self._table.read(request_ids)
        self._lance.read(request_ids)

    def report(self) -> VerifyReport:
        """State the books as they are."""
        failed = {uri for uri, num in self._errors.by_source.items() if num}
        return VerifyReport(
            num_sources=len(failed.union(uri for uri, _ in self._sources)),
            num_failed_sources=len(failed),
            num_requests=len(self._requests),
            num_clips=len(self._planned_clips),
            num_embedded_clips=self._num_embedded,
            num_failed_clips=len(self._errors.by_clip.keys() & self._planned_clips),
            num_rows=self._num_rows,
            num_error_rows=self._errors.by_clip.total() + self._errors.by_source.total(),
            num_discrepancies=self._findings.num,
            discrepancies=tuple(self._findings.sentences),
            num_table_rows=self._table.num_rows,
            num_newer_requests=self._table.num_newer_requests,
            num_lance_rows=self._lance.num_rows,
            num_newer_than_lance=self._lance.num_newer_requests,
        )

    def _reading(self, kind: Kind, stem: str, read: Callable[[], None]) -> bool:
        try:
            read()
        except _UNREADABLE as error:
            self._findings.add(f"{self._folder.name(kind, stem)}: cannot be read: {error}")
            return False
        return True

    def _plan_file(self, stem: str, constants: Constants, present: set[str]) -> None:
        for request in planned_requests(self._folder, stem, constants.level):
            if request.request_id in self._requests:
                self._findings.add(f"request {request.request_id!r} is planned twice")
                continue
            self._requests.add(request.request_id)
            self._enter(request)
            self._check_request(request, constants, present)

    def _enter(self, request: PlannedRequest) -> None:
        for clip in request.clips:
            if clip.clip_id in self._planned_clips:
                self._findings.add(f"request {request.request_id!r}: clip {clip.clip_id!r} is planned twice")
            self._planned_clips.add(clip.clip_id)
            key = (clip.source_uri, clip.source_id)
            self._clips_of_source[key] = self._clips_of_source.get(key, 0) + 1

    def _check_request(self, request: PlannedRequest, constants: Constants, present: set[str]) -> None:
        where = self._folder.name(Kind.EMBEDDINGS, request.request_id)
        if request.request_id not in present:
            self._findings.add(f"{where} is missing: {len(request.clips)} clips are not done")
            return
        check = FragmentCheck(request, constants, self._vector_types, where, self._findings)
        readable = self._reading(
            Kind.EMBEDDINGS, request.request_id, lambda: check.read(self._folder, request.request_id)
        )
        self._num_rows += check.num_rows
        for clip in request.clips if readable else ():
            self._close(clip, check.num_rows_of(clip), request.request_id)

    def _close(self, clip: PlannedClip, num_rows: int, request_id: str) -> None:
        num_errors = self._errors.by_clip[clip.clip_id]
        name = f"{self._folder.name(Kind.EMBEDDINGS, request_id)}: clip {clip.clip_id!r} of {clip.source_uri!r}"
        if num_errors and num_rows:
            self._findings.add(f"{name} has {num_rows} rows and an error row")
        elif num_errors > 1:
            self._findings.add(f"{name} has {num_errors} error rows")
        elif not num_errors and num_rows != clip.num_rows:
            self._findings.add(f"{name} has {num_rows} of {clip.num_rows} rows and no error row")
        elif num_rows:
            self._num_embedded += 1
        elif self._errors.file_of[clip.clip_id] != request_id:
            there = self._folder.name(Kind.ERRORS, self._errors.file_of[clip.clip_id])
            self._findings.add(f"{name} has its error row in {there}, where no retry looks for it")


def _level(record: RunRecord) -> str | None:
    output = record.result_config.get("output")
    level = output.get("level") if isinstance(output, dict) else None
    return level if isinstance(level, str) and level in _LEVELS else None
