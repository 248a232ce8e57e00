"""What the pages of a Parquet column chunk claim, from their headers alone: no page is read, and none inflated.

Own code, because a reader gives a page's size only after it has inflated it, and a stranger's kilobytes can stand for
more than there is memory: zeros inflate to 2 GiB a page, a page of DELTA_BYTE_ARRAY makes each text from the one before
it, and both encodings of delta lengths begin with a count that is taken at its word (a file of 8 KB took 4 GB in Arrow
26.0). The footer lists encodings and sizes too, but what is believed is the page's own header.
Cost: about a kilobyte read a page, which has a megabyte as a rule.
Source: https://github.com/apache/parquet-format, parquet.thrift, `PageHeader`; Thrift's compact protocol.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_DELTA_TEXT = {6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY"}
_HEADER_BYTES = (1 << 10, 64 << 10, 16 << 20)  # the last is Arrow's own limit; statistics can be long
_NO_FILE_BYTES = 1 << 62
_MAX_DEPTH = 8
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}  # the field of each, and its field of the encoding
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)

_Struct = dict[int, "int | _Struct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one header says: the encoding's number, values, and bytes once it is inflated."""

    is_dictionary: bool
    encoding: int
    num_values: int
    num_bytes: int


def check_pages(
    file: BinaryIO, metadata: pq.FileMetaData, columns: Sequence[str], *, max_values: int, max_bytes: int
) -> None:
    """Refuse columns that take more memory than is allowed, or where nobody can say.

    Args:
        file: the bytes of the table; its position is moved.
        metadata: its footer.
        columns: names of columns that are not nested.
        max_values: of one dictionary; each takes sixteen bytes of memory, however short it is.
        max_bytes: of all their pages, inflated.
    Raises: pyarrow.ArrowInvalid for more than that, for texts in a delta encoding, and for headers that make no sense.
    """
    # By the schema, as a reader finds them: a chunk has a name of its own, which can be another.
    indices = [index for index in range(metadata.num_columns) if metadata.schema.column(index).path in columns]
    num_bytes = 0
    for group, index in product(range(metadata.num_row_groups), indices):
        for page in pages_of(file, metadata.row_group(group).column(index)):
            num_bytes += page.num_bytes
            what = _objection(page, num_bytes, max_values, max_bytes)
            if what is not None:
                raise pa.ArrowInvalid(f"{metadata.schema.column(index).path}: {what}")


def _objection(page: Page, num_bytes: int, max_values: int, max_bytes: int) -> str | None:
    if page.encoding in _DELTA_TEXT:
        return (
            f"expected text with dictionaries or plain, as Parquet writers of version 1 store it, got "
            f"{_DELTA_TEXT[page.encoding]}, where a few bytes can stand for gigabytes; write the table anew"
        )
    if page.is_dictionary and page.num_values > max_values:
        return f"expected a dictionary of at most {max_values} values, got {page.num_values}"
    if num_bytes > max_bytes:
        return f"expected pages of at most {max_bytes} bytes in all, inflated, got {num_bytes} before its end"
    return None


def pages_of(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """The pages that a reader takes of one column chunk: until it has as many values as the footer says.

    Raises: pyarrow.ArrowInvalid for a header that is damaged or cut off.
    """
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < position:
        position = chunk.dictionary_page_offset
    num_values = 0
    while num_values < chunk.num_values:
        header, num_bytes = _read_header(file, position)
        kind = _number(header, 1)
        position += num_bytes + _number(header, 3)
        if kind not in _DETAILS:
            continue
        details, encoding = _DETAILS[kind]
        found = header.get(details)
        if not isinstance(found, dict):
            raise pa.ArrowInvalid(f"a header of a page without its field {details}")
        page = Page(
            is_dictionary=kind == _DICTIONARY,
            encoding=_number(found, encoding),
            num_values=_number(found, 1),
            num_bytes=_number(header, 2),
        )
        num_values += 0 if page.is_dictionary else page.num_values
        yield page


def _number(values: _Struct, field: int) -> int:
    """A field that has to be there, and is never negative."""
    value = values.get(field)
    if not isinstance(value, int) or value < 0:
        raise pa.ArrowInvalid(f"a header of a page whose field {field} is {value}")
    return value


def _read_header(file: BinaryIO, position: int) -> tuple[_Struct, int]:
    """A header and how long it is, from as few bytes as it takes."""
    for num_bytes in _HEADER_BYTES if 0 <= position < _NO_FILE_BYTES else ():
        file.seek(position)
        data = file.read(num_bytes)
        try:
            reader = _Compact(data)
            return reader.struct(), reader.position
        except IndexError:
            if len(data) < num_bytes:
                break
    raise pa.ArrowInvalid(f"a header of a page at {position} that has no end")


class _Compact:
    """Thrift's compact protocol, as far as numbers in structs; reading past the end raises IndexError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, depth: int = 0) -> _Struct:
        """Numbers and structs by their fields; of all else only its length is of interest."""
        if depth > _MAX_DEPTH:
            raise pa.ArrowInvalid("a header of a page that is nested too deep")
        values: _Struct = {}
        field = 0
        while first := self._byte():
            field = field + (first >> 4) if first >> 4 else self._signed()
            value = self._value(first & 15, depth)
            if value is not None:
                values[field] = value
        return values

    def _value(self, kind: int, depth: int) -> "int | _Struct | None":
        if kind in (_TRUE, _FALSE):
            return int(kind == _TRUE)
        if kind in (_I16, _I32, _I64):
            return self._signed()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == _BINARY:
            self._skip(self._unsigned())
        elif kind in (_BYTE, _DOUBLE):
            self._skip(1 if kind == _BYTE else 8)
        else:  # lists, sets, maps: no page header has one
            raise pa.ArrowInvalid(f"a header of a page with a field of kind {kind}")
        return None

    def _skip(self, num_bytes: int) -> None:
        if self.position + num_bytes > len(self._data):
            raise IndexError(num_bytes)
        self.position += num_bytes

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise pa.ArrowInvalid("a header of a page with a number of more than 64 bits")
