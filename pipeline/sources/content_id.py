"""What a source's bytes are called, so that equal files are encoded once and changed files are new content.

The id is the content up to 64 MiB, and its size and samples above (pipeline/media/content.py). No time is in it: a file
that was touched or copied is the same content. The trade-off: large files of one size that differ only between the
samples count as equal. The second of two gets the first one's vectors, and a large file that is changed like that under
its path keeps its rows; nothing says so, because a newer time alone does not say that a byte changed.
Ids that begin with `sampled-` are of an earlier version, and had the time in them.

A cell of a table is hashed in the decoder process: to read it is to decode what a stranger wrote.
"""

import io
import os
from typing import BinaryIO

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.byte_range import ByteRange
from pipeline.media.content import ReadRange, name_content
from pipeline.media.inside import ROW, inside_of
from pipeline.media.location import file_version, local_path, open_binary
from pipeline.media.sandbox import Sandbox
from pipeline.sources.items import SourceItem


def content_id(item: SourceItem, sandbox: Sandbox | None = None) -> str:
    """Name the bytes of a source: `b2-` (hashed whole) or `samples-` and 32 hex digits.

    Neither its span nor its time is part of it. A local file's size is that of the file as it is opened; a medium
    inside a file has its own. `sandbox` reads the cells of tables; None where there are none.
    Raises: MediaError at stage PROBE: UNREADABLE when it cannot be opened or read, NOT_A_FILE when it is no regular
        file (a pipe is never waited for), CHANGED_MEDIA when the file it lies in is no longer the one that was listed;
        of a cell also what a decoder that hangs or dies costs.
    Cost: up to 64 MiB read, or 4 MiB of a larger file in 34 places, each a request of its own to a store.
    """
    inside = inside_of(item.uri)
    if inside is not None:
        _require_listed(item, inside.container)
        if inside.scheme == ROW:
            assert sandbox is not None, "a cell is read by a decoder process"
            return sandbox.name_content(item.uri)
    try:
        with open_binary(item.uri, byte_range=item.byte_range, stage=Stage.PROBE) as file:
            return name_content(file, _num_bytes(item, file), _sample_reader(item))
    except MediaError:
        raise
    except Exception as error:  # a disk raises OSError, a store's driver its own kinds
        raise _unreadable(item.uri, f"{type(error).__name__}: {error}") from error


def _require_listed(item: SourceItem, container: str) -> None:
    """Where a medium lies, and which row it is, was said of one version of its file."""
    found = file_version(container)
    if found is not None and not item.was_listed_in(*found):
        message = f"{item.uri!r}: the file it lies in changed since it was listed"
        raise MediaError(ErrorCode.CHANGED_MEDIA, message, Stage.PROBE)


def _num_bytes(item: SourceItem, file: BinaryIO) -> int:
    if inside_of(item.uri) is not None:
        num_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        return num_bytes
    return item.num_bytes if local_path(item.uri) is None else os.fstat(file.fileno()).st_size


def _sample_reader(item: SourceItem) -> ReadRange | None:
    """How a range of a source is read: of an object by itself, because a driver reads up to 50 MiB ahead of each."""
    inside = inside_of(item.uri)
    container = item.uri if inside is None else inside.container
    return (lambda place: _read_object(item, place)) if local_path(container) is None else None


def _read_object(item: SourceItem, place: ByteRange) -> bytes:
    first = 0 if item.byte_range is None else item.byte_range.start
    place = ByteRange(start=first + place.start, num_bytes=place.num_bytes)
    with open_binary(item.uri, byte_range=place, stage=Stage.PROBE) as found:
        return found.read()


def _unreadable(uri: str, what: str) -> MediaError:
    return MediaError(ErrorCode.UNREADABLE, f"{uri!r}: cannot be read: {what}", Stage.PROBE)
