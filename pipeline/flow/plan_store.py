"""A run's plan where the output keeps it, and which requests of it are still to do.

What is to do: the plan minus the fragments that exist, plus the failed clips that a retry has announced. A retry is
announced in `OUT/retry.json` before its first request and forgotten after its last, because from then on a request's
fragment alone does not say that it is done: killed between the two, the next `embed` or `retry` ends it. Which clips
are left follows from the fragments (those without rows), so a clip that came through is never done again.
"""

import json
from collections.abc import Collection, Sequence
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.plan.planner import EMPTY_PLAN, Plan, sources_of, sources_table
from pipeline.plan.schema import Failure, RequestPlan, failures_of, plan_table, requests_of
from pipeline.sink.atomic import write_atomically
from pipeline.sink.fragments import done_requests, read_table, write_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.reading import stream_batches
from pipeline.sink.schema import errors_table

PLAN_STEM = "plan"
RETRY = "retry.json"


def read_plan(folder: OutputFolder) -> Plan:
    """Read the output's plan, or EMPTY_PLAN where there is none yet."""
    stems = folder.fragments(Kind.PLAN), folder.fragments(Kind.SOURCES)
    if stems != ((PLAN_STEM,), (PLAN_STEM,)):
        return EMPTY_PLAN
    return Plan(
        requests=tuple(requests_of(read_table(folder, Kind.PLAN, PLAN_STEM))),
        sources=sources_of(read_table(folder, Kind.SOURCES, PLAN_STEM)),
        failures=_read_failures(folder),
    )


def _read_failures(folder: OutputFolder) -> tuple[Failure, ...]:
    if PLAN_STEM not in folder.fragments(Kind.ERRORS):
        return ()
    return failures_of(read_table(folder, Kind.ERRORS, PLAN_STEM))


def write_plan(folder: OutputFolder, plan: Plan, errors_schema: pa.Schema) -> None:
    """The list of sources comes last: without it the next run plans again, to the same requests."""
    write_table(folder, Kind.ERRORS, PLAN_STEM, errors_table(plan.failures, errors_schema))
    write_table(folder, Kind.PLAN, PLAN_STEM, plan_table(plan.requests))
    write_table(folder, Kind.SOURCES, PLAN_STEM, sources_table(plan.sources))


def announce_retry(folder: OutputFolder, request_ids: Collection[str]) -> None:
    """Say that the failed clips of these requests are to be done again. Raises: OutputError."""
    data = (json.dumps({"request_ids": sorted(request_ids)}) + "\n").encode("ascii")

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomically(folder, RETRY, write)


def announced_retry(folder: OutputFolder) -> frozenset[str]:
    """Name the requests that a retry announced and did not end. Raises: OutputError."""
    try:
        with folder.open(RETRY) as file:
            return frozenset(json.loads(file.read())["request_ids"])
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"output {folder.uri!r}: {RETRY}: cannot be read: {error}") from error


def end_retry(folder: OutputFolder) -> None:
    """Forget the announcement, if there is one: everything in it is done. Raises: OutputError."""
    folder.remove(RETRY)


def missing_requests(
    folder: OutputFolder, requests: Sequence[RequestPlan], makes: Kind = Kind.EMBEDDINGS
) -> list[RequestPlan]:
    """What is to do; a request that is done but for failed clips comes with these clips alone."""
    done, retried = done_requests(folder, makes), announced_retry(folder)
    missing = []
    for request in requests:
        if request.request_id not in done:
            missing.append(request)
        elif request.request_id in retried:
            missing.extend(_without_rows(folder, request))
    return missing


def _without_rows(folder: OutputFolder, request: RequestPlan) -> list[RequestPlan]:
    batches = stream_batches(folder, Kind.EMBEDDINGS, request.request_id, ("clip_id",))
    embedded = {clip_id for batch in batches for clip_id in batch.column("clip_id").unique().to_pylist()}
    clips = tuple(clip for clip in request.clips if not embedded.issuperset(clip.clip_ids))
    return [RequestPlan(request_id=request.request_id, clips=clips)] if clips else []
