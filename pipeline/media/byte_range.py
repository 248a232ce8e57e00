"""A part of a file as a file: how a medium inside a shard is read in place, with random access and without a copy."""

import io
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

_BUFFER_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """Where a medium lies in the file that holds it: `num_bytes` from `start` on."""

    start: int
    num_bytes: int

    @property
    def stop(self) -> int:
        """The first byte behind it."""
        return self.start + self.num_bytes

    def to_values(self) -> dict[str, int]:
        """As plain values: the arguments that make it again."""
        return {"start": self.start, "num_bytes": self.num_bytes}


def open_range(file: BinaryIO, byte_range: ByteRange) -> BinaryIO:
    """Read a range of an open, seekable file as a file of its own, which closes the other with itself.

    It has no `fileno`: libraries that find one read around the range (libtiff does).
    Cost: 64 KiB; nothing is read until it is asked for.
    """
    return io.BufferedReader(_RangeFile(file, byte_range), _BUFFER_BYTES)


class _RangeFile(io.RawIOBase):
    def __init__(self, file: BinaryIO, byte_range: ByteRange) -> None:
        self._file = file
        self._range = byte_range
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._range.num_bytes - self._position))
        self._file.seek(self._range.start + self._position)
        data = self._file.read(wanted) if wanted else b""
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._range.num_bytes}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to {base + offset}: before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
