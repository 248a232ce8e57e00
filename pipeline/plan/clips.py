"""One probed medium becomes clips: spans, sampled frames, sizes and grids, all plain Python numbers.

Rules that the official recipe leaves open, and ours: a one-frame video is its frame twice; an image is one
frame; a span that holds no frame is an error; the last clip of a strided video may be shorter; frames that are moved to
keyframes are planned as what they are then, fewer frames at other times.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.checkpoint import Preprocessing
from pipeline.config import Config, FramesConfig
from pipeline.digest import digest_values
from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.container import MediaInfo, MediaType
from pipeline.media.safe_start import SafeStart
from pipeline.plan.sampling import (
    ASSUMED_FPS,
    FrameClock,
    count_samples,
    move_to_keyframes,
    pair_timestamps,
    sample_by_index,
    sample_by_time,
)
from pipeline.plan.schema import Clip
from pipeline.plan.sizes import Size, image_size, video_size
from pipeline.sources.listing import SourceItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The checkpoint's numbers with the config's wishes applied: all that planning a clip depends on."""

    preprocessing: Preprocessing
    config: Config

    @property
    def fps(self) -> float:
        """Frames sampled a second."""
        return self._frames.fps or self.preprocessing.fps

    @property
    def min_frames(self) -> int:
        """Fewest frames of a clip, if it has them."""
        return self._frames.min_frames or self.preprocessing.min_frames

    @property
    def max_frames(self) -> int:
        """Most frames of a clip."""
        return self._frames.max_frames or self.preprocessing.max_frames

    @property
    def needs_times(self) -> bool:
        """Whether probing must read every frame's own timestamp."""
        return self._frames.sampling == "time"

    @property
    def _frames(self) -> FramesConfig:
        return self.config.frames


def plan_clips(item: SourceItem, source_id: str, info: MediaInfo, recipe: Recipe) -> list[Clip]:
    """Cut a medium into clips.

    Args:
        item: where it lies, and the span that was asked for.
        source_id: what its bytes hash to.
        info: what its header says.
        recipe: the checkpoint's numbers and the config.

    Raises: MediaError(ASPECT_RATIO) or MediaError(EMPTY_SPAN).
    """
    if info.media_type is MediaType.IMAGE:
        return [_image_clip(item, source_id, info, recipe)]
    return [
        _video_clip(item, source_id, info, recipe, clock, frames, index)
        for clock in [_clock(info)]
        for index, frames in enumerate(_spans(item, clock, recipe))
    ]


def _clock(info: MediaInfo) -> FrameClock:
    return FrameClock(num_frames=info.num_frames, fps=info.fps or ASSUMED_FPS, times_seconds=info.frame_times_seconds)


def _spans(item: SourceItem, clock: FrameClock, recipe: Recipe) -> Iterator[range]:
    start = item.start_seconds or 0.0
    end = clock.duration_seconds if item.end_seconds is None else item.end_seconds
    wanted = clock.frames_between(start, end) if item.start_seconds or item.end_seconds else range(clock.num_frames)
    if not wanted:
        raise MediaError(
            ErrorCode.EMPTY_SPAN,
            f"{item.uri}: no frame from {start:g} s to {end:g} s of {clock.duration_seconds:g} s",
            Stage.PLAN,
        )
    if recipe.config.clips.mode == "whole":
        yield wanted
        return
    step = recipe.config.clips.seconds
    # Both edges of a clip come from the same products, so that neighbours share them to the bit.
    edges = [start + position * step for position in range(math.ceil((end - start) / step) + 1)]
    for begin, finish in itertools.pairwise(edges):
        frames = clock.frames_between(begin, finish)
        frames = range(max(frames.start, wanted.start), min(frames.stop, wanted.stop))
        if frames:
            yield frames


def _video_clip(
    item: SourceItem, source_id: str, info: MediaInfo, recipe: Recipe, clock: FrameClock, frames: range, index: int
) -> Clip:
    count = count_samples(len(frames), clock.fps, recipe.fps, recipe.min_frames, recipe.max_frames)
    indices = sample_by_time(clock, frames, count) if recipe.needs_times else sample_by_index(frames, count)
    if info.keyframes:
        indices = move_to_keyframes(clock, frames, indices, info.keyframes)
        count = len(indices)
    size = video_size(Size(height=info.height, width=info.width), count, recipe.preprocessing, recipe.config.sizes)
    timestamps = pair_timestamps(clock, indices, recipe.preprocessing.temporal_patch_size)
    last = frames.stop
    end_seconds = clock.time_of(last) if last < clock.num_frames else clock.duration_seconds
    return _clip(
        item,
        source_id,
        info,
        recipe,
        size=size,
        clip_index=index,
        fps=clock.fps,
        frame_indices=indices,
        timestamps_seconds=timestamps,
        start_seconds=clock.time_of(frames.start),
        end_seconds=end_seconds,
        grid_t=len(timestamps),
    )


def _image_clip(item: SourceItem, source_id: str, info: MediaInfo, recipe: Recipe) -> Clip:
    size = image_size(Size(height=info.height, width=info.width), recipe.preprocessing, recipe.config.sizes)
    return _clip(
        item,
        source_id,
        info,
        recipe,
        size=size,
        clip_index=0,
        fps=None,
        frame_indices=(0,),
        timestamps_seconds=(),
        start_seconds=None,
        end_seconds=None,
        grid_t=1,
    )


def _clip(
    item: SourceItem,
    source_id: str,
    info: MediaInfo,
    recipe: Recipe,
    *,
    size: Size,
    clip_index: int,
    fps: float | None,
    frame_indices: tuple[int, ...],
    timestamps_seconds: tuple[float, ...],
    start_seconds: float | None,
    end_seconds: float | None,
    grid_t: int,
) -> Clip:
    patch = recipe.preprocessing.patch_size
    return Clip(
        clip_ids=(_clip_id(item, source_id, clip_index, frame_indices, size),),
        source_uris=(item.uri,),
        source_id=source_id,
        source_bytes=item.num_bytes,
        modified_ns=item.modified_ns,
        media_type=info.media_type,
        clip_index=clip_index,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        width=info.width,
        height=info.height,
        fps=fps,
        num_frames=info.num_frames,
        frame_indices=frame_indices,
        timestamps_seconds=timestamps_seconds,
        resized_height=size.height,
        resized_width=size.width,
        grid_thw=(grid_t, size.height // patch, size.width // patch),
        byte_ranges=() if item.byte_range is None else (item.byte_range,),
        codec=info.codec,
        origin=safe_start_before(info, frame_indices[0]),
    )


def safe_start_before(info: MediaInfo, first_frame: int) -> SafeStart | None:
    """The last safe start from which this frame can be decoded."""
    position = bisect_right(info.safe_starts, first_frame, key=lambda start: start.number)
    return info.safe_starts[position - 1] if position else None


def _clip_id(item: SourceItem, source_id: str, clip_index: int, frame_indices: tuple[int, ...], size: Size) -> str:
    """The span that was asked for is in it: one file under two spans of a manifest is two rows, even if equal."""
    span = (item.start_seconds, item.end_seconds)
    return digest_values(item.uri, source_id, span, clip_index, frame_indices, size.height, size.width)
