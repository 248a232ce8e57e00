"""What an fsspec driver raises, as OSError: callers handle a store as they handle a disk.

A lost network is no OSError to every driver: botocore's EndpointConnectionError and NoCredentialsError, which s3fs
(2026.9) hands on as they are, and aiohttp's ClientPayloadError are plain exceptions. Files are read long after they
were opened, so it goes with them: a medium whose store is gone is unreadable, and not corrupt.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import PatchwireError


@contextmanager
def driver_errors() -> Iterator[None]:
    """Make an exception of a driver's own kind an OSError that names the kind; OSErrors and ours stay as they are."""
    try:
        yield
    except (OSError, PatchwireError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def driver_file(file: Any, opener: object = None) -> io.RawIOBase:
    """A file that a driver opened for reading, which raises OSError alone and closes the driver's with itself.

    `opener` lives as long as the file does: an archive closes its members when it is collected.
    Cost: none; `read` hands over the driver's own bytes.
    """
    return _DriverFile(file, opener)


class _DriverFile(io.RawIOBase):
    def __init__(self, file: Any, opener: object) -> None:
        self._file = file
        self._opener = opener

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with driver_errors():
            return bytes(self._file.read(-1 if size is None else size))

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with driver_errors():
            self._file.seek(offset, whence)  # what it gives back is not the same of all drivers
            return self.tell()

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
