"""A listing cut into shards that are planned one after the other, so that memory holds few of them at a time.

Each shard is probed, packed and written for itself: a request never spans two of them. What that costs is one
partly filled request for each shape and shard; what it buys is that the first requests are encoded while most
headers are still unread, and that a killed run keeps the shards it planned.

Byte-identical files have the same size, so all sources of one size go into one shard, and equal files find each other
there as they would in the whole. Only a size that more sources share than a shard holds is cut; behind that cut an
equal file is a clip of its own. Which shard a source is in follows from the listing alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SourcesConfig
from pipeline.sources.listing import SourceItem


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLimits:
    """What one shard may hold: sources, and their bytes, which stand for the clips that long videos become."""

    max_sources: int
    max_bytes: int

    @classmethod
    def of(cls, config: SourcesConfig) -> Self:
        """The config's own."""
        return cls(max_sources=config.shard_sources, max_bytes=config.shard_bytes)

    def hold(self, num_sources: int, num_bytes: int) -> bool:
        """Whether a shard may be this large."""
        return num_sources <= self.max_sources and num_bytes <= self.max_bytes


def cut(items: Sequence[SourceItem], limits: ShardLimits) -> Iterator[tuple[SourceItem, ...]]:
    """Cut a sorted listing; every shard keeps its order, and none is empty.

    Cost: 40 bytes a source, all at once.
    """
    shard: list[int] = []
    shard_bytes = 0
    for places in _equal_sizes(items, limits.max_sources):
        num_bytes = items[int(places[0])].num_bytes * len(places)
        if shard and not limits.hold(len(shard) + len(places), shard_bytes + num_bytes):
            yield tuple(items[place] for place in sorted(shard))
            shard, shard_bytes = [], 0
        shard += places.tolist()
        shard_bytes += num_bytes
    if shard:
        yield tuple(items[place] for place in sorted(shard))


def _equal_sizes(items: Sequence[SourceItem], most: int) -> Iterator[NDArray[np.int64]]:
    """Places of the sources of each size, `most` at a time, ordered by the first place of each."""
    if not items:
        return
    sizes = np.fromiter((item.num_bytes for item in items), np.int64, len(items))
    order = np.argsort(sizes, kind="stable")
    run_starts = np.concatenate(([0], np.flatnonzero(np.diff(sizes[order])) + 1))
    within_run = np.arange(len(items)) - np.repeat(run_starts, np.diff(run_starts, append=len(items)))
    starts = np.flatnonzero(within_run % most == 0)
    ends = np.append(starts[1:], len(items))
    for piece in np.argsort(order[starts]):
        yield order[starts[piece] : ends[piece]]
