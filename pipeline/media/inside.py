"""Names of media that lie inside another file.

    tar://<member>::<file>            a member of a tar shard
    tar://<member>?2::<file>          the second member of that name, and so on
    row://<column>/<number>::<file>   a cell of a Parquet or Arrow table, rows counted from 0

`<file>` is any other source URI as it stands. What is before the first `::` is percent-encoded, so any bytes fit and
nothing in them looks like the end of a name. It is fsspec's order: `fsspec.open` reads `tar://a/b.jpg::/x.tar`, too.
A scheme in front, because `#` and every other mark may be part of a plain file's name.

The name says which medium, and stays when the shard is written anew; where its bytes are travels beside it, as a
`ByteRange`, so that nobody reads a shard from its beginning to find a member.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote

TAR = "tar"
ROW = "row"

_INSIDE = re.compile(rf"({TAR}|{ROW})://(.*?)::(.+)", re.DOTALL)
_SAFE = "/!$&'()*+,;=@-._~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A name taken apart: `scheme` is `tar` or `row`, `name` is still encoded, `container` is the file's URI."""

    scheme: str
    name: str
    container: str

    @property
    def uri(self) -> str:
        """The name put together."""
        return f"{self.scheme}://{self.name}::{self.container}"

    @property
    def cell(self) -> tuple[str, int] | None:
        """Column and row of a `row` name, None where it is none."""
        column, _, number = self.name.rpartition("/")
        if self.scheme != ROW or not column or not (number.isascii() and number.isdigit()):
            return None
        return unquote(column), int(number)


def inside_of(uri: str) -> Inside | None:
    """Take a name apart, or give None for a file of its own."""
    match = _INSIDE.fullmatch(uri)
    return None if match is None else Inside(scheme=match[1], name=match[2], container=match[3])


def container_of(uri: str) -> str:
    """The file in which a medium lies: itself, or the shard or table that holds it."""
    inside = inside_of(uri)
    return uri if inside is None else inside.container


def member_uri(container: str, name: bytes, number: int = 1) -> str:
    """Name the member of a shard; `number` counts members of the same name from 1."""
    again = f"?{number}" if number > 1 else ""
    return f"{TAR}://{quote_from_bytes(name, safe=_SAFE)}{again}::{container}"


def row_uri(container: str, column: str, row: int) -> str:
    """Name a cell of a table, rows counted from 0."""
    return f"{ROW}://{quote_from_bytes(column.encode('utf-8'), safe=_SAFE)}/{row}::{container}"
