"""A listing and its probe results become the plan; an earlier plan of the same output is kept and added to.

Planned once: a request that exists is never repacked, so its fragment stays valid when files are added. What
the output has seen is kept by (uri, size, modification time); changed bytes under the same path are new content
with a new `source_id`, planned beside the old rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.errors import MediaError, Stage
from pipeline.plan.clips import Recipe, plan_clips
from pipeline.plan.packing import pack
from pipeline.plan.probe import ProbeResult
from pipeline.plan.schema import SOURCES_SCHEMA, Clip, Failure, RequestPlan, SourceRecord, flat_values
from pipeline.sources.listing import Listing, SourceItem

Prober = Callable[[Sequence[SourceItem]], Iterable[ProbeResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All requests of an output, every source they came from, and the sources that gave none."""

    requests: tuple[RequestPlan, ...]
    sources: tuple[SourceRecord, ...]
    failures: tuple[Failure, ...]

    @property
    def num_clip_rows(self) -> int:
        """Clips counted once for every path they lie under."""
        return sum(len(clip.clip_ids) for request in self.requests for clip in request.clips)


EMPTY_PLAN = Plan(requests=(), sources=(), failures=())


def make_plan(listing: Listing, known: Plan, probe: Prober, recipe: Recipe) -> Plan:
    """Plan what the listing holds and `known` does not.

    Args:
        listing: the sources as they lie now, sorted.
        known: the output's plan so far, or EMPTY_PLAN.
        probe: reads headers, results in any order; only called for sources that are new, changed or failed
            in a way that another try can mend.
        recipe: the checkpoint's numbers and the config.
    """
    kept_sources, kept_failures, new_items = _split(listing, known)
    results = {_span(result.item): result for result in probe(new_items)} if new_items else {}
    planned = [_plan_source(results[_span(item)], recipe) for item in new_items]
    records = [record for record, _, _ in planned]
    failures = [failure for _, _, failure in planned if failure is not None]
    present = {clip_id for request in known.requests for clip in request.clips for clip_id in clip.clip_ids}
    # What is planned already stays where it is; an equal file that came later is a clip of its own.
    missing = _merge_equal(clip for _, clips, _ in planned for clip in clips if clip.clip_ids[0] not in present)
    seen_again = {_identity(record) for record in records}
    return Plan(
        requests=known.requests + tuple(pack(missing, recipe.config.request.max_patches)),
        sources=(
            *(record for record in kept_sources if _identity(record) not in seen_again),
            *records,
            *_unlistable_sources(listing),
        ),
        failures=(*kept_failures, *failures, *_unlistable_failures(listing)),
    )


Span = tuple[str, float | None, float | None]


def _span(item: SourceItem) -> Span:
    return item.uri, item.start_seconds, item.end_seconds


def _span_of(record: SourceRecord) -> Span:
    return record.source_uri, record.start_seconds, record.end_seconds


def _identity(record: SourceRecord) -> tuple[Span, str | None]:
    """A source by what was asked for and what its bytes were: touching a file does not make it another one."""
    return _span_of(record), record.source_id


def _split(listing: Listing, known: Plan) -> tuple[list[SourceRecord], list[Failure], list[SourceItem]]:
    """What stays as it is, and which sources to probe.

    Error rows are told apart by their path alone, so a path of which any span is probed has all its failed spans
    probed again.
    """
    listed = {_span(item): item for item in listing.items}
    unlistable = {failure.uri for failure in listing.failures}
    retried = {failure.source_uri for failure in known.failures if failure.code.advice.retryable}
    unchanged = {
        _span_of(record)
        for record in known.sources
        if _is_same(record, listed.get(_span_of(record)))
        and not (record.num_clips == 0 and record.source_uri in retried)
    }
    kept, again = [], dict.fromkeys(item for item in listing.items if _span(item) not in unchanged)
    stale = {item.uri: item for item in again}
    for record in known.sources:
        if record.num_clips or record.source_uri not in stale.keys() | unlistable:
            kept.append(record)
        elif record.source_uri in stale:
            _, start_seconds, end_seconds = _span_of(record)
            again[replace(stale[record.source_uri], start_seconds=start_seconds, end_seconds=end_seconds)] = None
    forgotten = stale.keys() | unlistable
    failures = [failure for failure in known.failures if failure.source_uri not in forgotten]
    return kept, failures, list(again)


def _is_same(record: SourceRecord, item: SourceItem | None) -> bool:
    return item is not None and (item.num_bytes, item.modified_ns) == (record.num_bytes, record.modified_ns)


def _plan_source(result: ProbeResult, recipe: Recipe) -> tuple[SourceRecord, list[Clip], Failure | None]:
    item, error = result.item, result.error
    clips: list[Clip] = []
    if result.info is not None and result.source_id is not None:
        try:
            clips = plan_clips(item, result.source_id, result.info, recipe)
        except MediaError as found:
            error = MediaError(found.code, _naming(item.uri, found.message), found.stage)
    record = SourceRecord(
        source_uri=item.uri,
        source_id=result.source_id,
        start_seconds=item.start_seconds,
        end_seconds=item.end_seconds,
        num_bytes=item.num_bytes,
        modified_ns=item.modified_ns,
        media_type=None if result.info is None else result.info.media_type,
        num_clips=len(clips),
    )
    failure = None if error is None else Failure.of_source(item.uri, result.source_id, error)
    return record, clips, failure


def _naming(uri: str, message: str) -> str:
    return message if message.startswith(uri) else f"{uri}: {message}"


def _merge_equal(clips: Iterable[Clip]) -> list[Clip]:
    """One clip for equal content, with an id and a path for each place it lies."""
    merged: dict[tuple[object, ...], Clip] = {}
    for clip in clips:
        key = (clip.source_id, clip.clip_index, clip.frame_indices, clip.start_seconds, clip.end_seconds)
        first = merged.get(key)
        merged[key] = clip if first is None else first.joined(clip)
    return list(merged.values())


def _unlistable_failures(listing: Listing) -> list[Failure]:
    return [
        Failure.of_source(failure.uri, None, MediaError(failure.code, failure.message, Stage.LIST))
        for failure in listing.failures
    ]


def _unlistable_sources(listing: Listing) -> list[SourceRecord]:
    return [
        SourceRecord(
            source_uri=failure.uri,
            source_id=None,
            start_seconds=None,
            end_seconds=None,
            num_bytes=0,
            modified_ns=0,
            media_type=None,
            num_clips=0,
        )
        for failure in listing.failures
    ]


def sources_table(sources: Iterable[SourceRecord]) -> pa.Table:
    """Sources in Arrow, one row each, in SOURCES_SCHEMA."""
    return pa.Table.from_pylist([flat_values(record) for record in sources], schema=SOURCES_SCHEMA)


def sources_of(table: pa.Table) -> tuple[SourceRecord, ...]:
    """The rows of `sources_table` as values."""
    return tuple(SourceRecord(**row) for row in table.to_pylist())
