import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoder.counts import num_patches, num_vectors, split_chunks

_SIDES = st.integers(1, 8).map(lambda half: 2 * half)
GRIDS = st.lists(st.tuples(st.integers(1, 12), _SIDES, _SIDES), min_size=1, max_size=6)


@pytest.mark.parametrize(("level", "expected"), [("clip", 1), ("frame", 3), ("token", 18)])
def test_each_level_gives_its_number_of_vectors(level, expected):
    assert num_vectors((3, 4, 6), level) == expected


def test_a_request_within_the_bound_is_one_chunk():
    assert list(split_chunks([(2, 4, 4), (1, 2, 2)], 36)) == [[(2, 4, 4), (1, 2, 2)]]


def test_a_clip_is_cut_between_temporal_patches():
    assert list(split_chunks([(5, 4, 4)], 40)) == [[(2, 4, 4)], [(2, 4, 4)], [(1, 4, 4)]]


def test_a_chunk_is_filled_from_the_next_clip():
    assert list(split_chunks([(3, 4, 4), (3, 2, 2)], 40)) == [[(2, 4, 4)], [(1, 4, 4), (3, 2, 2)]]


def test_a_temporal_patch_above_the_bound_is_a_chunk_of_its_own():
    chunks = [[(1, 2, 2)], [(1, 8, 8)], [(1, 8, 8)], [(1, 2, 2)]]
    assert list(split_chunks([(1, 2, 2), (2, 8, 8), (1, 2, 2)], 16)) == chunks


@given(grids=GRIDS, max_patches=st.integers(1, 400))
def test_chunks_hold_every_temporal_patch_once_in_order_within_the_bound(grids, max_patches):
    chunks = list(split_chunks(grids, max_patches))
    frames = [(h, w) for chunk in chunks for t, h, w in chunk for _ in range(t)]
    assert frames == [(h, w) for t, h, w in grids for _ in range(t)]
    assert all(num_patches(chunk) <= max_patches or (len(chunk) == 1 and chunk[0][0] == 1) for chunk in chunks)
