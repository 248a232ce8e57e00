"""Where the CPU time of a clip goes: each part is what a longer chain of the same calls costs more than a shorter one.

A chain ends in patch rows, or in planes. Taking it apart from outside keeps timers out of the pipeline; the price is
that a part is a difference of two measurements, so that parts of a few percent carry the noise of the whole. What
follows, wrapping what was written as a request and putting that into a store, is called and timed by itself.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.rows import RowsBuffer
from pipeline.config import Config
from pipeline.media.container import ClipJob, MediaType, identify
from pipeline.media.image import read_image
from pipeline.media.location import open_binary
from pipeline.media.reading import Reading, VideoSource
from pipeline.media.resize import resize_to_planes
from pipeline.media.video_pyav import IndexCache, _Attempt, displayed_frames
from pipeline.plan.schema import Clip
from pipeline.request.build import clip_job

_CHAINS = ("container", "decode", "colour", "resize", "patch rows")
_PLANE_CHAINS = ("container", "decode", "planes")
PARTS = (*_CHAINS, "planes", "arrow", "store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A clip's way to patch rows, cut off after one of its parts; called, it does everything up to there."""

    clip: Clip
    config: Config
    last_part: str
    rows: RowsBuffer

    def __call__(self) -> None:
        """Do the work and drop the result."""
        job = clip_job(self.clip, self.clip.sources[0])
        with open_binary(job.uri) as file:
            self._image(job, file) if self.clip.media_type is MediaType.IMAGE else self._video(job, file)

    def _image(self, job: ClipJob, file: BinaryIO) -> None:
        file_format = identify(file, job.uri)
        if self.last_part == "container":
            return
        image = read_image(file, job.uri, file_format, self.config.images, self.config.limits)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch is shown Pillow's own memory, and only reads it
            self._finish(iter([image]))

    def _video(self, job: ClipJob, file: BinaryIO) -> None:
        limits = self.config.limits
        source = VideoSource(file=file, uri=job.uri, file_format=identify(file, job.uri), limits=limits)
        last = job.frame_indices[-1]
        cache = IndexCache()
        index, reading = cache.look_up(source, job.frame_indices[0], last, last)
        assert reading is not None, "a new cache opens the file"
        if self.last_part == "container":
            reading.close()
            return
        if not reading.can_begin:
            reading.close()
            reading = Reading(source)
        frames = _Attempt(reading=reading, following=(), is_strict=False).read(cache, index, job.frame_indices)
        if self.last_part == "decode":
            for _ in frames:
                pass
            return
        if self.last_part == "planes":
            self.rows.fill_planes(self.clip, frames)
            return
        self._finish(displayed_frames(frames))

    def _finish(self, frames: Iterator[NDArray[np.uint8]]) -> None:
        height, width = self.clip.resized_height, self.clip.resized_width
        if self.last_part == "patch rows":
            self.rows.fill(self.clip, frames)
            return
        for frame in frames:
            if self.last_part == "resize":
                resize_to_planes(frame, height, width)


def seconds_by_part(
    clip: Clip, config: Config, repeats: int, put: Callable[[pa.Table], object], *, as_planes: bool = False
) -> dict[str, float]:
    """CPU seconds of each of PARTS of a clip, 0 for those that it does without.

    The chains take turns and the least of each counts: other processes on the machine only ever add time.

    Args:
        clip: a video that can be read by skipping, or an image (whose colour is part of decoding).
        config: limits and how images are converted.
        repeats: turns.
        put: copies a request to where the next stage takes it from, and lets go of it.
        as_planes: the clip, which has a `plane_size`, is written as planes.
    """
    rows = RowsBuffer([clip])
    names = _PLANE_CHAINS if as_planes else _CHAINS
    chains = [Chain(clip=clip, config=config, last_part=part, rows=rows) for part in names]
    wrap_it = partial(rows.wrap, clip, is_planar=as_planes)
    calls = [*chains, wrap_it, lambda: put(wrap_it())]
    least = np.min([[_cpu_seconds(call) for call in calls] for _ in range(1 + repeats)][1:], axis=0)
    wrap, wrap_and_put = least[len(chains) :]
    of_chains = np.diff(np.maximum.accumulate(least[: len(chains)]), prepend=0.0)
    found = dict(zip(names, of_chains.tolist(), strict=True))
    found |= {"arrow": float(wrap), "store": max(0.0, float(wrap_and_put - wrap))}
    return {part: found.get(part, 0.0) for part in PARTS}


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started
