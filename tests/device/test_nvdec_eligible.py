"""What a plan row says is enough to keep from the GPU what it would refuse."""

from dataclasses import replace

import pytest

from pipeline.device.nvdec.eligible import LEAST_SIDE, may_decode_on_device
from pipeline.media.byte_range import ByteRange
from pipeline.plan.rates import GPU_CODECS
from pipeline.plan.schema import Clip, RequestPlan
from tests.plan.factories import make_clip, make_image


def may(*clips: Clip) -> bool:
    return may_decode_on_device(RequestPlan.of(clips))


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_local_videos_of_its_codecs_are_for_the_gpu(codec):
    assert may(make_clip(codec=codec))


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": "vp9"},
        {"codec": "mpeg4"},
        {"width": 641},
        {"height": 361},
        {"width": 62},
        {"codec": "hevc", "height": 142},
        {"width": 8192, "height": 4096},
        {"width": 3840, "height": 2160, "num_frames": 25_000},
    ],
    ids=str,
)
def test_what_it_cannot_decode_to_the_same_bytes_is_not(changes):
    assert not may(make_clip(**changes))


def test_one_clip_that_is_not_keeps_the_whole_request():
    assert not may(make_clip(), make_clip(codec="vp9"))


def test_a_plan_without_codecs_is_not_for_the_gpu():
    assert not may(replace(make_clip(), codec=None))


def test_images_are_not_for_the_gpu():
    clip = make_clip()
    assert not may(replace(clip, media_type=make_image().media_type))


@pytest.mark.parametrize(
    ("uri", "byte_ranges", "expected"),
    [
        ("s3://bucket/a.mp4", (), False),
        ("row://video/3::/media/a.parquet", (), False),
        ("tar://a.mp4::/media/a.tar", (ByteRange(start=512, num_bytes=1000),), True),
        ("tar://a.mp4::s3://bucket/a.tar", (ByteRange(start=512, num_bytes=1000),), False),
        ("file:///media/%FF.mp4", (), True),
    ],
)
def test_only_local_files_and_members_of_local_shards_are(uri, byte_ranges, expected):
    assert may(replace(make_clip(uri), byte_ranges=byte_ranges)) is expected


def test_what_is_foretold_for_the_gpus_decoders_is_what_they_are_given():
    assert set(GPU_CODECS) == set(LEAST_SIDE)
