"""The members of a tar shard, from its headers alone.

Own code and not `tarfile`: what is needed is where each member's bytes lie, and a stranger's archive must not decide
how much memory that takes (`tarfile` reads an extended header of any size into memory). Read are the formats in use:
V7, ustar, GNU (long names, sizes above 8 GiB) and pax. Nothing is extracted, so nothing is written anywhere.
Of extended headers only what is needed is kept, and an archive of too many members, or too much in their names, is read
no further.
Cost: one seek and 512 bytes a member; a few more for a long name.
Source: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html; the GNU tar manual, "Tar Internals".
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.media.byte_range import ByteRange

BLOCK_BYTES = 512
_MAX_EXTENDED_BYTES = 1 << 20
MAX_MEMBERS = 5_000_000  # each is half a kilobyte of the driver's memory as a source
MAX_NAME_BYTES = 1 << 30
_SPARSE_KEYS = b"GNU.sparse."
_REGULAR = frozenset({b"0", b"\0", b"7"})
_FOLDER = b"5"
_WITHOUT_DATA = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_SPARSE = b"S"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _VOLUME = b"L", b"K", b"x", b"g", b"V"
_ZERO_BLOCK = bytes(BLOCK_BYTES)


class TarError(Exception):
    """The archive cannot be read on from here; `is_cut` where it just ends."""

    def __init__(self, message: str, *, is_cut: bool = False) -> None:
        super().__init__(message)
        self.is_cut = is_cut


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """One member: `name` in its own bytes, `refusal` in words where it is no plain file (None where it is)."""

    name: bytes
    byte_range: ByteRange
    refusal: str | None


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these 512 bytes is a tar archive, empty ones included."""
    return head == _ZERO_BLOCK or (len(head) == BLOCK_BYTES and _checksum_fits(head))


def read_members(file: BinaryIO) -> Iterator[TarMember]:
    """Give the members in order; folders are left out.

    Raises: TarError where the archive is damaged or cut off, or has more than MAX_MEMBERS members or MAX_NAME_BYTES in
        their names; the members before that have been given. OSError as the file does.
    """
    size = file.seek(0, os.SEEK_END)
    position = num_members = num_name_bytes = 0
    extended: dict[bytes, bytes] = {}
    while True:
        block = _read_block(file, position, size)
        if block == _ZERO_BLOCK:
            return
        if not _checksum_fits(block):
            raise TarError(f"expected a member's header at byte {position}, found other bytes")
        kind = block[156:157]
        start = position + BLOCK_BYTES
        num_bytes = _size(block, position) if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL) else None
        if num_bytes is not None:
            extended |= _extended(file, kind, ByteRange(start=start, num_bytes=num_bytes), size)
            position = start + _padded(num_bytes)
            continue
        member, position = _member(file, block, start, extended, size)
        extended = {}
        if member is None:
            continue
        num_members += 1
        num_name_bytes += len(member.name)
        if num_members > MAX_MEMBERS or num_name_bytes > MAX_NAME_BYTES:
            raise TarError(
                f"expected at most {MAX_MEMBERS} members and {MAX_NAME_BYTES} bytes of names, got {num_members} and "
                f"{num_name_bytes} by byte {position}; split the archive"
            )
        yield member


def _member(
    file: BinaryIO, block: bytes, start: int, extended: dict[bytes, bytes], size: int
) -> tuple[TarMember | None, int]:
    """The member whose header this is, None for a folder, and where the next header is."""
    kind, name = block[156:157], extended.get(b"path", _name(block))
    if kind == _SPARSE:
        start = _behind_sparse_map(file, block, start, size)
    given = _decimal(extended[b"size"]) if b"size" in extended else _size(block, start - BLOCK_BYTES)
    num_bytes = 0 if kind in _WITHOUT_DATA or kind == _FOLDER else given
    found = ByteRange(start=start, num_bytes=num_bytes)
    if found.stop > size:
        where = os.fsdecode(name)
        raise TarError(f"{where!r} should end at byte {found.stop}, the archive ends at {size}", is_cut=True)
    is_folder = kind in (_FOLDER, _VOLUME) or (kind == b"\0" and name.endswith(b"/"))
    is_sparse = kind == _SPARSE or _SPARSE_KEYS in extended
    refusal = "a sparse file" if is_sparse else _WITHOUT_DATA.get(kind)
    if refusal is None and kind not in _REGULAR:
        refusal = f"a member of type {kind!r}"
    member = None if is_folder else TarMember(name=name, byte_range=found, refusal=refusal)
    return member, start + _padded(num_bytes)


def _extended(file: BinaryIO, kind: bytes, found: ByteRange, size: int) -> dict[bytes, bytes]:
    """What a header before a header says of the next member; a global one says nothing that is needed."""
    if found.stop > size:
        raise TarError(f"an extended header should end at byte {found.stop}, the archive ends at {size}", is_cut=True)
    if kind in (_PAX_GLOBAL, _LONG_LINK):
        return {}
    if found.num_bytes > _MAX_EXTENDED_BYTES:
        raise TarError(
            f"an extended header of {found.num_bytes} bytes at byte {found.start}; {_MAX_EXTENDED_BYTES} are read"
        )
    file.seek(found.start)
    data = file.read(found.num_bytes)
    return {b"path": data.rstrip(b"\0")} if kind == _LONG_NAME else _pax_records(data, found.start)


def _pax_records(data: bytes, position: int) -> dict[bytes, bytes]:
    """What counts of records of the form `<length> <key>=<value>` and a newline, the length counting itself."""
    records: dict[bytes, bytes] = {}
    data = data.rstrip(b"\0")
    start = 0
    while start < len(data):
        length_text, _, _ = data[start : start + 20].partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        key, equals, value = data[start + len(length_text) + 1 : start + length].partition(b"=")
        if length <= len(length_text) + 1 or start + length > len(data) or not equals or not value.endswith(b"\n"):
            raise TarError(f"the extended header at byte {position} is damaged")
        if key.startswith(_SPARSE_KEYS):
            records[_SPARSE_KEYS] = b""
        elif key in (b"path", b"size"):
            records[key] = value[:-1]
        start += length
    return records


def _read_block(file: BinaryIO, position: int, size: int) -> bytes:
    if position + BLOCK_BYTES > size:
        raise TarError(f"the archive ends at byte {size} without its end mark", is_cut=True)
    file.seek(position)
    return file.read(BLOCK_BYTES)


def _behind_sparse_map(file: BinaryIO, block: bytes, start: int, size: int) -> int:
    """Step over the blocks that say where the holes of an old GNU sparse member are."""
    is_continued = block[482] != 0
    while is_continued:
        is_continued = _read_block(file, start, size)[504] != 0
        start += BLOCK_BYTES
    return start


def _checksum_fits(block: bytes) -> bool:
    """Signed sums, which old tars wrote, differ where a name is not ASCII."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        return False
    covered = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(covered)
    return len(block) == BLOCK_BYTES and stated in (unsigned, unsigned - 256 * sum(byte > 127 for byte in covered))


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _size(block: bytes, position: int) -> int:
    """Octal digits, or (GNU) a big-endian number behind a byte 0x80."""
    field = block[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        size = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        size = -1
    if size < 0:
        raise TarError(f"the header at byte {position} states no size: {field!r}")
    return size


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"an extended header states a size of {text[:20]!r}")
    return int(text)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
