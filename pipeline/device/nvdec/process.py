"""The GPU's decoders as an encode actor sees them: clips in, planes in its own device memory out, or a refusal.

They run in a process of their own (worker.py), so that a file that hangs, crashes or over-allocates a decoder ends
neither the actor nor a clip: at its deadline the process is killed, and every clip that was under way is refused, which
sends it to the CPU's decoder with its own deadline and limits.

CUDA forbids freeing exported memory that is open elsewhere. So memory that has become too small is kept until the
worker has answered a job with its replacement, whose handle makes it close the old one, or has ended.
"""

import queue
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.config import DecodeConfig, LimitsConfig
from pipeline.device.nvdec.clip import distinct_frames
from pipeline.device.nvdec.driver import Driver, DriverError
from pipeline.device.nvdec.eligible import MOST_BYTES
from pipeline.device.nvdec.reply import colours_or_refusal
from pipeline.device.nvdec.session import RefusedError
from pipeline.device.nvdec.worker_process import NvdecUnavailableError, WorkerProcess
from pipeline.media.colour import ColourSpace
from pipeline.media.container import ClipJob
from pipeline.media.grid import frame_bytes
from pipeline.media.sandbox import job_seconds

_LEAST_BYTES = 64 << 20
_WORKER = "pipeline.device.nvdec.worker"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceFrames:
    """A clip's distinct frames: uint8 (N, H * 3/2, W), NV12, on the device; valid while the lane is held."""

    planes: torch.Tensor
    colours: ColourSpace


class DeviceDecoders(Protocol):
    """Decodes clips into device memory, for any number of threads."""

    num_decoders: int

    @property
    def is_down(self) -> bool:
        """Whether every clip is refused from now on."""
        ...

    def frames(self, job: ClipJob, size: tuple[int, int]) -> AbstractContextManager[DeviceFrames]:
        """Decode a clip and lend its planes. Raises: RefusedError where the CPU has to decode it."""
        ...

    def close(self) -> None:
        """End it; no clip may be under way."""
        ...


class _Memory:
    """Device memory that the worker may open, seen by torch without a copy."""

    def __init__(self, driver: Driver, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.address = driver.allocate(num_bytes)
        try:
            self.handle = driver.export(self.address).hex()
        except DriverError:
            driver.free(self.address)
            raise

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.num_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}


@dataclass(slots=True)
class _Lane:
    """One decoder's channel, by its number, the memory that it writes to, and what the worker may still have open."""

    number: int
    memory: _Memory | None = None
    replaced: _Memory | None = None


class NvdecProcess:
    """Owns the worker process and its lanes' memory; for any number of threads.

    Args:
        device: a CUDA device.
        num_decoders: clips decoded at once.
        decode: deadlines.
        limits: what a medium may ask for.
    Raises: NvdecUnavailableError where the device, or its driver, has no decoders.
    """

    def __init__(self, device: torch.device, num_decoders: int, decode: DecodeConfig, limits: LimitsConfig) -> None:
        self._device = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
        self._decode = decode
        self.num_decoders = num_decoders
        try:
            self._driver = Driver(self._device.index)
        except DriverError as error:
            raise NvdecUnavailableError(str(error)) from error
        settings = {"limits": limits.model_dump(mode="json")}
        self._worker = WorkerProcess(_WORKER, [str(self._device.index)], settings, num_decoders)
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for number in range(num_decoders):
            self._lanes.put(_Lane(number=number))

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._worker.pid

    @property
    def is_down(self) -> bool:
        """Whether the worker has ended too often: every clip is refused from now on."""
        return self._worker.is_down

    @contextmanager
    def frames(self, job: ClipJob, size: tuple[int, int]) -> Iterator[DeviceFrames]:
        """Decode a clip and lend its planes; queue no work on them that outlives the block.

        Args:
            job: the clip.
            size: width and height of its frames in pixels.
        Raises: RefusedError where the CPU has to decode it.
        Cost: device memory for the planes, kept for later clips (while it grows, the lane has what it had before,
            too); blocks until a decoder is free and done.
        """
        width, height = size
        num_frames = len(distinct_frames(job))
        num_bytes = num_frames * frame_bytes(height, width)
        if num_bytes > MOST_BYTES:
            raise RefusedError(f"{num_bytes} bytes of planes, at most {MOST_BYTES}")
        allowed_seconds = self._decode.timeout_seconds + self._decode.timeout_per_video_second * job_seconds(job)
        lane = self._lanes.get()
        try:
            memory = self._reserve(lane, num_bytes)
            message = {**job.to_values(), "width": width, "height": height, "memory": memory.handle}
            colours = self._ask(lane, message, allowed_seconds)
            planes = torch.as_tensor(memory, device=self._device)[:num_bytes]
            yield DeviceFrames(planes=planes.view(num_frames, height * 3 // 2, width), colours=colours)
        finally:
            self._lanes.put(lane)

    def close(self) -> None:
        """End the worker and give its memory back; no clip may be under way."""
        self._worker.close()
        self._driver.enter()
        while not self._lanes.empty():
            lane = self._lanes.get()
            for memory in (lane.memory, lane.replaced):
                if memory is not None:
                    self._driver.free(memory.address)

    def _ask(self, lane: _Lane, message: dict[str, Any], allowed_seconds: float) -> ColourSpace:
        try:
            answer = self._worker.ask(lane.number, message, allowed_seconds, colours_or_refusal)
        except RefusedError:  # the worker has ended
            self._free_replaced(lane)
            raise
        self._free_replaced(lane)
        if isinstance(answer, str):
            raise RefusedError(answer)
        return answer

    def _reserve(self, lane: _Lane, num_bytes: int) -> _Memory:
        if lane.memory is None or lane.memory.num_bytes < num_bytes:
            assert lane.replaced is None, "each job is answered, or the worker ends"
            self._driver.enter()
            try:
                memory = _Memory(self._driver, max(_LEAST_BYTES, 1 << (num_bytes - 1).bit_length()))
            except DriverError as error:
                raise RefusedError(f"no device memory for {num_bytes} bytes of planes: {error}") from error
            lane.memory, lane.replaced = memory, lane.memory
        return lane.memory

    def _free_replaced(self, lane: _Lane) -> None:
        if lane.replaced is not None:
            self._driver.enter()
            self._driver.free(lane.replaced.address)
            lane.replaced = None
