"""What a file's bytes are called, so that equal files are encoded once and changed files are new content.

Up to 64 MiB every byte is hashed: the id is the content. Above, reading everything would cost as much as decoding, so
the id is the size and 4 MiB of samples: the first and the last MiB, where containers keep the index that names the size
of every frame, and 32 blocks of 64 KiB evenly between. No time is in it: a file that was touched or copied is the same
content. The trade-off: large files of one size that differ only between the samples count as equal. The second of two
gets the first one's vectors, and a large file that is changed like that under its path keeps its rows; nothing says so,
because a newer time alone does not say that a byte changed.
Ids that begin with `sampled-` are of an earlier version, and had the time in them.
"""

import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipeline.digest import digest_bytes
from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.byte_range import ByteRange
from pipeline.media.inside import TAR, inside_of
from pipeline.media.location import file_version, local_path, open_binary
from pipeline.sources.items import SourceItem

WHOLE_LIMIT_BYTES = 64 << 20
END_BYTES = 1 << 20
BLOCK_BYTES = 64 << 10
NUM_BLOCKS = 32
SAMPLED_BYTES = 2 * END_BYTES + NUM_BLOCKS * BLOCK_BYTES
_READ_BYTES = 1 << 20

_ReadRange = Callable[[ByteRange], bytes]


def content_id(item: SourceItem) -> str:
    """Name the bytes of a source: `b2-` (hashed whole) or `samples-` and 32 hex digits.

    Neither its span nor its time is part of it. A local file's size is that of the file as it is opened; a medium
    inside a file has its own.
    Raises: MediaError at stage PROBE: UNREADABLE when it cannot be opened or read, NOT_A_FILE when it is no regular
        file (a pipe is never waited for), CHANGED_MEDIA when the file it lies in is no longer the one that was listed.
    Cost: up to 64 MiB read, or 4 MiB of a larger file in 34 places, each a request of its own to a store.
    """
    inside = inside_of(item.uri)
    if inside is not None:
        _require_listed(item, inside.container)
    try:
        with open_binary(item.uri, byte_range=item.byte_range, stage=Stage.PROBE) as file:
            num_bytes = _num_bytes(item, file)
            if num_bytes <= WHOLE_LIMIT_BYTES:
                return f"b2-{digest_bytes(_chunks(file, num_bytes))}"
            return f"samples-{digest_bytes(_samples(_reader(item, file), num_bytes))}"
    except MediaError:
        raise
    except Exception as error:  # a disk raises OSError, a store's driver its own kinds
        raise _unreadable(item.uri, f"{type(error).__name__}: {error}") from error


def sample_ranges(num_bytes: int) -> list[ByteRange]:
    """Where a file of more than WHOLE_LIMIT_BYTES is sampled: its two ends, and blocks evenly between them."""
    between = num_bytes - 2 * END_BYTES - BLOCK_BYTES
    starts = [END_BYTES + index * between // (NUM_BLOCKS - 1) for index in range(NUM_BLOCKS)]
    return [
        ByteRange(start=0, num_bytes=END_BYTES),
        *(ByteRange(start=start, num_bytes=BLOCK_BYTES) for start in starts),
        ByteRange(start=num_bytes - END_BYTES, num_bytes=END_BYTES),
    ]


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


def _reader(item: SourceItem, file: BinaryIO) -> _ReadRange:
    """How a range of a source is read: of an object by itself, because a driver reads up to 50 MiB ahead of each.

    A row of a table is in memory.
    """
    inside = inside_of(item.uri)
    container = item.uri if inside is None else inside.container
    if local_path(container) is None and (inside is None or inside.scheme == TAR):
        return lambda place: _read_object(item, place)
    return lambda place: _read_file(file, place)


def _read_object(item: SourceItem, place: ByteRange) -> bytes:
    first = 0 if item.byte_range is None else item.byte_range.start
    place = ByteRange(start=first + place.start, num_bytes=place.num_bytes)
    with open_binary(item.uri, byte_range=place, stage=Stage.PROBE) as found:
        return found.read()


def _read_file(file: BinaryIO, place: ByteRange) -> bytes:
    file.seek(place.start)
    return b"".join(_chunks(file, place.num_bytes))


def _chunks(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """At most `num_bytes`: a file that grows while it is read must not keep the reader."""
    while num_bytes > 0 and (chunk := file.read(min(_READ_BYTES, num_bytes))):
        num_bytes -= len(chunk)
        yield chunk


def _samples(read: _ReadRange, num_bytes: int) -> Iterator[bytes]:
    yield f"{num_bytes}:".encode("ascii")
    for place in sample_ranges(num_bytes):
        yield read(place)


def _unreadable(uri: str, what: str) -> MediaError:
    return MediaError(ErrorCode.UNREADABLE, f"{uri!r}: cannot be read: {what}", Stage.PROBE)
