"""Videos, plans and decoded planes for the tests of decoding on a GPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import Preprocessing
from pipeline.config import Config
from pipeline.device.nvdec.clip import distinct_frames
from pipeline.device.nvdec.process import DeviceFrames
from pipeline.device.nvdec.session import RefusedError
from pipeline.device.nvdec.worker_process import EndedError
from pipeline.errors import ErrorCode
from pipeline.media.colour import ColourSpace
from pipeline.media.container import ClipJob
from pipeline.plan.clips import Recipe, plan_clips
from pipeline.plan.schema import Clip, RequestPlan
from pipeline.sources.content_id import content_id
from pipeline.sources.items import SourceItem
from tests.media.helpers import probe

SMALL = {"model": "random:tiny", "sizes": {"max_tokens_per_frame": 16}}


def make_config(**sections: dict[str, object]) -> Config:
    return Config.from_values({**SMALL, "decode": {"gpu": "auto", "gpu_decoders": 2}, **sections})


def make_clips(*paths: Path, config: Config | None = None) -> list[Clip]:
    """As a run plans them, with the headers read in this process."""
    recipe = Recipe(preprocessing=Preprocessing(), config=config or make_config())
    clips = []
    for path in paths:
        status = path.stat()
        item = SourceItem(uri=str(path), num_bytes=status.st_size, modified_ns=status.st_mtime_ns)
        clips += plan_clips(item, content_id(item), probe(path), recipe)
    return clips


def make_plan(*paths: Path, config: Config | None = None) -> RequestPlan:
    return RequestPlan.of(make_clips(*paths, config=config))


def planes_of(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A decoded 4:2:0 frame as NV12, uint8 (H * 3/2, W): what a GPU's decoder is to write."""
    sides = [(frame.height, frame.width), *[(frame.height // 2, frame.width // 2)] * 2]
    luma, u, v = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]
        for plane, (height, width) in zip(frame.planes, sides, strict=True)
    )
    chroma = np.stack([u, v], axis=-1).reshape(frame.height // 2, frame.width)
    return np.concatenate([luma, chroma])


def decode_planes(path: Path | str) -> list[NDArray[np.uint8]]:
    """Every frame's planes by a sequential decode on the CPU: the oracle for luma and chroma."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        return [planes_of(frame) for frame in container.decode(stream)]


def colours_of(path: Path | str) -> ColourSpace:
    with av.open(str(path), metadata_errors="ignore") as container:
        return ColourSpace.of(next(container.decode(container.streams.best("video"))))


class CpuDecoders:
    """Gives the planes that a GPU's decoders would, from a plain decode on the CPU, or refuses as they might.

    Args:
        refused: names of files that are refused.
        deadly: names of files that end the decoders' process.
    """

    num_decoders = 2
    is_down = False

    def __init__(self, refused: Sequence[str] = (), deadly: Sequence[str] = ()) -> None:
        self._refused, self._deadly = refused, deadly
        self.given: list[str] = []
        self.is_closed = False

    @contextmanager
    def frames(self, job: ClipJob, size: tuple[int, int]) -> Iterator[DeviceFrames]:
        self.given.append(Path(job.uri).name)
        if self.given[-1] in self._deadly:
            raise EndedError(ErrorCode.DECODER_CRASHED, "as the test wants it")
        if self.given[-1] in self._refused:
            raise RefusedError("as the test wants it")
        planes = decode_planes(job.uri)
        assert planes[0].shape == (size[1] * 3 // 2, size[0])
        wanted = np.stack([planes[number] for number in distinct_frames(job)])
        yield DeviceFrames(planes=torch.from_numpy(wanted), colours=colours_of(job.uri))

    def close(self) -> None:
        self.is_closed = True
