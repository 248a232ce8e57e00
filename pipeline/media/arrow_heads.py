"""How many rows an Arrow file's record batches hold, from their headers alone: no body is read, and none inflated.

Own code, because a reader gives a batch's length only after it has read and inflated the batch, and a stranger's
kilobytes can stand for more than there is memory. A header is a flatbuffer of which five numbers are wanted; in a body
that is compressed each buffer begins with the length that it will have.
Cost: a few hundred bytes read a batch, and eight a compressed buffer.
Source: https://arrow.apache.org/docs/format/Columnar.html, "Encapsulated message format"; format/Message.fbs.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, Self

import pyarrow as pa

MAX_INFLATED_BYTES = 1 << 30
_FILE_MAGIC = b"ARROW1"
_FILE_HEAD_BYTES = 8
_MAX_HEADER_BYTES = 16 << 20
_CONTINUED = 0xFFFFFFFF
_DICTIONARY, _RECORD_BATCH = 2, 3


def rows_of_batches(file: BinaryIO, num_batches: int | None = None) -> list[int]:
    """Rows of each record batch of an Arrow file or stream, in the order in which they lie there.

    Args:
        file: its bytes; the position is moved.
        num_batches: how many are looked for, as a file's footer says; None: all of a stream.
    Raises: pyarrow.ArrowInvalid for headers that make no sense, and for a batch that would be inflated to more than
        MAX_INFLATED_BYTES.
    """
    try:
        return list(islice(_rows(file), num_batches))
    except (struct.error, OverflowError) as error:
        raise pa.ArrowInvalid(f"damaged header of a record batch: {error}") from error


def _rows(file: BinaryIO) -> Iterator[int]:
    file.seek(0)
    position = _FILE_HEAD_BYTES if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    while True:
        file.seek(position)
        num_bytes, position = _header_length(file.read(8), position)
        if not num_bytes:
            return
        if num_bytes > _MAX_HEADER_BYTES:
            raise pa.ArrowInvalid(f"a header of {num_bytes} bytes, expected at most {_MAX_HEADER_BYTES}")
        file.seek(position)
        message = _Flat.root(file.read(num_bytes))
        position += num_bytes
        kind, body_bytes = message.number(1, "B"), message.number(3, "q")
        if body_bytes < 0:
            raise pa.ArrowInvalid(f"a body of {body_bytes} bytes")
        if kind in (_DICTIONARY, _RECORD_BATCH):
            batch = message.table(2) if kind == _RECORD_BATCH else message.table(2).table(1)
            _require_small(_inflated_bytes(file, position, batch))
            if kind == _RECORD_BATCH:
                yield max(0, batch.number(0, "q"))
        position += body_bytes


def _header_length(prefix: bytes, position: int) -> tuple[int, int]:
    """Bytes of the next header, 0 after the last one, and where it begins."""
    if len(prefix) < 4:
        return 0, position
    (first,) = struct.unpack_from("<I", prefix)
    if first != _CONTINUED:  # as it was written before Arrow 0.15
        return first, position + 4
    return (struct.unpack_from("<I", prefix, 4)[0] if len(prefix) == 8 else 0), position + 8


def _inflated_bytes(file: BinaryIO, body_start: int, batch: "_Flat") -> int:
    """What the compressed buffers of a batch say they will take; 0 where nothing is compressed."""
    if not batch.has(3):
        return 0
    total = 0
    for start, num_bytes in batch.pairs(2):
        if num_bytes:
            file.seek(body_start + start)
            total += max(0, struct.unpack("<q", file.read(8))[0])
    return total


def _require_small(num_bytes: int) -> None:
    if num_bytes > MAX_INFLATED_BYTES:
        raise pa.ArrowInvalid(
            f"a record batch inflates to {num_bytes} bytes, expected at most {MAX_INFLATED_BYTES}: write smaller ones"
        )


class _Flat:
    """A table of a flatbuffer; reading outside of it raises struct.error."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._fields = position - self._at("i", position)
        self._fields_bytes = self._at("H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> Self:
        """The outermost table."""
        return cls(data, struct.unpack_from("<I", data)[0])

    def has(self, field: int) -> bool:
        """Whether the field was written; what was not has its default."""
        return self._place(field) is not None

    def number(self, field: int, code: str) -> int:
        """A scalar by its `struct` code; 0 where there is none."""
        place = self._place(field)
        return 0 if place is None else self._at(code, place)

    def table(self, field: int) -> Self:
        """A table inside. Raises: struct.error where there is none."""
        return type(self)(self._data, self._target(field))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two 64-bit integers."""
        start = self._target(field)
        for number in range(self._at("I", start)):
            place = start + 4 + 16 * number
            yield self._at("q", place), self._at("q", place + 8)

    def _target(self, field: int) -> int:
        place = self._place(field)
        if place is None:
            raise struct.error(f"field {field} is missing")
        return place + self._at("I", place)

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        offset = self._at("H", self._fields + entry) if entry < self._fields_bytes else 0
        return self._position + offset if offset else None

    def _at(self, code: str, place: int) -> int:
        if place < 0:
            raise struct.error(f"offset {place}")
        value: int = struct.unpack_from("<" + code, self._data, place)[0]
        return value
