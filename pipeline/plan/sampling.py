"""Which frames of a clip are looked at, and when they are on screen.

The official rule samples evenly over frame *numbers* and derives times from the average rate; on a variable
frame rate that drifts from the clock, so sampling by time is offered beside it.
Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames and Qwen3VLProcessor._calculate_timestamps.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ASSUMED_FPS = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameClock:
    """The times of a video's frames, in seconds from its first frame.

    `times_seconds` is given when frames are placed by their own timestamps; otherwise frame i is on screen from
    i / fps. A video without a rate counts as 24 frames a second, as transformers has it.
    """

    num_frames: int
    fps: float
    times_seconds: tuple[float, ...] | None = None

    def time_of(self, frame: int) -> float:
        """When this frame appears, in seconds."""
        return self.times_seconds[frame] if self.times_seconds else frame / self.fps

    @property
    def duration_seconds(self) -> float:
        """When the last frame leaves the screen, in seconds."""
        return self.time_of(self.num_frames - 1) + 1.0 / self.fps

    def frames_between(self, start_seconds: float, end_seconds: float) -> range:
        """Frames that appear at or after the start and before the end."""
        if self.times_seconds:
            return range(bisect_left(self.times_seconds, start_seconds), bisect_left(self.times_seconds, end_seconds))
        first = _first_frame_at(start_seconds, self.fps)
        return range(min(first, self.num_frames), min(_first_frame_at(end_seconds, self.fps), self.num_frames))

    def on_screen(self, time_seconds: float, frames: range) -> int:
        """The frame of `frames` on screen at a time."""
        if self.times_seconds:
            found = bisect_right(self.times_seconds, time_seconds + 1e-9) - 1
        else:
            found = int(time_seconds * self.fps + 1e-6)
        return min(max(found, frames.start), frames.stop - 1)


def _first_frame_at(time_seconds: float, fps: float) -> int:
    """The first frame that appears at a time or later, safe against the rounding of i / fps."""
    frame = max(0, round(time_seconds * fps))
    while frame > 0 and (frame - 1) / fps >= time_seconds:
        frame -= 1
    while frame / fps < time_seconds:
        frame += 1
    return frame


def count_samples(num_frames: int, source_fps: float, fps: float, min_frames: int, max_frames: int) -> int:
    """How many frames the official recipe takes from `num_frames` frames of video."""
    wanted = int(num_frames / source_fps * fps)
    return min(max(wanted, min_frames), max_frames, num_frames)


def sample_by_index(frames: range, count: int) -> tuple[int, ...]:
    """`count` frames evenly over the frame numbers of `frames`, ends included (the official rule)."""
    offsets = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return tuple(frames.start + offset for offset in offsets.tolist())


def sample_by_time(clock: FrameClock, frames: range, count: int) -> tuple[int, ...]:
    """The frames on screen at `count` even times from the first frame's to the last one's."""
    times = np.linspace(clock.time_of(frames.start), clock.time_of(frames.stop - 1), count)
    return tuple(clock.on_screen(time, frames) for time in times.tolist())


def move_to_keyframes(
    clock: FrameClock, frames: range, frame_indices: Sequence[int], keyframes: Sequence[int]
) -> tuple[int, ...]:
    """For each frame the keyframe of `frames` that is nearest in time, the earlier one of two; each of them once.

    So a clip has at most as many frames as it has keyframes. Without any it keeps its frames: what lies outside the
    span is not in the clip.
    """
    inside = keyframes[bisect_left(keyframes, frames.start) : bisect_left(keyframes, frames.stop)]
    if not inside:
        return tuple(frame_indices)
    nearest = (_nearest(clock, inside, frame) for frame in frame_indices)
    return tuple(dict.fromkeys(nearest))


def _nearest(clock: FrameClock, keyframes: Sequence[int], frame: int) -> int:
    place = bisect_left(keyframes, frame)
    around = keyframes[max(0, place - 1) : place + 1]
    return min(around, key=lambda keyframe: abs(clock.time_of(keyframe) - clock.time_of(frame)))


def pair_timestamps(clock: FrameClock, frame_indices: Sequence[int], temporal_patch_size: int) -> tuple[float, ...]:
    """One time a temporal patch, in seconds: the mean of its first and its last frame's.

    An odd count repeats its last frame, as the patches do.
    """
    times = [clock.time_of(frame) for frame in frame_indices]
    times += [times[-1]] * (-len(times) % temporal_patch_size)
    step = temporal_patch_size
    return tuple((times[first] + times[first + step - 1]) / 2 for first in range(0, len(times), step))
