"""Bringing the Lance dataset up to date with the fragments, in one commit.

As with `compact.py`, the fragments stay what a run goes by, and the dataset is a second copy. Here each commit writes
what is new: a data file holds whole requests and is kept as long as their fragments have the bytes that were copied.
What is not kept, and files that are small, are written again with the new requests, and one commit puts the new files
in the place of the old. So an index that a user built stays with the rows that it covers, and a row is found once at
any instant. The price of it is that rows lie in the order in which they came.

A kill leaves the version that was there or the new one, whole; files of no version go with the next commit. The version
before the current one stays until then, for its readers. Of two commits at once, after a lost lease, Lance refuses the
second.
Source: pylance 14, `LanceFragment.create`, `LanceOperation.Update` and `Overwrite`, `cleanup_old_versions`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.sink.atomic import make_durable, write_atomically
from pipeline.sink.lance_table import (
    BOOKS,
    DATASET,
    dataset_uri,
    explained,
    file_name,
    has_rows,
    open_dataset,
    read_books,
    require_lance,
    storage_options,
)
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.parts import PART_BYTES, CompactedFragment, Part, fragment_digest, group_requests, unreadable
from pipeline.sink.reading import stream_batches

if TYPE_CHECKING:
    from lance import FragmentMetadata, LanceDataset, LanceFragment, LanceOperation

_VERSIONS_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LanceTable:
    """What the dataset holds; `version` is Lance's."""

    uri: str
    version: int
    num_rows: int
    num_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _DataFile:
    """A data file of the dataset, which Lance calls a fragment, and our books about it: None where it is not ours."""

    fragment: "FragmentMetadata"
    part: Part | None
    is_current: bool

    @property
    def request_ids(self) -> list[str]:
        return [fragment.request_id for fragment in self.part.fragments] if self.part else []


def commit_lance(
    folder: OutputFolder, part_bytes: int = PART_BYTES, *, require_held: Callable[[], None] = lambda: None
) -> LanceTable | None:
    """Bring the dataset up to date with the fragments; nothing where it is that already.

    Args:
        folder: an output whose lease is held.
        part_bytes: a data file is closed when its fragments come to this.
        require_held: raises where the lease was lost; asked before the commit, and before anything is removed.
    Returns: the dataset, None while no request has been written.
    Raises: UsageError as `require_lance`; OutputError for a fragment that cannot be read, where there is no room, or
        where someone else changed the dataset meanwhile; the version that was there stays.
    Cost: all fragments are read once to see what is new, and that twice more and written once; batches of 16 MiB and
        Lance's buffers are in memory.
    """
    require_lance(folder)
    request_ids = folder.fragments(Kind.EMBEDDINGS)
    if not request_ids:
        return None
    schema = _schema(folder, request_ids[0])
    dataset, books = open_dataset(folder), read_books(folder)
    files = [] if dataset is None else _data_files(folder, dataset, books)
    is_extended = dataset is not None and dataset.schema.equals(schema) and bool(files)
    kept = [file for file in files if file.is_current] if is_extended else []
    missing = _missing(folder, request_ids, kept)
    if missing:
        small = [file for file in kept if file.part is not None and file.part.num_bytes * 2 < part_bytes]
        kept = [file for file in kept if file not in small]
        missing = sorted({*missing, *(request_id for file in small for request_id in file.request_ids)})
    if dataset is not None and len(kept) == len(files) and not missing:
        require_held()
        return _cleaned(folder, dataset)
    mode = "append" if is_extended else "overwrite"
    written = [_write_file(folder, group, schema, mode) for group in group_requests(folder, missing, part_bytes)]
    _write_books(folder, [*(file.part for file in files if file.part is not None), *(part for _, part in written)])
    operation = _operation(files, kept, schema, [made for made, _ in written], is_extended=is_extended)
    require_held()
    committed = _commit(folder, operation, None if dataset is None else dataset.version)
    require_held()
    return _cleaned(folder, committed)


def _data_files(folder: OutputFolder, dataset: "LanceDataset", books: dict[str, Part]) -> list[_DataFile]:
    """What the current version consists of, and which files hold the rows of fragments as they are now."""
    files: list[_DataFile] = []
    held: set[str] = set()
    for fragment in dataset.get_fragments():
        part = books.get(file_name(fragment.metadata))
        is_current = part is not None and _is_current(folder, fragment, part, held)
        files.append(_DataFile(fragment=fragment.metadata, part=part, is_current=is_current))
        held.update(files[-1].request_ids if is_current else ())
    return files


def _is_current(folder: OutputFolder, fragment: "LanceFragment", part: Part, held: set[str]) -> bool:
    if fragment.num_deletions or fragment.physical_rows != part.num_rows:
        return False
    try:
        if folder.size(part.name) != part.num_bytes:
            return False
        return all(
            copied.request_id not in held and fragment_digest(folder, copied.request_id) == copied.digest
            for copied in part.fragments
        )
    except (OutputError, OSError):
        return False  # a file that is gone is written again; a fragment that cannot be read is named then


def _missing(folder: OutputFolder, request_ids: Sequence[str], kept: Sequence[_DataFile]) -> list[str]:
    """The requests with rows that no kept file holds; where all clips failed there is nothing to copy."""
    held = {request_id for file in kept for request_id in file.request_ids}
    return [request_id for request_id in request_ids if request_id not in held and has_rows(folder, request_id)]


