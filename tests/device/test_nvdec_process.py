"""The lanes' memory: never freed while the worker has it open. A driver that only keeps books stands in for CUDA."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from pipeline.config import DecodeConfig, LimitsConfig
from pipeline.device.nvdec import process
from pipeline.device.nvdec.driver import DriverError
from pipeline.device.nvdec.process import NvdecProcess
from pipeline.device.nvdec.session import RefusedError
from pipeline.device.nvdec.worker import Lane
from pipeline.device.nvdec.worker_process import EndedError
from pipeline.errors import ErrorCode
from pipeline.media.container import ClipJob, MediaType

SMALL, LARGE = (1280, 720), (3840, 2160)
NUM_FRAMES = 20


@dataclass
class Books:
    """One device's memory, as the process that owns it and the one that opens it see it."""

    most_bytes: int = 1 << 40
    can_export: bool = True
    allocated: dict[int, int] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    num_made: int = 0

    def enter(self) -> None:
        pass

    def allocate(self, num_bytes: int) -> int:
        if sum(self.allocated.values()) + num_bytes > self.most_bytes:
            raise DriverError("cuMemAlloc_v2: CUDA error 2")
        self.num_made += 1
        self.allocated[self.num_made] = num_bytes
        return self.num_made

    def free(self, address: int) -> None:
        assert address not in self.opened, "freed while the worker has it open"
        del self.allocated[address]

    def export(self, address: int) -> bytes:
        if not self.can_export:
            raise DriverError("cuIpcGetMemHandle: CUDA error 801")
        return struct.pack("<Q", address)

    def open_exported(self, handle: bytes) -> int:
        (address,) = struct.unpack("<Q", handle)
        assert address in self.allocated
        self.opened.add(address)
        return address

    def close_exported(self, address: int) -> None:
        self.opened.remove(address)


class Worker:
    """Opens what it is given as the worker process does, and refuses the clip, or ends."""

    is_down = False
    ends = False

    def __init__(self, books: Books) -> None:
        self._books = books
        self._start()

    def ask(self, number: int, message: dict[str, Any], allowed_seconds: float, read: Callable[..., Any]) -> Any:
        self._lane._open(message["memory"])
        if self.ends:
            self.close()
            self._start()
            raise EndedError(ErrorCode.DECODER_CRASHED, "it ended")
        return read({"refused": "as the test wants it"})

    def close(self) -> None:
        self._books.opened.clear()

    def _start(self) -> None:
        self._lane = Lane(None, None, self._books, LimitsConfig())


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def decoders(books: Books, monkeypatch: pytest.MonkeyPatch) -> NvdecProcess:
    monkeypatch.setattr(process, "Driver", lambda _: books)
    monkeypatch.setattr(process, "WorkerProcess", lambda *_: Worker(books))
    return NvdecProcess(torch.device("cuda", 0), 1, DecodeConfig(), LimitsConfig())


def ask(decoders: NvdecProcess, size: tuple[int, int], reason: str = "as the test") -> None:
    job = ClipJob(
        uri="a.mp4",
        media_type=MediaType.VIDEO,
        frame_indices=tuple(range(NUM_FRAMES)),
        num_source_frames=NUM_FRAMES,
        resized_height=32,
        resized_width=32,
    )
    with pytest.raises(RefusedError, match=reason), decoders.frames(job, size):
        pass


@pytest.mark.parametrize("ends", [False, True], ids=["answers", "ends"])
def test_memory_that_has_become_too_small_is_freed_when_the_worker_has_let_go_of_it(ends, books, decoders):
    ask(decoders, SMALL)
    decoders._worker.ends = ends
    ask(decoders, LARGE, reason="it ended" if ends else "as the test")
    assert list(books.allocated) == [2]
    decoders._worker.ends = False
    ask(decoders, LARGE)
    assert books.num_made == 2
    decoders.close()
    assert not books.allocated


def test_without_memory_for_more_the_clip_is_refused_and_smaller_ones_are_served(books, decoders):
    ask(decoders, SMALL)
    books.most_bytes = 100 << 20
    ask(decoders, LARGE, reason="no device memory")
    ask(decoders, SMALL)
    assert books.num_made == 1
    decoders.close()
    assert not books.allocated


def test_memory_that_cannot_be_exported_is_given_back(books, decoders):
    books.can_export = False
    ask(decoders, SMALL, reason="no device memory")
    assert not books.allocated
