"""Memory that a decoder process fills and its parent hands on without a copy.

An anonymous file (memfd) has no name to clean up and no /dev/shm to fill: it goes when the last mapping and handle
go, whoever was killed. New pages and new mappings are what sharing costs. To put 27 MB of patch rows where they belong
took 16 ms of CPU through a new mapping, 8 ms by way of a cached array and `pwrite` into pages that were used before,
and 5 ms through a mapping that was used before, as much as into private memory (Linux 6.18, two noisy cores). So a
buffer that nobody looks at any more is used again, and a child that is given one again writes through its mapping. The
trade-off: a worker keeps one, of at most 128 MiB.
"""

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

MOST_KEPT_BYTES = 128 << 20


class _Pages:
    """An anonymous file and its mapping, open as long as this lives."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = max(num_bytes, 1)
        self.handle = os.memfd_create("patchwire", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.handle)
        os.ftruncate(self.handle, self.num_bytes)
        self.mapping = mmap.mmap(self.handle, self.num_bytes)


class BufferPool:
    """Keeps the pages of one buffer for the next one; whatever thread lets go of them may give them back."""

    def __init__(self) -> None:
        self._kept: list[_Pages] = []

    def take(self, num_bytes: int) -> _Pages:
        """Pages for a buffer: the kept ones where they suffice, else new ones. What is in them is anything."""
        try:
            pages = self._kept.pop()
        except IndexError:
            return _Pages(num_bytes)
        return pages if pages.num_bytes >= num_bytes else _Pages(num_bytes)

    def give_back(self, pages: _Pages) -> None:
        """Keep pages that nobody looks at any more, instead of those that were kept."""
        if pages.num_bytes <= MOST_KEPT_BYTES:
            self._kept[:] = [pages]


class SharedBuffer:
    """One request's bytes: zero at first, or anything where the pages are a pool's.

    `memory` may be wrapped (`pyarrow.py_buffer(buffer.memory)`) and outlives this object: the pages are freed, or go
    back to their pool, when the last view of it dies. Write to it only while no clip is being decoded into it.
    """

    def __init__(self, num_bytes: int, pool: BufferPool | None = None) -> None:
        """Reserve `num_bytes`; new pages are taken when they are first written."""
        pages = _Pages(num_bytes) if pool is None else pool.take(num_bytes)
        # Views refer to this array and not to the mapping, so its end is theirs.
        owner: NDArray[np.uint8] = np.frombuffer(pages.mapping, np.uint8, num_bytes)
        if pool is not None:
            weakref.finalize(owner, pool.give_back, pages).atexit = False
        self.num_bytes = num_bytes
        self.handle = pages.handle
        self.memory = owner.data
        self._pages = pages


class BufferWriter:
    """The child's side: gives arrays to write into, which are what the parent then sees.

    A buffer that comes for a second job is mapped, and stays so until a job brings another one: until then its pages
    are there, whatever the parent does with it. One that is larger than a worker keeps is written like a file.
    """

    def __init__(self) -> None:
        self._handle = -1
        self._known: tuple[int, int] | None = None
        self._mapped: NDArray[np.uint8] | None = None

    def begin(self, handle: int) -> None:
        """Begin a job whose buffer this is; the handle stays the caller's."""
        status = os.fstat(handle)
        self._handle, key = handle, (status.st_dev, status.st_ino)
        if key != self._known:
            self._known, self._mapped = key, None
        elif self._mapped is None and status.st_size <= MOST_KEPT_BYTES:
            with suppress(OSError):  # no address space: it goes on as a file
                self._mapped = np.frombuffer(mmap.mmap(handle, status.st_size), np.uint8)

    def patches(self, offset: int, count: int, shape: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
        """As `file_patches` of the job's buffer; each array is to be filled before the next one is asked for."""
        if self._mapped is None:
            return file_patches(self._handle, offset, count, shape)
        return iter(self._mapped[offset : offset + count * shape[0] * shape[1]].reshape(count, *shape))


def file_patches(handle: int, offset: int, count: int, shape: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Yield one array `count` times, and write what was put into it to a buffer's file, one after the other.

    Args:
        handle: the buffer's.
        offset: in bytes, where the first one goes.
        count: how many.
        shape: of the array, uint8.
    Raises: OSError.
    Cost: one copy, in the cache.
    """
    scratch = np.empty(shape, np.uint8)
    for number in range(count):
        yield scratch
        _write_all(handle, scratch.reshape(-1).data, offset + number * scratch.nbytes)


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    while data:
        num_written = os.pwrite(handle, data, offset)
        data, offset = data[num_written:], offset + num_written
