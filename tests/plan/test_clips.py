import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, MediaError
from pipeline.plan.clips import plan_clips
from tests.plan.factories import make_image, make_item, make_recipe, make_start, make_video


def stride(seconds: float) -> dict[str, object]:
    return {"mode": "stride", "seconds": seconds}


def test_a_whole_video_is_one_clip_from_its_first_frame_to_its_end() -> None:
    (clip,) = plan_clips(make_item(), "id", make_video(), make_recipe())
    assert (clip.start_seconds, clip.end_seconds) == (0.0, 10.0)
    assert clip.grid_thw == (10, 22, 40)
    assert (clip.resized_height, clip.resized_width) == (352, 640)
    assert len(clip.frame_indices) == 20


def test_an_image_is_one_frame_without_times() -> None:
    (clip,) = plan_clips(make_item(), "id", make_image(width=451, height=300), make_recipe())
    assert clip.grid_thw == (1, 18, 28)
    assert (clip.start_seconds, clip.end_seconds, clip.timestamps_seconds) == (None, None, ())
    assert clip.video_seconds == 0


def test_a_one_frame_video_is_one_temporal_patch() -> None:
    (clip,) = plan_clips(make_item(), "id", make_video(num_frames=1), make_recipe())
    assert clip.frame_indices == (0,)
    assert clip.grid_thw[0] == 1


def test_three_frames_are_two_temporal_patches() -> None:
    (clip,) = plan_clips(make_item(), "id", make_video(num_frames=3), make_recipe())
    assert clip.frame_indices == (0, 1, 2)
    assert clip.grid_thw[0] == 2


def test_a_video_without_a_rate_counts_as_24_frames_a_second() -> None:
    (clip,) = plan_clips(make_item(), "id", make_video(num_frames=240, fps=None), make_recipe())
    assert clip.fps == 24.0
    assert clip.end_seconds == 10.0


@given(
    num_frames=st.integers(1, 3000),
    fps=st.sampled_from([10.0, 24.0, 25.0, 30000 / 1001, 59.94]),
    seconds=st.floats(0.05, 30),
)
def test_strided_clips_cover_the_video_in_order_without_overlap(num_frames: int, fps: float, seconds: float) -> None:
    info = make_video(num_frames=num_frames, fps=fps)
    clips = plan_clips(make_item(), "id", info, make_recipe(clips=stride(seconds), frames={"min_frames": 1}))
    assert clips[0].start_seconds == 0.0
    assert clips[-1].end_seconds == pytest.approx(num_frames / fps)
    for before, after in itertools.pairwise(clips):
        assert before.end_seconds == after.start_seconds
        assert before.frame_indices[-1] < after.frame_indices[0]
    assert [clip.clip_index for clip in clips] == list(range(len(clips)))


def test_the_last_strided_clip_may_be_shorter() -> None:
    clips = plan_clips(make_item(), "id", make_video(), make_recipe(clips=stride(4.0)))
    assert [(clip.start_seconds, clip.end_seconds) for clip in clips] == [(0.0, 4.0), (4.0, 8.0), (8.0, 10.0)]


def test_a_span_from_a_manifest_bounds_the_clips() -> None:
    item = make_item(start_seconds=2.0, end_seconds=5.0)
    (clip,) = plan_clips(item, "id", make_video(), make_recipe())
    assert (clip.start_seconds, clip.end_seconds) == (2.0, 5.0)
    assert (clip.frame_indices[0], clip.frame_indices[-1]) == (50, 124)


def test_a_span_behind_the_end_is_an_error_that_names_file_and_length() -> None:
    with pytest.raises(MediaError, match=r"/media/a.mp4: no frame from 11 s to 12 s of 10 s") as caught:
        plan_clips(make_item(start_seconds=11.0, end_seconds=12.0), "id", make_video(), make_recipe())
    assert caught.value.code is ErrorCode.EMPTY_SPAN


def test_time_sampling_uses_the_frames_own_times() -> None:
    times = tuple([frame * 0.1 for frame in range(10)] + [1.0 + frame for frame in range(10)])
    info = make_video(num_frames=20, fps=2.0, frame_times_seconds=times)
    (clip,) = plan_clips(make_item(), "id", info, make_recipe(frames={"sampling": "time", "max_frames": 4}))
    assert clip.frame_indices == (0, 12, 15, 19)
    assert clip.timestamps_seconds == ((0.0 + 3.0) / 2, (6.0 + 10.0) / 2)


def test_clip_ids_differ_by_path_content_and_span_and_repeat_for_the_same() -> None:
    def clip_id(uri: str = "/a", source_id: str = "x", num_frames: int = 250) -> str:
        (clip,) = plan_clips(make_item(uri), source_id, make_video(num_frames=num_frames), make_recipe())
        return clip.clip_ids[0]

    assert clip_id() == clip_id()
    assert len({clip_id(), clip_id(uri="/b"), clip_id(source_id="y"), clip_id(num_frames=100)}) == 4


def test_a_clip_carries_the_last_safe_start_before_its_first_frame_and_is_the_same_clip() -> None:
    starts = (make_start(100), make_start(130), make_start(200))
    clips = plan_clips(make_item(), "id", make_video(safe_starts=starts), make_recipe(clips=stride(2.0)))
    assert [clip.frame_indices[0] for clip in clips] == [0, 50, 100, 150, 200]
    assert [clip.origin for clip in clips] == [None, None, *starts]
    without = plan_clips(make_item(), "id", make_video(), make_recipe(clips=stride(2.0)))
    assert [clip.clip_ids for clip in clips] == [clip.clip_ids for clip in without]


def test_frames_that_are_moved_to_keyframes_are_planned_as_what_they_are() -> None:
    info = make_video(keyframes=(0, 60, 120, 180, 240))
    (clip,) = plan_clips(make_item(), "id", info, make_recipe(frames={"precision": "keyframe"}))
    assert clip.frame_indices == (0, 60, 120, 180, 240)
    assert clip.timestamps_seconds == (1.2, 6.0, 9.6)
    assert clip.grid_thw[0] == 3
    assert (clip.start_seconds, clip.end_seconds) == (0.0, 10.0)


def test_a_clip_with_one_keyframe_is_one_temporal_patch_and_one_without_is_exact() -> None:
    info = make_video(keyframes=(0,))
    recipe = make_recipe(clips=stride(5.0), frames={"precision": "keyframe"})
    first, second = plan_clips(make_item(), "id", info, recipe)
    assert (first.frame_indices, first.grid_thw[0]) == ((0,), 1)
    _, exact = plan_clips(make_item(), "id", make_video(), make_recipe(clips=stride(5.0)))
    assert second == exact
