"""How large a frame is when the encoder sees it: `smart_resize`, under three policies in use.

`hf` is what transformers does by default: the pixels of a whole video are bounded, so a short clip keeps
nearly its native size. `hf_capped` is its cap_pixels_per_frame, and `qwen_utils` is what qwen-vl-utils does
before the processor sees a frame: both bound each frame. A bound on tokens a frame narrows any of them.
Python's round() is banker's rounding, and the sources rely on it.
Sources: transformers 5.23 (qwen3_vl video and qwen2_vl image processors), qwen-vl-utils 0.0.14.
"""

import math
from dataclasses import dataclass

from pipeline.checkpoint import Preprocessing
from pipeline.config import SizesConfig
from pipeline.errors import ErrorCode, MediaError, Stage

MAX_ASPECT_RATIO = 200
_CAP_TOKENS = 768
_UTILS_MIN_TOKENS, _UTILS_MAX_TOKENS = 128, 768
_UTILS_SEQUENCE_TOKENS = 128_000 * 0.9
_UTILS_IMAGE_MIN_TOKENS, _UTILS_IMAGE_MAX_TOKENS = 4, 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Height and width in pixels."""

    height: int
    width: int


def image_size(size: Size, recipe: Preprocessing, config: SizesConfig) -> Size:
    """The size an image is resized to; both sides multiples of 32.

    Raises: MediaError(ASPECT_RATIO) for a longer side over 200 times the shorter one.
    """
    factor = recipe.factor
    if config.policy == "qwen_utils":
        fitted = _fit(size, factor, _UTILS_IMAGE_MIN_TOKENS * factor**2, _UTILS_IMAGE_MAX_TOKENS * factor**2)
    else:
        fitted = _fit(size, factor, recipe.image_min_pixels, recipe.image_max_pixels)
    return _bound(fitted, size, factor, config)


def video_size(size: Size, num_frames: int, recipe: Preprocessing, config: SizesConfig) -> Size:
    """The size that each of `num_frames` sampled frames is resized to; both sides multiples of 32.

    A one-frame video, which transformers refuses, is sized as the two equal frames it is encoded as.
    Raises: MediaError(ASPECT_RATIO) for a longer side over 200 times the shorter one.
    """
    factor, frames = recipe.factor, max(num_frames, recipe.temporal_patch_size)
    if config.policy == "qwen_utils":
        least = _UTILS_MIN_TOKENS * factor**2
        share = _UTILS_SEQUENCE_TOKENS * factor**2 / frames * recipe.temporal_patch_size
        fitted = _fit(size, factor, least, max(min(_UTILS_MAX_TOKENS * factor**2, share), int(least * 1.05)))
        return _bound(fitted, size, factor, config)
    most = recipe.video_max_pixels
    if config.policy == "hf_capped":
        most = max(min(_CAP_TOKENS * factor**2, most // frames), int(recipe.video_min_pixels * 1.05)) * frames
    size = _at_least(size, factor)
    whole_patches = round(frames / recipe.temporal_patch_size) * recipe.temporal_patch_size
    fitted = _fit(size, factor, recipe.video_min_pixels, most, frames=frames, counted_frames=whole_patches)
    return _bound(fitted, size, factor, config)


def _bound(fitted: Size, size: Size, factor: int, config: SizesConfig) -> Size:
    """Our own bound on one frame, after the policy; a side never falls below one token."""
    if config.max_tokens_per_frame is None:
        return fitted
    most = config.max_tokens_per_frame * factor**2
    return fitted if fitted.height * fitted.width <= most else _shrink(size, factor, most)


def _at_least(size: Size, factor: int) -> Size:
    """Scale a video frame up until both sides reach the factor; images are not scaled first."""
    if size.height >= factor and size.width >= factor:
        return size
    scale = max(factor / size.height, factor / size.width)
    return Size(height=int(size.height * scale), width=int(size.width * scale))


def _fit(size: Size, factor: int, least: float, most: float, *, frames: int = 1, counted_frames: int = 1) -> Size:
    """`smart_resize`: the nearest multiples of the factor whose pixels lie within the bounds.

    The bounds count `counted_frames` frames (rounded to whole temporal patches) but scale by `frames`: upstream
    does so, and equal sizes matter more than symmetry.
    """
    height, width = size.height, size.width
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise MediaError(
            ErrorCode.ASPECT_RATIO,
            f"{width} x {height} pixels: expected a side ratio of at most {MAX_ASPECT_RATIO}, got {ratio:.0f}",
            Stage.PLAN,
        )
    nearest = Size(height=round(height / factor) * factor, width=round(width / factor) * factor)
    pixels = counted_frames * nearest.height * nearest.width
    if pixels > most:
        return _shrink(size, factor, most, frames)
    if pixels < least:
        beta = math.sqrt(least / (frames * height * width))
        return Size(height=math.ceil(height * beta / factor) * factor, width=math.ceil(width * beta / factor) * factor)
    return nearest


def _shrink(size: Size, factor: int, most: float, frames: int = 1) -> Size:
    """The largest multiples of the factor, at least one of each, that keep the shape within `most` pixels."""
    beta = math.sqrt(frames * size.height * size.width / most)
    return Size(
        height=max(factor, math.floor(size.height / beta / factor) * factor),
        width=max(factor, math.floor(size.width / beta / factor) * factor),
    )
