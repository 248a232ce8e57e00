import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import Preprocessing
from pipeline.config import SizesConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.plan.sizes import Size, image_size, video_size
from tests.oracles import official_image_size, official_video_size

RECIPE = Preprocessing()
sides = st.one_of(st.integers(1, 64), st.integers(1, 9000))
frame_counts = st.one_of(st.integers(2, 12), st.integers(2, 768))


def as_pair(size: Size) -> tuple[int, int]:
    return size.height, size.width


def ours_or_refusal(compute: object, *arguments: object) -> object:
    try:
        return as_pair(compute(*arguments))
    except MediaError as error:
        assert error.code is ErrorCode.ASPECT_RATIO
        return "refused"


def theirs_or_refusal(compute: object, *arguments: object, **options: object) -> object:
    try:
        return compute(*arguments, **options)
    except ValueError:
        return "refused"


@given(num_frames=frame_counts, height=sides, width=sides)
def test_video_sizes_equal_the_official_ones(num_frames: int, height: int, width: int) -> None:
    size = Size(height=height, width=width)
    ours = ours_or_refusal(video_size, size, num_frames, RECIPE, SizesConfig())
    assert ours == theirs_or_refusal(official_video_size, num_frames, height, width)


@given(num_frames=frame_counts, height=sides, width=sides)
def test_capped_video_sizes_equal_the_official_ones(num_frames: int, height: int, width: int) -> None:
    size = Size(height=height, width=width)
    ours = ours_or_refusal(video_size, size, num_frames, RECIPE, SizesConfig(policy="hf_capped"))
    assert ours == theirs_or_refusal(official_video_size, num_frames, height, width, capped=True)


@given(height=sides, width=sides)
def test_image_sizes_equal_the_official_ones(height: int, width: int) -> None:
    ours = ours_or_refusal(image_size, Size(height=height, width=width), RECIPE, SizesConfig())
    assert ours == theirs_or_refusal(official_image_size, height, width)


def test_a_one_frame_video_is_sized_as_the_two_frames_it_becomes() -> None:
    size = Size(height=272, width=640)
    assert video_size(size, 1, RECIPE, SizesConfig()) == video_size(size, 2, RECIPE, SizesConfig())


def test_qwen_utils_bounds_each_frame_by_its_share_of_the_context() -> None:
    size = Size(height=1080, width=1920)
    few = video_size(size, 20, RECIPE, SizesConfig(policy="qwen_utils"))
    many = video_size(size, 768, RECIPE, SizesConfig(policy="qwen_utils"))
    # Hand values: 768 tokens a frame, then 128000 * 0.9 / 768 * 2 = 300 tokens a frame.
    assert few == Size(height=math.floor(1080 / math.sqrt(1080 * 1920 / (768 * 1024)) / 32) * 32, width=1152)
    assert many == Size(height=math.floor(1080 / math.sqrt(1080 * 1920 / (300 * 1024)) / 32) * 32, width=736)


@pytest.mark.parametrize("policy", ["hf", "hf_capped", "qwen_utils"])
@given(tokens=st.integers(1, 512), num_frames=frame_counts, height=st.integers(64, 2200), width=st.integers(64, 2200))
def test_a_bound_on_tokens_a_frame_holds(policy: str, tokens: int, num_frames: int, height: int, width: int) -> None:
    config = SizesConfig(policy=policy, max_tokens_per_frame=tokens)
    size = video_size(Size(height=height, width=width), num_frames, RECIPE, config)
    long_side = max(height, width) / min(height, width)
    # A side never falls below one token, so a very long frame may keep a few more.
    assert size.height * size.width // 1024 <= max(tokens, math.ceil(long_side))


def test_an_aspect_ratio_over_200_is_refused_with_both_sides_named() -> None:
    with pytest.raises(MediaError, match=r"4000 x 12 pixels: expected a side ratio of at most 200, got 333"):
        image_size(Size(height=12, width=4000), RECIPE, SizesConfig())
