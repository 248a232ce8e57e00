"""The GPU's decoders as an encode actor sees them: clips in, planes in its own device memory out, or a refusal.

They run in a process of their own (worker.py), so that a file that hangs, crashes or over-allocates a decoder ends
neither the actor nor a clip: at its deadline the process is killed, every clip that was under way is refused, which
sends it to the CPU's decoder with its own deadline and limits, and the next clip starts the process again. After
three such ends it stays down, and all clips are refused.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, Protocol

import torch

from pipeline.config import DecodeConfig, LimitsConfig
from pipeline.device.nvdec.clip import distinct_frames, nv12_bytes
from pipeline.device.nvdec.driver import Driver, DriverError
from pipeline.device.nvdec.session import RefusedError
from pipeline.media.colour import ColourSpace
from pipeline.media.container import ClipJob
from pipeline.media.decoder_process import import_path, last_words
from pipeline.media.protocol import receive_message, send_message
from pipeline.media.sandbox import job_seconds

MOST_BYTES = 4 << 30  # of one clip's planes; a larger clip goes to the CPU
_MOST_ENDS = 3
_START_SECONDS = 60.0
_LEAST_BYTES = 64 << 20


class NvdecUnavailableError(Exception):
    """There is no decoder here; says what is missing."""


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
        self.handle = driver.export(self.address).hex()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.num_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}


@dataclass(slots=True)
class _Lane:
    """One decoder's channel, by its number, and the memory that it writes to."""

    number: int
    memory: _Memory | None = None


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
        self._decode, self._limits = decode, limits
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(1, "nvdec-starter")  # Linux ends the worker with the thread that starts it
        self._process: subprocess.Popen[bytes] | None = None
        self._channels: list[socket.socket] = []
        self._num_ends = 0
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        self.num_decoders = num_decoders
        try:
            self._driver = Driver(self._device.index)
            self._start()
        except DriverError as error:
            raise NvdecUnavailableError(str(error)) from error
        for number in range(num_decoders):
            self._lanes.put(_Lane(number=number))

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def is_down(self) -> bool:
        """Whether it has ended too often: every clip is refused from now on."""
        return self._num_ends >= _MOST_ENDS

    @contextmanager
    def frames(self, job: ClipJob, size: tuple[int, int]) -> Iterator[DeviceFrames]:
        """Decode a clip and lend its planes; queue no work on them that outlives the block.

        Args:
            job: the clip.
            size: width and height of its frames in pixels.
        Raises: RefusedError where the CPU has to decode it.
        Cost: device memory for the planes, kept for later clips; blocks until a decoder is free and done.
        """
        width, height = size
        num_frames = len(distinct_frames(job))
        num_bytes = num_frames * nv12_bytes(width, height)
        if num_bytes > MOST_BYTES:
            raise RefusedError(f"{num_bytes} bytes of planes, at most {MOST_BYTES}")
        lane = self._lanes.get()
        try:
            memory = self._reserve(lane, num_bytes)
            reply = self._ask(lane, {**job.to_values(), "width": width, "height": height, "memory": memory.handle}, job)
            if "refused" in reply:
                raise RefusedError(reply["refused"])
            planes = torch.as_tensor(memory, device=self._device)[:num_bytes]
            yield DeviceFrames(planes=planes.view(num_frames, height * 3 // 2, width), colours=ColourSpace(**reply))
        finally:
            self._lanes.put(lane)

    def close(self) -> None:
        """End the worker and give its memory back; no clip may be under way."""
        with self._lock:
            self._kill()
        self._starter.shutdown()
        self._driver.enter()
        while not self._lanes.empty():
            memory = self._lanes.get().memory
            if memory is not None:
                self._driver.free(memory.address)

    def _reserve(self, lane: _Lane, num_bytes: int) -> _Memory:
        if lane.memory is None or lane.memory.num_bytes < num_bytes:
            self._driver.enter()
            if lane.memory is not None:
                self._driver.free(lane.memory.address)
                lane.memory = None
            try:
                lane.memory = _Memory(self._driver, max(_LEAST_BYTES, 1 << (num_bytes - 1).bit_length()))
            except DriverError as error:
                raise RefusedError(f"no device memory for {num_bytes} bytes of planes: {error}") from error
        return lane.memory

    def _ask(self, lane: _Lane, message: dict[str, Any], job: ClipJob) -> dict[str, Any]:
        """Send a job and wait for its answer until its deadline."""
        channel = self._living_channel(lane)
        allowed_seconds = self._decode.timeout_seconds + self._decode.timeout_per_video_second * job_seconds(job)
        try:
            channel.settimeout(allowed_seconds)
            send_message(channel, message)
            return receive_message(channel)[0]
        except (EOFError, OSError) as error:
            with self._lock:
                if channel in self._channels:
                    self._num_ends += 1
                    self._kill()
            raise RefusedError(f"the decoders' process ended: {error}") from error

    def _living_channel(self, lane: _Lane) -> socket.socket:
        with self._lock:
            if self.is_down:
                raise RefusedError(f"the decoders' process ended {self._num_ends} times")
            if self._process is None:
                try:
                    self._start()
                except DriverError as error:
                    self._num_ends += 1
                    raise RefusedError(str(error)) from error
            return self._channels[lane.number]

    def _start(self) -> None:
        self._starter.submit(self._start_worker).result()

    def _start_worker(self) -> None:
        pairs = [socket.socketpair() for _ in range(self.num_decoders)]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        handles = [end.fileno() for end in theirs]
        arguments = map(str, [os.getpid(), self._device.index, *handles])
        with TemporaryFile() as stderr:
            self._process = subprocess.Popen(  # noqa: S603  # our own module, in our own interpreter
                [sys.executable, "-P", "-m", "pipeline.device.nvdec.worker", *arguments],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path())},
                start_new_session=True,  # Ctrl-C is for the run, which then ends its children
            )
            for end in theirs:
                end.close()
            self._channels = ours
            try:
                ours[0].settimeout(_START_SECONDS)
                send_message(ours[0], {"limits": self._limits.model_dump(mode="json")})
                reply, _ = receive_message(ours[0])
            except (EOFError, OSError) as error:
                self._kill()
                raise DriverError(f"the decoders' process did not start: {last_words(stderr)}") from error
        if "error" in reply:
            self._kill()
            raise DriverError(reply["error"])

    def _kill(self) -> None:
        """End the worker, if there is one; whoever waits for an answer is told by the end of its channel."""
        channels, self._channels = self._channels, []
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        for channel in channels:
            with suppress(OSError):  # the other end may be gone
                channel.shutdown(socket.SHUT_RDWR)  # wakes who waits for an answer
            channel.close()
