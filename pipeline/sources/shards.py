"""Tar shards (WebDataset): which members are sources.

A shard is a file named `.tar` that begins like one; it is indexed once, by its headers, and read in place after that.
A member is a source if its suffix is a medium's, or else if its first bytes are; what WebDataset lays beside its media
as text (`_TEXT_SUFFIXES`) is never looked into. `sources.members` and `sources.hidden` choose among names. Links,
devices and sparse members are error rows, and so are names that would leave the archive if it were unpacked. A damaged
shard is one error row for the rest of it. Compressed shards cannot be read from the middle, and are refused.
"""

import fnmatch
import functools
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from pipeline.config import SourcesConfig
from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.container import SNIFF_BYTES, sniff
from pipeline.media.inside import Inside, member_uri
from pipeline.media.location import open_binary
from pipeline.sources.items import Found, SourceFailure, SourceItem, failure_of
from pipeline.sources.tar_index import BLOCK_BYTES, TarError, TarMember, is_tar, read_members

_SUFFIX = ".tar"
_COMPRESSED_SUFFIXES = (
    *(f"{tar}{name}" for name in ("gz", "bz2", "xz", "zst", "lz4") for tar in (".tar.", ".t")),
    ".tbz",
    ".tzstd",
)
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
_MEDIA = (
    "3g2 3gp apng avi avif bmp flv gif ivf j2k jp2 jpe jpeg jpg m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv pbm pgm png "
    "pnm ppm tif tiff ts webm webp wmv"
)
_MEDIA_SUFFIXES = frozenset(_MEDIA.split())
_TEXT = "caption cls cls2 csv htm html id index inx json jsonl md srt text tsv txt url vtt xml yaml yml"
_TEXT_SUFFIXES = frozenset(_TEXT.split())


def is_shard(uri: str) -> bool:
    """Whether a file is looked into as a shard, by its suffix."""
    return uri.lower().endswith((_SUFFIX, *_COMPRESSED_SUFFIXES))


def list_members(shard: SourceItem, config: SourcesConfig) -> Iterator[Found]:
    """Give the sources in a shard in its order, and an error row for what is refused or cannot be read."""
    if shard.uri.lower().endswith(_COMPRESSED_SUFFIXES):
        yield _compressed(shard.uri)
        return
    num_found = 0
    try:
        with open_binary(shard.uri, stage=Stage.LIST) as file:
            unfit = _unfit(shard, file)
            if unfit is not None:
                yield unfit
                return
            for uri, member in _named(shard.uri, file):
                if _counts(member, file, config):
                    num_found += 1
                    yield _found(shard, uri, member)
    except TarError as error:
        code = ErrorCode.TRUNCATED_MEDIA if error.is_cut else ErrorCode.CORRUPT_MEDIA
        yield failure_of(shard.uri, code, f"{error}; {num_found} media before that are read")
        return
    except MediaError as error:
        yield SourceFailure(uri=shard.uri, code=error.code, message=error.message)
        return
    except Exception as error:  # a disk raises OSError, a store's driver its own kinds
        yield failure_of(shard.uri, ErrorCode.UNREADABLE, f"cannot be read: {type(error).__name__}: {error}")
        return
    if not num_found:
        yield failure_of(shard.uri, ErrorCode.UNSUPPORTED_MEDIA, "expected media in the shard, found none")


def named_member(item: SourceItem, inside: Inside) -> Found:
    """Give one member by its own name, whatever the settings say of it; `item` has the facts of the shard."""
    shard = SourceItem(uri=inside.container, num_bytes=item.num_bytes, modified_ns=item.modified_ns)
    found = _index(shard).get(item.uri)
    if found is None:
        return failure_of(item.uri, ErrorCode.UNREADABLE, "the shard has no such member")
    if isinstance(found, SourceFailure):
        return found
    return replace(found, start_seconds=item.start_seconds, end_seconds=item.end_seconds)


@functools.lru_cache(maxsize=1)
def _index(shard: SourceItem) -> dict[str, Found]:
    """Every member by its name; the last shard's are kept, because whoever names members names them in order."""
    index: dict[str, Found] = {}
    try:
        with open_binary(shard.uri, stage=Stage.LIST) as file:
            for uri, member in _named(shard.uri, file):
                index[uri] = _found(shard, uri, member)
    except (TarError, MediaError, OSError):
        pass  # what comes after the damage is missing, and named so
    return index


def _named(shard_uri: str, file: BinaryIO) -> Iterator[tuple[str, TarMember]]:
    copies: dict[bytes, int] = {}
    for member in read_members(file):
        copies[member.name] = copies.get(member.name, 0) + 1
        yield member_uri(shard_uri, member.name, copies[member.name]), member


def _unfit(shard: SourceItem, file: BinaryIO) -> Found | None:
    """What stands for a file that is named like a shard and is none; a medium is one whatever its name."""
    head = file.read(SNIFF_BYTES)
    if is_tar(head[:BLOCK_BYTES]):
        return None
    if sniff(head) is not None:
        return shard
    if head.startswith(_COMPRESSED_MAGIC):
        return _compressed(shard.uri)
    found = f"one beginning {head[:16]!r}" if head else "an empty one"
    return failure_of(shard.uri, ErrorCode.CORRUPT_MEDIA, f"expected a tar archive, found {found}")


def _counts(member: TarMember, file: BinaryIO, config: SourcesConfig) -> bool:
    """Whether a member becomes a source or an error row."""
    *folders, name = [part for part in os.fsdecode(member.name).split("/") if part not in ("", ".")] or [""]
    if not config.hidden and any(part.startswith(".") and part != ".." for part in (*folders, name)):
        return False
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    if suffix in _TEXT_SUFFIXES or not any(fnmatch.fnmatchcase(name, pattern) for pattern in config.members):
        return False
    if member.refusal is not None or _leaves(member.name) or suffix in _MEDIA_SUFFIXES:
        return True
    file.seek(member.byte_range.start)
    return sniff(file.read(min(SNIFF_BYTES, member.byte_range.num_bytes))) is not None


def _leaves(name: bytes) -> bool:
    return name.startswith(b"/") or b".." in name.split(b"/")


def _found(shard: SourceItem, uri: str, member: TarMember) -> Found:
    if member.refusal is not None:
        return failure_of(uri, ErrorCode.NOT_A_FILE, f"expected a plain file in the shard, got {member.refusal}")
    if _leaves(member.name):
        return failure_of(uri, ErrorCode.OUTSIDE_ROOT, "the member's name leads out of its archive")
    return replace(shard, uri=uri, num_bytes=member.byte_range.num_bytes, byte_range=member.byte_range)


def _compressed(uri: str) -> SourceFailure:
    what = "a compressed tar cannot be read from the middle; decompress it (media do not shrink anyway)"
    return failure_of(uri, ErrorCode.UNSUPPORTED_MEDIA, what)
