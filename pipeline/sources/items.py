"""What a listing is made of: plain values, one for each medium or span that was found, and one for each that cannot be.

A source URI is text that round-trips to the exact bytes of a file's name: an absolute path as it is, a `file://` URI
with percent-encoding where the path is not UTF-8 (Arrow strings must be), the fsspec URL for anything remote, or the
name of a medium inside one of these. Names are never normalised: NFC and NFD spellings are two files. See
`pipeline.media.location` and `pipeline.media.inside`.
"""

import os
import re
from dataclasses import dataclass

from pipeline.errors import ErrorCode, Stage, UsageError
from pipeline.media.byte_range import ByteRange
from pipeline.media.inside import inside_of

_URL = re.compile(r"[A-Za-z][\w+.\-]*(::[A-Za-z][\w+.\-]*)*://")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceItem:
    """One medium, or one span of it: where it lies, and what tells its versions apart without reading it.

    `start_seconds` and `end_seconds` are None where no bound was asked for. `num_bytes` is the medium's size, and for a
    row its even share of the table's. `modified_ns` is that of the file it lies in, 0 where a store has none.
    `byte_range` is where a member lies in its shard, None for everything else.
    """

    uri: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    num_bytes: int
    modified_ns: int
    byte_range: ByteRange | None = None

    def was_listed_in(self, num_bytes: int, modified_ns: int) -> bool:
        """Whether a file of this size and time is the one that it was found in; of a shard the time alone tells."""
        return modified_ns == self.modified_ns and (num_bytes == self.num_bytes or inside_of(self.uri) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFailure:
    """An entry that cannot be media: it becomes one error row."""

    uri: str
    code: ErrorCode
    message: str
    stage: Stage = Stage.LIST


Found = SourceItem | SourceFailure


def failure_of(uri: str, code: ErrorCode, what: str) -> SourceFailure:
    """Make a failure whose message begins with what it is about."""
    return SourceFailure(uri=uri, code=code, message=f"{uri!r}: {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything that was named, once.

    Items are sorted by (file, place in it, start, end), where the place is a member's first byte or a row's number;
    failures by (uri, code).
    """

    items: tuple[SourceItem, ...]
    failures: tuple[SourceFailure, ...]


def has_scheme(text: str) -> bool:
    """Whether text is a URL (`scheme://`, also chained as `a::b://`) and not a local path."""
    return _URL.match(text) is not None


def absolute_path(path: bytes) -> bytes:
    """Make a local path absolute, without resolving the links in it.

    `..` is the one exception: behind a link it is not the folder before it, so the parent is resolved first.
    Raises: UsageError for a zero byte, which no name can hold.
    """
    if b"\0" in path:
        raise UsageError(f"source {os.fsdecode(path)!r}: expected a path, got one with a zero byte")
    parent, name = os.path.split(path.rstrip(b"/") or b"/")
    if b".." not in path.split(b"/"):
        return os.path.abspath(path)  # noqa: PTH100  bytes: pathlib has no exact form for undecodable names
    if name == b"..":
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(parent), name)  # noqa: PTH118
