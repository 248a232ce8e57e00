"""Where a run's files lie, on a local disk or in an object store.

    OUT/run.json                    what was run, with what, and how it went
    OUT/sources/*.parquet           one row a source
    OUT/plan/*.parquet              one row a request
    OUT/errors/<request>.parquet    one row a failure
    OUT/embeddings/<request>.parquet
    OUT/lease.json                  who is at it, while a run is (lease.py)
    OUT/retry.json                  failed requests that are being done again, while a retry is
    OUT/attempts/                   media that ended their decoder, a file each time (media/attempts.py)
    OUT/table/                      a compacted copy of the embeddings, where one was asked for (compact.py)
    OUT/embeddings.lance            a copy of them that Lance searches, where one was asked for (lance_table.py)

A folder of prepared requests is laid out the same way, with OUT/requests/<request>.arrow in place of the embeddings.

fsspec and not pyarrow.fs: it is what the sources are read through, so one set of drivers and credentials serves both
ends. Local folders go around it, by exact bytes and with fsync, which fsspec does not offer.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from pipeline.errors import OutputError
from pipeline.media.driver_file import driver_errors, driver_file
from pipeline.media.location import local_path

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

RUN_RECORD = "run.json"


class Kind(StrEnum):
    """The folders of tables in an output."""

    EMBEDDINGS = "embeddings"
    ERRORS = "errors"
    PLAN = "plan"
    SOURCES = "sources"
    REQUESTS = "requests"

    @property
    def suffix(self) -> str:
        """How its files' names end."""
        return ".arrow" if self is Kind.REQUESTS else ".parquet"


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """An output folder by its path or fsspec URL; a small value that may be sent to any process.

    A relative path is made absolute when it is built, because workers run elsewhere.
    """

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).absolute()))

    @property
    def local(self) -> Path | None:
        """The folder on this machine, or None for an object store."""
        path = local_path(self.uri)
        return None if path is None else Path(os.fsdecode(path))

    @property
    def attempts_uri(self) -> str:
        """Where the deaths of decoders are written down."""
        return f"{self.uri.rstrip('/')}/attempts"

    def name(self, kind: Kind, stem: str) -> str:
        """Give a fragment's path below the folder. `stem` is one plain name: ours, never a user's."""
        assert stem and "/" not in stem and not stem.startswith("."), stem
        return f"{kind}/{stem}{kind.suffix}"

    def create(self, makes: Kind = Kind.EMBEDDINGS) -> None:
        """Make the folder and those in it; `makes` is what it is for.

        Raises: OutputError where it cannot be written to.
        """
        with self._explained("", "cannot be made"):
            for kind in (makes, Kind.ERRORS, Kind.PLAN, Kind.SOURCES):
                if self.local is not None:
                    (self.local / kind).mkdir(parents=True, exist_ok=True)
                else:
                    store, root = self.store()
                    store.makedirs(f"{root}/{kind}", exist_ok=True)

    def fragments(self, kind: Kind) -> tuple[str, ...]:
        """List the stems of the visible fragments of a kind, sorted; empty where the folder does not exist.

        Raises: OutputError where it cannot be listed. Cost: one listing.
        """
        with self._explained(kind, "cannot be listed"):
            try:
                names = os.listdir(self.local / kind) if self.local is not None else self._stored(kind)  # noqa: PTH208
            except FileNotFoundError:
                return ()
        visible = (name for name in names if name.endswith(kind.suffix) and not name.startswith("."))
        return tuple(sorted(name.removesuffix(kind.suffix) for name in visible))

    def open(self, name: str) -> BinaryIO:
        """Open a file below the folder for reading.

        Raises: OSError (FileNotFoundError where there is none), also while it is read; of a store, too.
        """
        if self.local is not None:
            return (self.local / name).open("rb")
        with driver_errors():
            store, root = self.store()
            return cast("BinaryIO", driver_file(store.open(f"{root}/{name}", "rb")))

    def remove(self, name: str) -> None:
        """Remove a file below the folder, if it exists. Raises: OutputError."""
        with self._explained(name, "cannot be removed"):
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
                return
            store, root = self.store()
            if store.exists(f"{root}/{name}"):
                store.rm_file(f"{root}/{name}")

    def size(self, name: str) -> int:
        """Give a file's bytes. Raises: OutputError."""
        with self._explained(name, "cannot be read"):
            if self.local is not None:
                return (self.local / name).stat().st_size
            store, root = self.store()
            return int(store.size(f"{root}/{name}") or 0)

    def make(self, name: str) -> None:
        """Make a folder below the folder. Raises: OutputError."""
        with self._explained(name, "cannot be made"):
            if self.local is not None:
                (self.local / name).mkdir(parents=True, exist_ok=True)

    def entries(self, name: str) -> tuple[str, ...]:
        """List everything in a folder below the folder, hidden names too; empty where there is none.

        Raises: OutputError where it cannot be listed.
        """
        with self._explained(name, "cannot be listed"):
            try:
                if self.local is not None:
                    return tuple(sorted(path.name for path in (self.local / name).iterdir()))
                store, root = self.store()
                paths = {str(path).rstrip("/") for path in store.ls(f"{root}/{name}", detail=False)}
                # Some tools put an object where they make a folder, under its own name and a slash.
                return tuple(sorted(path.rpartition("/")[2] for path in paths - {f"{root}/{name}"}))
            except FileNotFoundError:
                return ()

    def remove_all(self, name: str) -> None:
        """Remove a file, or a folder with everything in it, below the folder. Raises: OutputError."""
        with self._explained(name, "cannot be removed"):
            if self.local is None:
                store, root = self.store()
                store.rm(f"{root}/{name}", recursive=True)
            elif (self.local / name).is_dir():
                shutil.rmtree(self.local / name)
            else:
                (self.local / name).unlink(missing_ok=True)

    def store(self) -> tuple["AbstractFileSystem", str]:
        """Open the fsspec file system and the folder's path in it.

        Raises: OutputError for an unknown scheme or a driver that is not installed.
        """
        from fsspec.core import url_to_fs

        try:
            store, root = url_to_fs(self.uri)
        except Exception as error:  # a scheme without a driver, and what each driver wants to be opened
            raise OutputError(f"output {self.uri!r}: {error}") from error
        store.invalidate_cache()
        return store, str(root).rstrip("/")

    def _stored(self, kind: Kind) -> list[str]:
        store, root = self.store()
        return [str(path).rpartition("/")[2] for path in store.ls(f"{root}/{kind}", detail=False)]

    @contextmanager
    def _explained(self, name: str, problem: str) -> Iterator[None]:
        try:
            with driver_errors():
                yield
        except OSError as error:
            where = f"output {self.uri!r}: {name}: " if name else f"output {self.uri!r}: "
            raise OutputError(f"{where}{problem}: {error.strerror or error}") from error
