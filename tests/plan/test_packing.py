from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.media.container import MediaType
from pipeline.plan.clips import plan_clips
from pipeline.plan.packing import pack
from pipeline.plan.schema import RequestPlan, packed_request, plan_table, requests_of, unpacked_request
from tests.plan.factories import make_clip, make_item, make_recipe, make_video

shapes = st.lists(st.tuples(st.sampled_from([(64, 64), (128, 96)]), st.integers(1, 200)), max_size=20)


def make_clips(sizes: list[tuple[tuple[int, int], int]]) -> list:
    return [
        make_clip(f"/media/{place}.mp4", width=width, height=height, num_frames=frames)
        for place, ((width, height), frames) in enumerate(sizes)
    ]


@given(sizes=shapes, budget=st.integers(1, 2000))
def test_every_clip_is_in_exactly_one_request_of_its_shape_within_the_budget(sizes: list, budget: int) -> None:
    clips = make_clips(sizes)
    requests = list(pack(clips, budget))
    packed = [clip for request in requests for clip in request.clips]
    assert sorted(clip.clip_ids for clip in packed) == sorted(clip.clip_ids for clip in clips)
    for request in requests:
        assert len({clip.grid_thw[1:] for clip in request.clips}) == 1
        assert request.num_patches <= budget or len(request.clips) == 1


@given(sizes=shapes)
def test_the_plan_survives_arrow_and_is_the_same_every_time(sizes: list) -> None:
    requests = list(pack(make_clips(sizes), 500))
    assert requests_of(plan_table(requests)) == requests
    assert list(pack(make_clips(sizes), 500)) == requests


def test_clips_of_one_file_stay_together_in_order() -> None:
    clips = [make_clip("/a.mp4", num_frames=50 + place) for place in range(5)]
    (request,) = pack(clips, 1_000_000)
    assert list(request.clips) == clips


def test_videos_of_another_codec_do_not_join_a_request_and_images_do() -> None:
    videos = [make_clip(f"/{place}", codec=codec) for place, codec in enumerate(["h264", "vp9", "h264"])]
    assert [[clip.codec for clip in request.clips] for request in pack(videos, 1_000_000)] == [["h264"] * 2, ["vp9"]]
    images = [replace(clip, media_type=MediaType.IMAGE) for clip in videos]
    assert [len(request.clips) for request in pack(images, 1_000_000)] == [3]


def test_a_packed_plan_row_is_the_same_row_again() -> None:
    request = RequestPlan.of([make_clip("/a", "a"), make_clip("/b", "b")])
    table = packed_request(request)
    assert (table.num_rows, table.num_columns) == (1, 1)
    assert requests_of(unpacked_request(table)) == [request]


def test_clips_of_a_long_file_go_to_requests_as_runs_in_the_order_of_time() -> None:
    long_video = make_video(num_frames=25 * 600)
    recipe = make_recipe(clips={"mode": "stride", "seconds": 4.0}, frames={"min_frames": 1})
    clips = [
        *plan_clips(make_item("/b"), "b", long_video, recipe),
        *plan_clips(make_item("/c"), "c", long_video, recipe),
    ]
    requests = list(pack([make_clip("/a"), *clips], 20_000))
    assert len(requests) > 10
    for source_id in "bc":
        runs = [[clip.clip_index for clip in request.clips if clip.source_id == source_id] for request in requests]
        assert [index for run in runs for index in run] == list(range(150))