def _schema(folder: OutputFolder, request_id: str) -> pa.Schema:
    try:
        with folder.open(folder.name(Kind.EMBEDDINGS, request_id)) as file:
            return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(folder, request_id, error) from error


class _Copying:
    """The rows of some fragments as they go by, and what was copied; iterated once, by Lance, in a thread.

    Lance makes a message of whatever is raised in here, so the error itself is kept for whoever asked. Where that is
    interrupted it sets `is_stopped`, and no more rows come.
    """

    def __init__(self, folder: OutputFolder, request_ids: Sequence[str], schema: pa.Schema) -> None:
        self._folder, self._request_ids, self._schema = folder, request_ids, schema
        self.copied: list[CompactedFragment] = []
        self.failure: OutputError | None = None
        self.is_stopped = False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for request_id in self._request_ids:
            if self.is_stopped:
                raise RuntimeError("stopped")
            num_rows = 0
            try:
                for batch in stream_batches(self._folder, Kind.EMBEDDINGS, request_id):
                    num_rows += batch.num_rows
                    # Fragments of another version of Patchwire say so in their metadata; their columns are the same.
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=self._schema)
                digest = fragment_digest(self._folder, request_id)
            except (OSError, ValueError, TypeError, pa.ArrowException) as error:
                self.failure = unreadable(self._folder, request_id, error)
                raise
            self.copied.append(CompactedFragment(request_id=request_id, num_rows=num_rows, digest=digest))


def _write_file(
    folder: OutputFolder, request_ids: Sequence[str], schema: pa.Schema, mode: str
) -> "tuple[FragmentMetadata, Part]":
    """Write a data file that is in no version yet."""
    from lance import LanceFragment

    copying = _Copying(folder, request_ids, schema)
    reader = pa.RecordBatchReader.from_batches(schema, iter(copying))
    write = partial(
        LanceFragment.create, dataset_uri(folder), reader, mode=mode, storage_options=storage_options(folder)
    )
    # Lance does not look at signals while it writes: in the main thread it would hold up Ctrl-C to the end of the file.
    with explained(folder, "cannot be written"), ThreadPoolExecutor(max_workers=1) as thread:
        try:
            made = thread.submit(write).result()
        except OSError as error:
            raise (copying.failure or error) from error
        except BaseException:
            copying.is_stopped = True
            raise
    name = file_name(made)
    make_durable(folder, name)
    part = Part(name=name, num_rows=made.physical_rows, num_bytes=folder.size(name), fragments=tuple(copying.copied))
    return made, part


def _write_books(folder: OutputFolder, parts: Sequence[Part]) -> None:
    data = (json.dumps({"parts": [asdict(part) for part in parts]}) + "\n").encode("ascii")

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomically(folder, BOOKS, write)


def _operation(
    files: Sequence[_DataFile],
    kept: Sequence[_DataFile],
    schema: pa.Schema,
    written: "list[FragmentMetadata]",
    *,
    is_extended: bool,
) -> "LanceOperation.BaseOperation":
    """The new files in the place of those that are not kept; without a dataset to extend they are all there is.

    Lance refuses the second of two updates of one version only where both change the same file, and would let both
    add the same rows. So an update that takes none away says that it changes one, which stays as it is.
    """
    from lance import LanceOperation

    if not is_extended:
        return LanceOperation.Overwrite(schema, written)
    dropped = [file.fragment.id for file in files if file not in kept]
    return LanceOperation.Update(
        removed_fragment_ids=dropped,
        updated_fragments=[] if dropped else [kept[0].fragment],
        new_fragments=written,
        fields_modified=[],
    )


def _commit(
    folder: OutputFolder, operation: "LanceOperation.BaseOperation", read_version: int | None
) -> "LanceDataset":
    """Make the new files visible in one step. Lance judges whether an update fits what others did meanwhile."""
    from lance import LanceDataset, LanceOperation

    found = open_dataset(folder)
    version = None if found is None else found.version
    # It lets any `Overwrite` win, although the cleaning after the other commit may have taken its files away.
    if isinstance(operation, LanceOperation.Overwrite) and version != read_version:
        raise OutputError(
            f"output {folder.uri!r}: {DATASET}: cannot be committed: version {version} is there, expected "
            f"{read_version}: someone else changed it meanwhile; run the same command again"
        )
    with explained(folder, "cannot be committed; run the same command again"):
        dataset = LanceDataset.commit(
            dataset_uri(folder), operation, read_version=read_version, storage_options=storage_options(folder)
        )
    versions = f"{DATASET}/_versions"
    make_durable(folder, *(f"{versions}/{name}" for name in folder.entries(versions)))
    return dataset


def _cleaned(folder: OutputFolder, dataset: "LanceDataset") -> LanceTable:
    """Remove the versions before the last two, but those that a user tagged, and what killed commits left."""
    with explained(folder, "old versions cannot be removed"):
        dataset.cleanup_old_versions(
            retain_versions=_VERSIONS_KEPT, delete_unverified=True, error_if_tagged_old_versions=False
        )
        return LanceTable(
            uri=dataset_uri(folder),
            version=dataset.version,
            num_rows=dataset.count_rows(),
            num_files=len(dataset.get_fragments()),
        )
