"""What a listing is made of: plain values, one for each medium or span that was found, and one for each that cannot be.

A source URI is text that round-trips to the exact bytes of a file's name: an absolute path as it is, a `file://`
URI with percent-encoding where the path is not UTF-8 (Arrow strings must be), the fsspec URL for anything remote.
Names are never normalised: NFC and NFD spellings are two files. See `pipeline.media.location`.
"""

import os
import re
from dataclasses import dataclass

from pipeline.errors import ErrorCode, Stage, UsageError

_URL = re.compile(r"[A-Za-z][\w+.\-]*(::[A-Za-z][\w+.\-]*)*://")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceItem:
    """One medium, or one span of it: where it lies, and what tells its versions apart without reading it.

    `start_seconds` and `end_seconds` are None where no bound was asked for. `modified_ns` is 0 where a store has none.
    """

    uri: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFailure:
    """An entry that cannot be media: it becomes one error row."""

    uri: str
    code: ErrorCode
    message: str
    stage: Stage = Stage.LIST


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything that was named, once: items sorted by (uri, start, end), failures by (uri, code)."""

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
