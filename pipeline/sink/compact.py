"""The embeddings again in a few large files, with a manifest that changes in one step.

    OUT/table/manifest.json             the files of the current generation, and which fragments are in them
    OUT/table/<generation>/*.parquet    whole before the manifest names them, never changed, requests in order

The fragments stay: they are how a run knows what is done, and no plain folder can swap many files for one, so a
reader that lists `embeddings/` would for an instant see rows twice or not at all. Readers choose a place and never
see a row twice in it: `embeddings/*.parquet` is current at every instant, the manifest's files are the state at the
last commit: the end of a run with `output.compact`, or `patchwire compact`. The trade-off is the space of a second
copy; remove `table/` when it is not needed, or where `verify` finds it damaged.

A kill at any point leaves the old manifest with its files, or the new one with its own; leftovers are removed by the
next compaction. The generation before the current one stays until then, so that a reader that has just read the
manifest can finish. A fragment that a retry made anew makes the table stale, not wrong: `verify` says how many requests
are newer than it.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.sink.atomic import write_atomically
from pipeline.sink.fragments import ROW_GROUP_BYTES, parquet_options, read_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.parts import (
    PART_BYTES,
    CompactedFragment,
    Part,
    Rows,
    fragment_digest,
    group_requests,
    part_of,
    unreadable,
)

TABLE = "table"
MANIFEST = f"{TABLE}/manifest.json"
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The current generation of the table, and the one before it."""

    generation: str
    previous: str | None
    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return sum(part.num_rows for part in self.parts)

    @property
    def digests(self) -> dict[str, str]:
        """What the fragment of each request hashed to when it was copied."""
        return {fragment.request_id: fragment.digest for part in self.parts for fragment in part.fragments}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises: ValueError, KeyError or TypeError for anything else."""
        values = json.loads(text)
        return cls(
            generation=values["generation"],
            previous=values["previous"],
            parts=tuple(part_of(part) for part in values["parts"]),
        )

    def to_json(self) -> str:
        """As JSON with a final newline."""
        return json.dumps(asdict(self)) + "\n"


def read_manifest(folder: OutputFolder) -> Manifest | None:
    """Read the table's manifest, None where nothing was compacted. Raises: OutputError where it is not ours."""
    try:
        with folder.open(MANIFEST) as file:
            return Manifest.from_json(file.read().decode("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"output {folder.uri!r}: {MANIFEST}: expected a manifest of this version, got: {error}"
        ) from error


def compact_output(
    folder: OutputFolder, part_bytes: int = PART_BYTES, *, require_held: Callable[[], None] | None = None
) -> Manifest:
    """Copy all fragments into files of about `part_bytes` and make them the table; nothing where it is that already.

    Args:
        folder: an output whose lease is held.
        part_bytes: a part is closed when its fragments come to this.
        require_held: raises where the lease was lost; asked before the manifest is replaced.
    Raises: OutputError for a fragment that cannot be read, or where there is no room; the old table stays.
    Cost: fragments are read once to see whether the table is current, then twice and written once; a row group, or
        one fragment, is in memory.
    """
    old = read_manifest(folder)
    if old is not None and _is_current(folder, old):
        _remove_generations(folder, keep={old.generation, old.previous})
        return old
    _remove_generations(folder, keep={old.generation if old else None})
    generation = secrets.token_hex(8)
    parts = tuple(_write_parts(folder, f"{TABLE}/{generation}", part_bytes))
    manifest = Manifest(generation=generation, previous=old.generation if old else None, parts=parts)
    data = manifest.to_json().encode("ascii")

    def write(file: BinaryIO) -> None:
        file.write(data)

    if require_held is not None:
        require_held()
    write_atomically(folder, MANIFEST, write)
    return manifest


def _is_current(folder: OutputFolder, manifest: Manifest) -> bool:
    """Whether the table's files are all there, and are copies of the fragments as they are now."""
    digests = manifest.digests
    if set(folder.fragments(Kind.EMBEDDINGS)) != digests.keys():
        return False
    try:
        if any(folder.size(part.name) != part.num_bytes for part in manifest.parts):
            return False
        return all(fragment_digest(folder, request_id) == digest for request_id, digest in digests.items())
    except (OutputError, OSError):
        return False  # a part that is gone is written again; a fragment that cannot be read is named then


@contextmanager
def part_rows(folder: OutputFolder, part: Part) -> Iterator[Rows]:
    """Open a part to read its rows.

    Raises: OSError or pyarrow.ArrowException, also while reading, where the part is missing or damaged.
    """
    with folder.open(part.name) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        yield Rows(parquet.schema_arrow, parquet.iter_batches(batch_size=_BATCH_ROWS))


def _write_parts(folder: OutputFolder, place: str, part_bytes: int) -> Iterator[Part]:
    folder.make(place)
    # In the order of their names, so that the same fragments give the same parts.
    request_ids = folder.fragments(Kind.EMBEDDINGS)
    for number, group in enumerate(group_requests(folder, request_ids, part_bytes)):
        name = f"{place}/part-{number:05}.parquet"
        writer = _PartWriter(folder, group)
        write_atomically(folder, name, writer)
        yield Part(
            name=name,
            num_rows=sum(fragment.num_rows for fragment in writer.copied),
            num_bytes=folder.size(name),
            fragments=tuple(writer.copied),
        )


class _PartWriter:
    """Writes the rows of some fragments into one open file; called once."""

    def __init__(self, folder: OutputFolder, request_ids: Sequence[str]) -> None:
        self._folder, self._request_ids = folder, request_ids
        self._pending: list[pa.Table] = []
        self.copied: list[CompactedFragment] = []

    def __call__(self, file: BinaryIO) -> None:
        schema = self._read(self._request_ids[0]).schema
        with pq.ParquetWriter(file, schema, **parquet_options(schema)) as writer:
            for request_id in self._request_ids:
                table = self._read(request_id)
                digest = fragment_digest(self._folder, request_id)
                self.copied.append(CompactedFragment(request_id=request_id, num_rows=table.num_rows, digest=digest))
                # Fragments of another version of Patchwire say so in their metadata; their columns are the same.
                self._pending.append(table.cast(schema))
                if sum(pending.nbytes for pending in self._pending) >= ROW_GROUP_BYTES:
                    self._flush(writer)
            self._flush(writer)

    def _flush(self, writer: pq.ParquetWriter) -> None:
        if self._pending:
            writer.write_table(pa.concat_tables(self._pending))
        self._pending = []

    def _read(self, request_id: str) -> pa.Table:
        try:
            return read_table(self._folder, Kind.EMBEDDINGS, request_id)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self._folder, request_id, error) from error


def _remove_generations(folder: OutputFolder, keep: set[str | None]) -> None:
    """Remove what killed compactions left, and generations that no reader of the manifest can still be at."""
    for name in folder.entries(TABLE):
        if name not in keep and f"{TABLE}/{name}" != MANIFEST:
            folder.remove_all(f"{TABLE}/{name}")
