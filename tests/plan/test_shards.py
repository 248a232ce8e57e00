from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.shards import ShardLimits, cut
from pipeline.sources.listing import SourceItem
from tests.plan.factories import make_item

NO_BYTES = 1 << 60


def items_of(*sizes: int) -> list[SourceItem]:
    return [make_item(f"/{place:06}", num_bytes=size) for place, size in enumerate(sizes)]


def shards_of(items: Sequence[SourceItem], max_sources: int, max_bytes: int = NO_BYTES) -> list[list[int]]:
    """The places of each shard's sources in the listing."""
    shards = cut(items, ShardLimits(max_sources=max_sources, max_bytes=max_bytes))
    return [[int(item.uri.strip("/")) for item in shard] for shard in shards]


def test_what_fits_into_one_shard_is_the_listing_as_it_is() -> None:
    items = items_of(5, 3, 5, 1)
    assert list(cut(items, ShardLimits(max_sources=4, max_bytes=NO_BYTES))) == [tuple(items)]
    assert shards_of([], max_sources=4) == []


def test_sources_of_one_size_share_a_shard_wherever_they_are_listed() -> None:
    assert shards_of(items_of(7, 1, 2, 7, 3, 1), max_sources=3) == [[0, 3], [1, 2, 5], [4]]


def test_a_size_that_more_sources_share_than_a_shard_holds_is_cut_in_order() -> None:
    assert shards_of(items_of(9, 9, 9, 9, 9), max_sources=2) == [[0, 1], [2, 3], [4]]


def test_a_shard_ends_before_its_bytes_pass_the_limit_and_a_larger_source_is_alone() -> None:
    assert shards_of(items_of(4, 5, 100, 6), max_sources=9, max_bytes=10) == [[0, 1], [2], [3]]


@given(sizes=st.lists(st.integers(0, 5), max_size=40), max_sources=st.integers(1, 9))
def test_every_source_is_in_one_shard_and_equal_sizes_are_apart_only_where_they_must(
    sizes: list[int], max_sources: int
) -> None:
    shards = shards_of(items_of(*sizes), max_sources)
    assert sorted(place for shard in shards for place in shard) == list(range(len(sizes)))
    assert all(0 < len(shard) <= max_sources and shard == sorted(shard) for shard in shards)
    for size in set(sizes):
        if sizes.count(size) <= max_sources:
            assert sum(any(sizes[place] == size for place in shard) for shard in shards) == 1


@given(sizes=st.lists(st.integers(0, 5), max_size=40), max_sources=st.integers(1, 9), done=st.integers(0, 10))
def test_what_is_left_of_a_listing_is_cut_as_it_would_have_been(sizes: list[int], max_sources: int, done: int) -> None:
    items = items_of(*sizes)
    shards = list(cut(items, ShardLimits(max_sources=max_sources, max_bytes=NO_BYTES)))
    planned = {item for shard in shards[:done] for item in shard}
    rest = [item for item in items if item not in planned]
    assert list(cut(rest, ShardLimits(max_sources=max_sources, max_bytes=NO_BYTES))) == shards[done:]
