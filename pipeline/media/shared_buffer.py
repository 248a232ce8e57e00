"""Memory that a decoder process fills and its parent hands on without a copy.

An anonymous file (memfd) has no name to clean up and no /dev/shm to fill: it goes when the last mapping
and handle go, whoever was killed. The parent maps it once; the child maps the window of one clip.
"""

import mmap
import os
import weakref


class SharedBuffer:
    """One request's bytes, zero at first.

    `memory` may be wrapped (`pyarrow.py_buffer(buffer.memory)`) and outlives this object: the bytes are
    freed when the last view of it dies. Write to it only while no clip is being decoded into it.
    """

    def __init__(self, num_bytes: int) -> None:
        """Reserve `num_bytes` (at least 1); pages are taken when they are first written."""
        self.num_bytes = num_bytes
        self.handle = os.memfd_create("patchwire", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.handle)
        os.ftruncate(self.handle, max(num_bytes, 1))
        self.memory = memoryview(mmap.mmap(self.handle, max(num_bytes, 1)))[:num_bytes]


def map_window(handle: int, offset: int, num_bytes: int) -> tuple[mmap.mmap, int]:
    """Map the pages that hold a window of a buffer, and where in them the window begins."""
    within = offset % mmap.ALLOCATIONGRANULARITY
    return mmap.mmap(handle, within + num_bytes, offset=offset - within), within
