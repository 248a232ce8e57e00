import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RequestError
from pipeline.media.container import MediaType
from pipeline.request.layout import ALIGNMENT, MAGIC, VERSION, RequestLayout

lengths = st.lists(st.integers(1, 9), min_size=0, max_size=90)


def layout_of(lengths: list[int], media_type: MediaType = MediaType.VIDEO) -> RequestLayout:
    return RequestLayout.of(media_type, [(length, 4, 6) for length in lengths])


def test_offsets_of_a_hand_counted_request() -> None:
    layout = layout_of([2, 1])
    assert layout.rows_start == 256
    assert layout.clip_offset(1) == 256 + 2 * 24 * 1536
    assert layout.num_bytes == 256 + 3 * 24 * 1536
    assert layout.header()[:10].tolist() == [MAGIC, VERSION, 1536, 72, 2, 3, 4, 6, 2, 1]


@given(lengths=lengths)
def test_rows_begin_aligned_behind_the_header_and_clips_follow_each_other(lengths: list[int]) -> None:
    layout = layout_of(lengths, MediaType.IMAGE)
    assert layout.rows_start % ALIGNMENT == 0
    assert layout.rows_start >= 32 + 4 * len(lengths)
    ends = [layout.clip_offset(clip) for clip in range(len(lengths))] + [layout.num_bytes]
    sizes = [after - before for before, after in itertools.pairwise(ends)]
    assert sizes == [length * 24 * 768 for length in lengths]


def test_clips_of_two_shapes_are_refused() -> None:
    with pytest.raises(RequestError, match=r"one \(h, w\); these clips have \[\(2, 2\), \(4, 4\)\]"):
        RequestLayout.of(MediaType.VIDEO, [(1, 2, 2), (1, 4, 4)])


def test_a_short_buffer_and_a_wrong_header_are_refused_by_name() -> None:
    layout = layout_of([1])
    buffer = np.zeros(layout.num_bytes, dtype=np.uint8)
    with pytest.raises(RequestError, match=r"expected 37120 bytes, got 37119"):
        layout.check(buffer[:-1])
    with pytest.raises(RequestError, match=r"header word 0 is 0, expected 1347899985"):
        layout.check(buffer)
