"""The Lance dataset that holds the embeddings again, for vector search: where it is and how it is read.

    OUT/embeddings.lance         the dataset; each commit (`lance_commit.py`) is a version, visible in one step
    OUT/embeddings.lance.json    which requests each of its data files holds

The books are written before the commit that they are about and cover the files of the version before it, too, so they
are right whichever of the two is there. A file that they do not know was written by someone else.

Lance is imported in functions here and in `lance_commit.py`, by the process that runs the flow, and only where a
dataset is asked for: native code of 200 MB that starts threads and does not survive a fork has no place in a decoder or
an actor. Trade-off: a missing package is found before anything is done, a broken one when the dataset is written.
Source: pylance 14, `lance.dataset`, `LanceFragment.to_batches`.
"""

import importlib.metadata
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import OutputError, UsageError
from pipeline.sink.fragments import count_rows
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.parts import Part, Rows, part_of, unreadable

if TYPE_CHECKING:
    from lance import FragmentMetadata, LanceDataset, LanceFragment

DATASET = "embeddings.lance"
BOOKS = f"{DATASET}.json"
_BATCH_ROWS = 1024
_READAHEAD_BATCHES = 1
_READ_BUFFER_BYTES = 16 << 20
_RUST_SOURCE = re.compile(r",? /\S+\.rs:\d+:\d+")


def require_lance(folder: OutputFolder) -> None:
    """Refuse what would fail at the end of a run: no pylance, or a place that it cannot write to.

    Raises: UsageError. Cost: a look into the installed packages; nothing is imported.
    """
    try:
        importlib.metadata.version("pylance")
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            "a Lance dataset needs the package pylance, which is not installed here: pip install 'pylance>=14,<15'"
        ) from None
    if folder.local is None and not folder.uri.startswith("s3://"):
        raise UsageError(f"output {folder.uri!r}: a Lance dataset is written to a local folder or to s3://")
    if any(ord(char) < 32 or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in folder.uri):
        raise UsageError(f"output {folder.uri!r}: Lance takes no path with control characters or outside UTF-8")


def open_dataset(folder: OutputFolder) -> "LanceDataset | None":
    """Open the current version of the dataset, None where there is none.

    Raises: UsageError as `require_lance`; OutputError where it cannot be read.
    """
    if not folder.entries(f"{DATASET}/_versions"):
        return None
    require_lance(folder)
    import lance

    with explained(folder, "cannot be read; remove it to have it made again"):
        return lance.dataset(dataset_uri(folder), storage_options=storage_options(folder))


def read_books(folder: OutputFolder) -> dict[str, Part]:
    """Read which requests each data file holds, by its path below the output; empty where there are no books.

    Raises: OutputError where they are not ours.
    """
    try:
        with folder.open(BOOKS) as file:
            parts = [part_of(values) for values in json.loads(file.read())["parts"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"output {folder.uri!r}: {BOOKS}: expected books of this version, got: {error}; "
            "remove it to have the dataset made again"
        ) from error
    return {part.name: part for part in parts}


def file_name(fragment: "FragmentMetadata") -> str:
    """Give the path below the output of what Lance calls a fragment: one data file, where we wrote it."""
    return f"{DATASET}/data/{fragment.files[0].path!s}"


def file_rows(dataset: "LanceDataset", fragment: "LanceFragment") -> Rows:
    """Open a data file to read its rows. Raises: OSError, ValueError or ArrowException, also while reading."""
    batches = fragment.to_batches(
        batch_size=_BATCH_ROWS, batch_readahead=_READAHEAD_BATCHES, io_buffer_size=_READ_BUFFER_BYTES
    )
    return Rows(dataset.schema, iter(batches))


def has_rows(folder: OutputFolder, request_id: str) -> bool:
    """Whether a request has any row to copy. Raises: OutputError where it cannot be read. Cost: a footer."""
    try:
        return count_rows(folder, Kind.EMBEDDINGS, request_id) > 0
    except (OSError, pa.ArrowException) as error:
        raise unreadable(folder, request_id, error) from error


def dataset_uri(folder: OutputFolder) -> str:
    """What `lance.dataset` opens."""
    return f"{str(folder.local) if folder.local is not None else folder.uri.rstrip('/')}/{DATASET}"


def storage_options(folder: OutputFolder) -> dict[str, str] | None:
    """What fsspec's driver was told of the store and Lance would not find out itself: endpoint, keys, plain HTTP."""
    if folder.local is not None:
        return None
    store, _ = folder.store()
    endpoint = (
        getattr(store, "endpoint_url", None)
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    options = {
        "aws_endpoint": endpoint,
        "allow_http": "true" if endpoint and endpoint.startswith("http://") else None,
        "aws_access_key_id": getattr(store, "key", None),
        "aws_secret_access_key": getattr(store, "secret", None),
        "aws_session_token": getattr(store, "token", None),
    }
    return {name: value for name, value in options.items() if value}


@contextmanager
def explained(folder: OutputFolder, what: str) -> Iterator[None]:
    """Make what Lance raises an OutputError, without the places in its own source."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"output {folder.uri!r}: {DATASET}: {what}: {_RUST_SOURCE.sub('', str(error))}") from error
