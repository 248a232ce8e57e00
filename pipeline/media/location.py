"""A URI becomes bytes to read: the one place that knows what a source's name means.

A URI is an absolute local path, a `file://` URI whose percent-encoding can hold any byte (the only
form for names that are not valid UTF-8), anything fsspec opens, or the name of a medium inside one of
these (inside.py). Local names are looked at before they are opened, because opening a FIFO blocks for
ever and opening a device can have effects. Everything downstream reads through a file object, so no
decoder ever sees a name it could interpret, or knows whether a file is one of its own.
"""

import functools
import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.addresses import http_options
from pipeline.media.byte_range import ByteRange, open_range
from pipeline.media.driver_file import driver_file
from pipeline.media.inside import TAR, Inside, inside_of

if TYPE_CHECKING:
    from pipeline.media.table_cells import TableCells

_FILE_SCHEME = "file://"
_REMOTE_BUFFER_BYTES = 65_536
# Below this a range of an object is fetched whole: one request, and no driver's read-ahead of megabytes.
_REMOTE_WHOLE_BYTES = 8 << 20
_SAFE_IN_PATH = "/:@!$&'()*+,;=-._~"


def local_path(uri: str) -> bytes | str | None:
    """The local path that a URI names, or None where fsspec has to open it, or it lies inside another file.

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


def open_binary(
    uri: str, *, byte_range: ByteRange | None = None, max_bytes: int | None = None, stage: Stage = Stage.PROBE
) -> BinaryIO:
    """Open a medium for reading; the caller closes it.

    Args:
        uri: as described at the top of this file.
        byte_range: where a member lies in its shard; None for everything else.
        max_bytes: refuse larger media; None takes any.
        stage: written into the errors.
    Raises: MediaError UNREADABLE, NOT_A_FILE, LIMIT_EXCEEDED, CHANGED_MEDIA (a shard that is shorter now),
        CORRUPT_MEDIA or UNSUPPORTED_MEDIA (a table's cell).
    Cost: nothing is read before it is asked for, but a cell, and a member of a remote shard below 8 MiB.
    """
    inside = inside_of(uri)
    if byte_range is not None:
        _require_size(uri, byte_range.num_bytes, max_bytes, stage)
        return _open_member(uri, uri if inside is None else inside.container, byte_range, stage)
    file = _open_whole(uri, stage) if inside is None else _open_inside(uri, inside, stage)
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        _require_size(uri, num_bytes, max_bytes, stage)
    except MediaError:
        file.close()
        raise
    return file


def _require_size(uri: str, num_bytes: int, max_bytes: int | None, stage: Stage) -> None:
    if max_bytes is not None and num_bytes > max_bytes:
        raise MediaError(
            ErrorCode.LIMIT_EXCEEDED, f"{uri}: {num_bytes} bytes; limits.max_file_bytes is {max_bytes}", stage
        )


def _open_whole(uri: str, stage: Stage) -> BinaryIO:
    path = local_path(uri)
    return _open_remote(uri, stage) if path is None else _open_local(uri, path, stage)


def _open_member(uri: str, container: str, byte_range: ByteRange, stage: Stage) -> BinaryIO:
    if local_path(container) is None and byte_range.num_bytes <= _REMOTE_WHOLE_BYTES:
        return _fetch_range(uri, container, byte_range, stage)
    file = _open_whole(container, stage)
    num_bytes = file.seek(0, os.SEEK_END)
    if num_bytes < byte_range.stop:
        file.close()
        raise _shorter(uri, byte_range, num_bytes, stage)
    return open_range(file, byte_range)


def _shorter(uri: str, byte_range: ByteRange, num_bytes: int, stage: Stage) -> MediaError:
    message = f"{uri}: expected bytes {byte_range.start} to {byte_range.stop}, the shard ends at {num_bytes}"
    return MediaError(ErrorCode.CHANGED_MEDIA, message, stage)


def _open_inside(uri: str, inside: Inside, stage: Stage) -> BinaryIO:
    if inside.scheme == TAR:
        raise MediaError(ErrorCode.UNREADABLE, f"{uri}: expected to be told where in the shard the member lies", stage)
    cell = inside.cell
    if cell is None:
        raise MediaError(ErrorCode.UNREADABLE, f"{uri}: expected row://<column>/<number>::<file>", stage)
    try:
        data = _open_table(inside.container, file_version(inside.container), stage).cell(*cell)
    except MediaError:
        raise
    except (IndexError, KeyError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise MediaError(ErrorCode.CORRUPT_MEDIA, f"{uri}: expected a cell of bytes: {error}", stage) from error
    except Exception as error:  # Arrow's other errors, and each store's own
        reason = f"{type(error).__name__}: {error}"
        raise MediaError(ErrorCode.UNREADABLE, f"{uri}: the table cannot be read: {reason}", stage) from error
    if data is None:
        raise MediaError(ErrorCode.UNSUPPORTED_MEDIA, f"{uri}: expected bytes, the cell is null", stage)
    return io.BytesIO(data)


@functools.lru_cache(maxsize=1)
def _open_table(uri: str, _version: tuple[int, int] | None, stage: Stage) -> "TableCells":
    """The table that was read last: the cells of one table are asked for one after another."""
    from pipeline.media.table_cells import TableCells  # Arrow is large, and most decoder processes do without

    return TableCells(_open_whole(uri, stage))


def file_version(uri: str) -> tuple[int, int] | None:
    """Size and modification time in nanoseconds of a local file; None where there is none, or it is remote."""
    path = local_path(uri)
    try:
        status = None if path is None else os.stat(path)  # noqa: PTH116  bytes: exact for any name
    except (OSError, ValueError):
        return None
    return None if status is None else (status.st_size, status.st_mtime_ns)


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
        opener = fsspec.open(uri, "rb", **http_options(uri))
        return io.BufferedReader(driver_file(opener.open(), opener), _REMOTE_BUFFER_BYTES)
    except Exception as error:  # each filesystem of fsspec has its own exceptions
        raise _unreadable(uri, error, stage) from error


def _fetch_range(uri: str, container: str, byte_range: ByteRange, stage: Stage) -> BinaryIO:
    from fsspec.core import url_to_fs

    try:
        store, path = url_to_fs(container, **http_options(container))
        data = store.cat_file(path, start=byte_range.start, end=byte_range.stop) if byte_range.num_bytes else b""
    except Exception as error:  # each filesystem of fsspec has its own exceptions
        raise _unreadable(uri, error, stage) from error
    if len(data) > byte_range.num_bytes:  # a web server that knows no ranges sends the whole file
        data = data[byte_range.start : byte_range.stop]
    if len(data) < byte_range.num_bytes:
        raise _shorter(uri, byte_range, byte_range.start + len(data), stage)
    return io.BytesIO(data)


def _unreadable(uri: str, error: Exception, stage: Stage) -> MediaError:
    # fsspec's http says "not found" for every failure; what it was is the cause.
    why = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    reason = f"{type(why).__name__}: {why}"
    return MediaError(ErrorCode.UNREADABLE, f"{uri}: expected a readable object: {reason}", stage)
