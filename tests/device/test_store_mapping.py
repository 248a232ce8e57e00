import mmap
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.device.store_mapping import Mapping, RegisteredStore, find_mapping

MAPS = """\
55d0c8a00000-55d0c8a21000 r--p 00000000 fd:00 1048602                    /usr/bin/python3.11
7f1000000000-7f1040000000 rw-s 00000000 00:1a 77                         /dev/shm/plasmaW3xk1b (deleted)
7f2000000000-7f2000100000 rw-s 00000000 00:01 1030                       /memfd:patchwire (deleted)
7f2800000000-7f2808000000 rw-s 00000000 fd:00 2048                       /tmp/ray/session_1/plasmaQ9zz2c (deleted)
7f3000000000-7f3000021000 rw-p 00000000 00:00 0
7ffd1a9c2000-7ffd1a9e3000 rw-p 00000000 00:00 0                          [stack]
"""
STORE = Mapping(start=0x7F1000000000, stop=0x7F1040000000)


@pytest.mark.parametrize("address", [0x7F1000000000, 0x7F1000000100, 0x7F103FFFFF00])
def test_a_buffer_in_the_store_finds_its_mapping(address: int) -> None:
    assert find_mapping(address, 256, MAPS) == STORE


@pytest.mark.parametrize(
    ("address", "num_bytes"),
    [
        pytest.param(0x7F103FFFFF00, 257, id="across the end"),
        pytest.param(0x7F0FFFFFFFFF, 16, id="before it"),
        pytest.param(0x7F2000000000, 16, id="another shared mapping"),
        pytest.param(0x7F2800000000, 16, id="overflowed to a disk"),
        pytest.param(0x7F3000000000, 16, id="heap"),
        pytest.param(0x55D0C8A00000, 16, id="program"),
    ],
)
def test_a_buffer_elsewhere_finds_none(address: int, num_bytes: int) -> None:
    assert find_mapping(address, num_bytes, MAPS) is None


@pytest.fixture
def shared_file() -> Iterator[np.ndarray]:
    path = Path("/dev/shm") / f"plasma-test-{os.getpid()}"
    with path.open("wb+") as file:
        file.truncate(1 << 16)
        mapped = mmap.mmap(file.fileno(), 1 << 16)
    path.unlink()
    yield np.frombuffer(mapped, dtype=np.uint8)


def test_this_process_s_own_mappings_are_read(shared_file: np.ndarray) -> None:
    address = shared_file.ctypes.data
    assert find_mapping(address + 4096, 100) == Mapping(start=address, stop=address + (1 << 16))
    on_the_heap = np.zeros(100, dtype=np.uint8)
    assert find_mapping(on_the_heap.ctypes.data, 100) is None


class Refusing:
    """CUDA's runtime as it answers where memory cannot be registered."""

    def __init__(self) -> None:
        self.num_calls = 0

    def cudaHostRegister(self, *_: int) -> int:
        self.num_calls += 1
        return 801  # cudaErrorNotSupported


def test_a_store_that_cuda_refuses_is_not_covered_and_not_tried_again(
    shared_file: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Refusing()
    monkeypatch.setattr("torch.cuda.cudart", lambda: runtime)
    monkeypatch.setattr("torch.cuda.device", lambda _: nullcontext())
    store = RegisteredStore(torch.device("cpu"))
    assert not store.covers(shared_file.ctypes.data, 100)
    assert not store.covers(shared_file.ctypes.data + 4096, 100)
    assert runtime.num_calls == 1
