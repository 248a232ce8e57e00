"""What both copies of the embeddings (`compact.py`, `lance_table.py`) consist of: parts, the rows of whole requests.

A part says which fragments it holds and what their bytes hashed to when they were copied. So a table can tell without
reading itself which requests are missing from it or were written anew since, and `verify` can hold its rows against
theirs, a request at a time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.digest import digest_bytes
from pipeline.errors import OutputError
from pipeline.sink.output import Kind, OutputFolder

PART_BYTES = 512 << 20
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactedFragment:
    """One request in a part: its rows lie one after another, as in its fragment, whose bytes hash to `digest`."""

    request_id: str
    num_rows: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a table; `name` is its path below the output."""

    name: str
    num_rows: int
    num_bytes: int
    fragments: tuple[CompactedFragment, ...]


def part_of(values: dict[str, object]) -> Part:
    """Read a part back from `asdict`'s values. Raises: KeyError or TypeError for anything else."""
    fragments: Iterable[dict[str, object]] = values["fragments"]  # type: ignore[assignment]
    return Part(**{**values, "fragments": tuple(CompactedFragment(**fragment) for fragment in fragments)})  # type: ignore[arg-type]


def fragment_digest(folder: OutputFolder, request_id: str) -> str:
    """Hash a fragment's bytes. Raises: OSError."""
    with folder.open(folder.name(Kind.EMBEDDINGS, request_id)) as file:
        return digest_bytes(iter(lambda: file.read(_READ_BYTES), b""))


def group_requests(folder: OutputFolder, request_ids: Iterable[str], part_bytes: int) -> Iterator[list[str]]:
    """Cut requests into parts, closing one when its fragments come to `part_bytes`. Raises: OutputError."""
    group: list[str] = []
    num_bytes = 0
    for request_id in request_ids:
        group.append(request_id)
        num_bytes += folder.size(folder.name(Kind.EMBEDDINGS, request_id))
        if num_bytes >= part_bytes:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def unreadable(folder: OutputFolder, request_id: str, error: Exception) -> OutputError:
    """What to raise where a fragment cannot be copied."""
    where = f"output {folder.uri!r}: {folder.name(Kind.EMBEDDINGS, request_id)}"
    return OutputError(f"{where}: cannot be read: {error}; run `patchwire verify`")


class Rows:
    """Gives a part's rows in order, as many as are asked for; a batch more than that is in memory.

    Args:
        schema: of the batches.
        batches: read as they are needed; what they raise comes out of `take`.
    """

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.Table = schema.empty_table()

    def take(self, num_rows: int) -> pa.Table:
        """Give the next rows, fewer where the part ends."""
        while self._rest.num_rows < num_rows and (batch := next(self._batches, None)) is not None:
            self._rest = pa.concat_tables([self._rest, pa.Table.from_batches([batch])])
        taken, self._rest = self._rest.slice(0, num_rows), self._rest.slice(num_rows)
        return taken
