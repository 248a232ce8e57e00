import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.sampling import (
    FrameClock,
    count_samples,
    move_to_keyframes,
    pair_timestamps,
    sample_by_index,
    sample_by_time,
)
from tests.oracles import official_indices, official_timestamps

frame_rates = st.one_of(st.sampled_from([24.0, 25.0, 30.0, 30000 / 1001, 1050 / 79, 10.0, 0.5]), st.floats(0.1, 240))


def clock(num_frames: int, fps: float = 25.0, **changes: object) -> FrameClock:
    return FrameClock(**({"num_frames": num_frames, "fps": fps} | changes))


@given(num_frames=st.integers(1, 200_000), fps=frame_rates)
def test_indices_and_timestamps_equal_the_official_ones(num_frames: int, fps: float) -> None:
    count = count_samples(num_frames, fps, 2.0, 4, 768)
    indices = sample_by_index(range(num_frames), count)
    assert list(indices) == official_indices(num_frames, fps)
    timestamps = pair_timestamps(clock(num_frames, fps), indices, 2)
    assert list(timestamps) == official_timestamps(indices, fps)


def test_a_ten_second_clip_at_two_frames_a_second_is_twenty_frames_and_ten_times() -> None:
    indices = sample_by_index(range(250), count_samples(250, 25.0, 2.0, 4, 768))
    assert indices[:3] == (0, 13, 26)
    assert indices[-1] == 249
    assert len(pair_timestamps(clock(250), indices, 2)) == 10


def test_an_odd_count_repeats_its_last_frame_in_the_timestamps() -> None:
    assert pair_timestamps(clock(100, 10.0), (0, 10, 20), 2) == (0.5, 2.0)


@given(num_frames=st.integers(1, 5000), fps=frame_rates, cuts=st.lists(st.floats(0, 200), max_size=6))
def test_neighbouring_spans_hold_every_frame_once(num_frames: int, fps: float, cuts: list[float]) -> None:
    video = clock(num_frames, fps)
    edges = [0.0, *sorted(cuts), video.duration_seconds + 1]
    frames = [frame for start, end in itertools.pairwise(edges) for frame in video.frames_between(start, end)]
    assert frames == list(range(num_frames))


def test_time_sampling_follows_the_clock_where_the_frame_rate_varies() -> None:
    times = tuple(np.concatenate([np.arange(10) * 0.1, 1.0 + np.arange(10) * 1.0]).tolist())
    video = clock(20, 2.0, times_seconds=times)
    assert sample_by_index(range(20), 5) == (0, 5, 10, 14, 19)
    assert sample_by_time(video, range(20), 5) == (0, 11, 14, 16, 19)


@given(num_frames=st.integers(1, 2000), fps=frame_rates, count=st.integers(1, 50))
def test_time_sampling_of_a_constant_rate_stays_in_order_and_in_range(num_frames: int, fps: float, count: int) -> None:
    indices = sample_by_time(clock(num_frames, fps), range(num_frames), count)
    assert list(indices) == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < num_frames


@pytest.mark.parametrize(("num_frames", "count"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4)])
def test_short_videos_give_what_they_have_up_to_the_minimum(num_frames: int, count: int) -> None:
    assert count_samples(num_frames, 25.0, 2.0, 4, 768) == count


def test_frames_move_to_the_nearest_keyframe_of_the_span_each_once() -> None:
    video = clock(250)
    assert move_to_keyframes(video, range(250), (0, 50, 120, 130, 249), (0, 100, 200, 240)) == (0, 100, 240)
    assert move_to_keyframes(video, range(100, 200), (100, 199), (0, 90, 110, 160, 200)) == (110, 160)
    assert move_to_keyframes(video, range(250), (150,), (100, 200)) == (100,)


def test_a_span_without_a_keyframe_keeps_its_frames() -> None:
    assert move_to_keyframes(clock(250), range(100, 200), (100, 150, 199), (0, 99, 200)) == (100, 150, 199)
    assert move_to_keyframes(clock(250), range(100, 200), (100, 150, 199), ()) == (100, 150, 199)


def test_nearest_is_by_the_clock_where_the_frame_rate_varies() -> None:
    times = (0.0, 0.1, 0.2, 5.0, 9.0)
    assert move_to_keyframes(clock(5, times_seconds=times), range(5), (3,), (2, 4)) == (4,)


@given(
    num_frames=st.integers(1, 500),
    count=st.integers(1, 40),
    keyframes=st.sets(st.integers(0, 499)),
    cut=st.integers(0, 99),
)
def test_moved_frames_are_in_order_in_the_span_and_no_more_than_there_were(
    num_frames: int, count: int, keyframes: set[int], cut: int
) -> None:
    span = range(min(cut, num_frames - 1), num_frames)
    frames = sample_by_index(span, min(count, len(span)))
    moved = move_to_keyframes(clock(num_frames), span, frames, sorted(keyframes))
    assert list(moved) == sorted(moved)
    assert len(moved) <= len(frames)
    assert set(moved) <= set(span)
    assert set(moved) <= keyframes or moved == frames
