"""A file appears whole or not at all.

Local: the bytes go to a hidden temporary name in the same folder, which no `*.parquet` glob matches, then fsync,
rename, fsync of the folder; a kill at any point leaves the old state or the new one, and at most a temporary that
the next run removes. Object stores: the file is built in memory and put once, which they make visible as a whole.
Trade-off: two fsyncs a file, about a millisecond on a disk; a store's file is in memory once more.
"""

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import OutputError
from pipeline.media.driver_file import driver_errors
from pipeline.sink.output import Kind, OutputFolder

TEMPORARY_SUFFIX = ".tmp"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_atomically(folder: OutputFolder, name: str, write: Callable[[BinaryIO], None]) -> None:
    """Write one file below the folder; what was there under its name is replaced at once.

    Args:
        folder: an output that was created.
        name: the path below it.
        write: puts all the bytes into an open file; an exception from it leaves nothing behind.
    Raises: OutputError, which says so where the disk is full, and where a store cannot be reached.

    """
    with _explained(folder, name):
        if folder.local is not None:
            _write_local(folder.local / name, write)
            return
        buffer = io.BytesIO()
        write(buffer)
        with driver_errors():
            store, root = folder.store()
            store.pipe_file(f"{root}/{name}", buffer.getvalue())


def make_durable(folder: OutputFolder, *names: str) -> None:
    """Wait until files that another library wrote below the folder are on the disk; a store has them when it answers.

    Raises: OutputError.
    """
    if folder.local is None:
        return
    for path in map(folder.local.joinpath, names):
        with _explained(folder, str(path)):
            _sync(path, os.O_RDONLY)
            _sync_folder(path.parent)


def remove_stale_temporaries(folder: OutputFolder) -> int:
    """Remove what killed runs left half-written, and say how many; only for the run that owns the folder."""
    if folder.local is None:
        return 0
    stale = [path for place in (folder.local, *map(folder.local.joinpath, Kind)) for path in _temporaries(place)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def _temporaries(place: Path) -> list[Path]:
    return list(place.glob(f".*{TEMPORARY_SUFFIX}"))


def _write_local(target: Path, write: Callable[[BinaryIO], None]) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(folder: OutputFolder, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"output {folder.uri!r}: {name}"
        if error.errno in _FULL:
            raise OutputError(
                f"{where}: no space left to write it ({error.strerror}); free some and run the same command again: "
                "what is finished is kept"
            ) from error
        raise OutputError(f"{where}: cannot be written: {error.strerror or error}") from error
