"""What a file's bytes are called, so that equal files are encoded once and changed files are new content.

Up to 64 MiB every byte is hashed: the id is the content. Above, reading everything would cost as much as decoding,
so the id is the size, the modification time and 16 blocks of 64 KiB: the first, the last and 14 evenly between.
The trade-off: byte-identical large files with other modification times are encoded twice, and a change of a large
file that keeps its size, its modification time and all sampled blocks is missed.
"""

import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.digest import digest_bytes
from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.inside import inside_of
from pipeline.media.location import file_version, local_path, open_binary
from pipeline.sources.items import SourceItem

WHOLE_LIMIT_BYTES = 64 << 20
BLOCK_BYTES = 64 << 10
NUM_BLOCKS = 16
_READ_BYTES = 1 << 20


def content_id(item: SourceItem) -> str:
    """Name the bytes of a source: `b2-` or `sampled-` and 32 hex digits.

    The span is no part of it. A local file's size and time are those of the file as it is opened; a medium inside a
    file has its own size and that file's time.
    Raises: MediaError at stage PROBE: UNREADABLE when it cannot be opened or read, NOT_A_FILE when it is no regular
        file (a pipe is never waited for), CHANGED_MEDIA when the file it lies in is no longer the one that was listed.
    Cost: up to 64 MiB read, or 1 MiB of a larger file.
    """
    inside = inside_of(item.uri)
    if inside is not None:
        _require_listed(item, inside.container)
    try:
        with open_binary(item.uri, byte_range=item.byte_range, stage=Stage.PROBE) as file:
            if inside is not None:
                num_bytes = file.seek(0, io.SEEK_END)
                file.seek(0)
                return _identify(file, num_bytes, item.modified_ns)
            if local_path(item.uri) is None:
                return _identify(file, item.num_bytes, item.modified_ns)
            status = os.fstat(file.fileno())
            return _identify(file, status.st_size, status.st_mtime_ns)
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


def _identify(file: BinaryIO, num_bytes: int, modified_ns: int) -> str:
    if num_bytes <= WHOLE_LIMIT_BYTES:
        return f"b2-{digest_bytes(_chunks(file, num_bytes))}"
    facts = f"{num_bytes}:{modified_ns}:".encode("ascii")
    return f"sampled-{digest_bytes(_samples(file, num_bytes, facts))}"


def _chunks(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """At most `num_bytes`: a file that grows while it is read must not keep the reader."""
    while num_bytes > 0 and (chunk := file.read(min(_READ_BYTES, num_bytes))):
        num_bytes -= len(chunk)
        yield chunk


def _samples(file: BinaryIO, num_bytes: int, facts: bytes) -> Iterator[bytes]:
    yield facts
    for index in range(NUM_BLOCKS):
        file.seek(index * (num_bytes - BLOCK_BYTES) // (NUM_BLOCKS - 1), io.SEEK_SET)
        yield from _chunks(file, BLOCK_BYTES)


def _unreadable(uri: str, what: str) -> MediaError:
    return MediaError(ErrorCode.UNREADABLE, f"{uri!r}: cannot be read: {what}", Stage.PROBE)
