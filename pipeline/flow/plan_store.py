"""A run's plan where the output keeps it, in shards, and which requests of it are still to do.

A shard is a plan of its own over its sources: `plan`, `plan-00001`, ... in each of OUT/errors, OUT/plan and
OUT/sources. A source stays with the shard that has seen its path, so what is known of it, and what may be planned
again, is in one place. New sources fill the last shard if they all fit, and open new ones otherwise (`plan/shards.py`).

What is to do: the plan minus the fragments that exist, plus the failed clips that a retry has announced. A retry is
announced in `OUT/retry.json` before its first request and forgotten after its last, because from then on a request's
fragment alone does not say that it is done: killed between the two, the next `embed` or `retry` ends it. Which clips
are left follows from the fragments (those without rows), so a clip that came through is never done again.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.plan.planner import EMPTY_PLAN, Plan, sources_of, sources_table
from pipeline.plan.schema import Failure, RequestPlan, failures_of, plan_table, requests_of
from pipeline.plan.shards import ShardLimits, cut
from pipeline.sink.atomic import write_atomically
from pipeline.sink.fragments import done_requests, read_table, write_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.reading import PLAN_STEM, readable, stream_batches, stream_rows
from pipeline.sink.schema import errors_table
from pipeline.sources.listing import Listing, SourceFailure, SourceItem

RETRY = "retry.json"
_STEM = re.compile(rf"{PLAN_STEM}(-\d{{5,}})?")
_ROWS_PER_BATCH = 256


def plan_stems(folder: OutputFolder) -> tuple[str, ...]:
    """Name the shards that were planned to their end: those whose list of sources exists, written last."""
    begun = set(folder.fragments(Kind.PLAN))
    return tuple(stem for stem in folder.fragments(Kind.SOURCES) if stem in begun and _STEM.fullmatch(stem))


def drop_unfinished(folder: OutputFolder) -> None:
    """Remove what a killed run left of a shard that it did not plan to its end; none of its requests was begun."""
    finished = set(plan_stems(folder))
    for kind in (Kind.SOURCES, Kind.PLAN, Kind.ERRORS):
        for stem in folder.fragments(kind):
            if _STEM.fullmatch(stem) and stem not in finished:
                folder.remove(folder.name(kind, stem))


def assign(folder: OutputFolder, listing: Listing, limits: ShardLimits) -> list[tuple[str, Listing]]:
    """Say which shard each source of a listing is planned in: every known shard, even for none, then new ones.

    Cost: the paths of all known sources and of the listing are kept while this runs.
    """
    stems = plan_stems(folder)
    shard_of, last = _known_paths(folder, stems)
    new = [item for item in listing.items if item.uri not in shard_of]
    if stems and limits.hold(last.num_sources + len(new), last.num_bytes + sum(item.num_bytes for item in new)):
        shard_of.update(dict.fromkeys((item.uri for item in new), stems[-1]))
    else:
        for number, items in enumerate(cut(new, limits), start=_next_number(stems)):
            shard_of.update(dict.fromkeys((item.uri for item in items), _stem(number)))
    found: dict[str, tuple[list[SourceItem], list[SourceFailure]]] = {stem: ([], []) for stem in stems}
    for item in listing.items:
        found.setdefault(shard_of[item.uri], ([], []))[0].append(item)
    # What cannot be listed has no size to be cut by.
    anywhere = max(found, default=_stem(0))
    for failure in listing.failures:
        found.setdefault(shard_of.get(failure.uri, anywhere), ([], []))[1].append(failure)
    return [
        (stem, Listing(items=tuple(items), failures=tuple(failures)))
        for stem, (items, failures) in sorted(found.items())
    ]


@dataclass(frozen=True, slots=True)
class _ShardSize:
    num_sources: int = 0
    num_bytes: int = 0


def _known_paths(folder: OutputFolder, stems: Sequence[str]) -> tuple[dict[str, str], _ShardSize]:
    """The shard of every known path, and how large the last shard is.

    The last one's paths are those of its requests, too: killed while it was being added to, it may hold requests whose
    sources are not listed yet.
    """
    shard_of: dict[str, str] = {}
    size = _ShardSize()
    for stem in stems:
        size = _ShardSize()
        with readable(folder, Kind.SOURCES, stem):
            for batch in stream_batches(folder, Kind.SOURCES, stem, ("source_uri", "num_bytes")):
                shard_of.update(dict.fromkeys(batch.column("source_uri").to_pylist(), stem))
                size = _ShardSize(
                    size.num_sources + batch.num_rows, size.num_bytes + (pc.sum(batch["num_bytes"]).as_py() or 0)
                )
    for stem in stems[-1:]:
        with readable(folder, Kind.PLAN, stem):
            for row in stream_rows(folder, Kind.PLAN, stem, ("clips.source_uris",)):
                clips: list[dict[str, list[str]]] = row["clips"]  # type: ignore[assignment]
                shard_of.update((uri, stem) for clip in clips for uri in clip["source_uris"] if uri not in shard_of)
    return shard_of, size


def _stem(number: int) -> str:
    return f"{PLAN_STEM}-{number:05d}" if number else PLAN_STEM


def _next_number(stems: Sequence[str]) -> int:
    return int(stems[-1].removeprefix(PLAN_STEM).removeprefix("-") or 0) + 1 if stems else 0


def read_plan(folder: OutputFolder, stem: str) -> Plan:
    """Read one shard of the output's plan, or EMPTY_PLAN where there is none of that name yet.

    Raises: OutputError that names the file where one of the shard's three cannot be read.
    """
    if stem not in plan_stems(folder):
        return EMPTY_PLAN
    with readable(folder, Kind.PLAN, stem):
        batches = stream_batches(folder, Kind.PLAN, stem, batch_rows=_ROWS_PER_BATCH)
        requests = tuple(request for batch in batches for request in requests_of(pa.Table.from_batches([batch])))
    with readable(folder, Kind.SOURCES, stem):
        sources = sources_of(read_table(folder, Kind.SOURCES, stem))
    return Plan(requests=requests, sources=sources, failures=_read_failures(folder, stem))


def _read_failures(folder: OutputFolder, stem: str) -> tuple[Failure, ...]:
    if stem not in folder.fragments(Kind.ERRORS):
        return ()
    with readable(folder, Kind.ERRORS, stem):
        return failures_of(read_table(folder, Kind.ERRORS, stem))


def write_plan(folder: OutputFolder, stem: str, plan: Plan, errors_schema: pa.Schema) -> None:
    """The list of sources comes last: without it the next run plans the shard again, to the same requests."""
    write_table(folder, Kind.ERRORS, stem, errors_table(plan.failures, errors_schema))
    write_table(folder, Kind.PLAN, stem, plan_table(plan.requests))
    write_table(folder, Kind.SOURCES, stem, sources_table(plan.sources))


def planned_requests(folder: OutputFolder) -> Iterator[str]:
    """Name all requests that are planned. Raises: OutputError. Cost: one column of the plan is read."""
    for stem in plan_stems(folder):
        with readable(folder, Kind.PLAN, stem):
            for batch in stream_batches(folder, Kind.PLAN, stem, ("request_id",)):
                yield from batch.column("request_id").to_pylist()


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


class Missing:
    """What is to do of an output as it was when this was made; a listing of the fragments is kept."""

    def __init__(self, folder: OutputFolder, makes: Kind = Kind.EMBEDDINGS) -> None:
        self._folder = folder
        self._done, self._retried = done_requests(folder, makes), announced_retry(folder)

    def of(self, requests: Iterable[RequestPlan]) -> list[RequestPlan]:
        """Those that are not done; a request that is done but for failed clips comes with these clips alone."""
        missing = []
        for request in requests:
            if request.request_id not in self._done:
                missing.append(request)
            elif request.request_id in self._retried:
                missing.extend(_without_rows(self._folder, request))
        return missing


def _without_rows(folder: OutputFolder, request: RequestPlan) -> list[RequestPlan]:
    with readable(folder, Kind.EMBEDDINGS, request.request_id):
        batches = stream_batches(folder, Kind.EMBEDDINGS, request.request_id, ("clip_id",))
        embedded = {clip_id for batch in batches for clip_id in batch.column("clip_id").unique().to_pylist()}
    clips = tuple(clip for clip in request.clips if not embedded.issuperset(clip.clip_ids))
    return [RequestPlan(request_id=request.request_id, clips=clips)] if clips else []
