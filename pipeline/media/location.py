"""A URI becomes bytes to read: the one place that knows what a source's name means.

A URI is an absolute local path, a `file://` URI whose percent-encoding can hold any byte (the only
form for names that are not valid UTF-8), or anything fsspec opens. Local names are looked at before
they are opened, because opening a FIFO blocks for ever and opening a device can have effects.
Everything downstream reads through a file object, so no decoder ever sees a name it could interpret.
"""

import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import ErrorCode, MediaError, Stage

_FILE_SCHEME = "file://"
_REMOTE_BUFFER_BYTES = 65_536
_SAFE_IN_PATH = "/:@!$&'()*+,;=-._~"


def local_path(uri: str) -> bytes | str | None:
    """The local path that a URI names, or None where fsspec has to open it.

    A `file://` URI gives bytes when its name is not valid UTF-8, and str otherwise.
    """
    if uri.startswith(_FILE_SCHEME):
        encoded = unquote_to_bytes(uri.removeprefix(_FILE_SCHEME))
        try:
            return encoded.decode("utf-8")
        except UnicodeDecodeError:
            return encoded
    return None if "://" in uri and not uri.startswith("/") else uri


def path_uri(path: bytes | str) -> str:
    """The URI of an absolute local path: the path itself where it is text, else a `file://` URI."""
    encoded = os.fsencode(path)
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError:
        return _FILE_SCHEME + quote_from_bytes(encoded, safe=_SAFE_IN_PATH)


def open_binary(uri: str, *, max_bytes: int | None = None, stage: Stage = Stage.PROBE) -> BinaryIO:
    """Open a medium for reading; the caller closes it.

    Args:
        uri: as described at the top of this file.
        max_bytes: refuse larger files; None takes any.
        stage: written into the errors.
    Raises: MediaError UNREADABLE, NOT_A_FILE or LIMIT_EXCEEDED.
    """
    path = local_path(uri)
    file = _open_remote(uri, stage) if path is None else _open_local(uri, path, stage)
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    if max_bytes is not None and num_bytes > max_bytes:
        file.close()
        raise MediaError(
            ErrorCode.LIMIT_EXCEEDED, f"{uri}: {num_bytes} bytes; limits.max_file_bytes is {max_bytes}", stage
        )
    return file


def _open_local(uri: str, path: bytes | str, stage: Stage) -> BinaryIO:
    try:
        _require_regular(uri, Path(os.fsdecode(path)).stat().st_mode, stage)
        # O_NONBLOCK: if a FIFO took the file's place since, the open returns and the next look refuses it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise MediaError(ErrorCode.UNREADABLE, f"{uri}: expected a readable file: {reason}", stage) from error
    file = os.fdopen(handle, "rb")
    try:
        _require_regular(uri, os.fstat(handle).st_mode, stage)
    except MediaError:
        file.close()
        raise
    return file


def _require_regular(uri: str, mode: int, stage: Stage) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise MediaError(ErrorCode.NOT_A_FILE, f"{uri}: expected a regular file, found {kind}", stage)


def _open_remote(uri: str, stage: Stage) -> BinaryIO:
    import fsspec

    try:
        return io.BufferedReader(_RemoteFile(fsspec.open(uri, "rb")), _REMOTE_BUFFER_BYTES)
    except Exception as error:  # each filesystem of fsspec has its own exceptions
        reason = f"{type(error).__name__}: {error}"
        raise MediaError(ErrorCode.UNREADABLE, f"{uri}: expected a readable object: {reason}", stage) from error


class _RemoteFile(io.RawIOBase):
    """An fsspec file with what opened it: an archive closes its members when it is collected."""

    def __init__(self, opener: Any) -> None:
        self._opener = opener
        self._file = opener.open()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return int(self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
