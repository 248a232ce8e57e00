"""The failed sources of a plan, looked at again: what `patchwire retry` reads the headers of.

From the plan's own records and not from the command's arguments: new files are not picked up, and what could not be
listed at all (a link out of its folder, a pipe) does not become a source by being retried.
"""

from collections.abc import Iterator

from pipeline.config import SourcesConfig
from pipeline.errors import Stage
from pipeline.plan.planner import Plan
from pipeline.plan.schema import SourceRecord
from pipeline.sources.containers import examine_uri, expand
from pipeline.sources.items import Found, Listing, SourceFailure, SourceItem


def failed_media(known: Plan, config: SourcesConfig) -> tuple[Listing, Plan]:
    """Split a plan into its failed media, as they lie now, and everything else.

    Raises: UsageError for a store that cannot be opened.
    Cost: one stat, or one request to a store, a failed source.
    """
    failed = {failure.source_uri for failure in known.failures if failure.stage is not Stage.LIST}
    again = {record: None for record in known.sources if record.num_clips == 0 and record.source_uri in failed}
    found = [medium for record in again for medium in _examine(record, config)]
    rest = Plan(
        requests=known.requests,
        sources=tuple(record for record in known.sources if record not in again),
        failures=tuple(failure for failure in known.failures if failure.source_uri not in failed),
    )
    listing = Listing(
        items=tuple(item for item in found if isinstance(item, SourceItem)),
        failures=tuple({item.uri: item for item in found if isinstance(item, SourceFailure)}.values()),
    )
    return listing, rest


def _examine(record: SourceRecord, config: SourcesConfig) -> Iterator[Found]:
    return expand(examine_uri(record.source_uri, config, record.start_seconds, record.end_seconds), config)
