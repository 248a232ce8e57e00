import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from pipeline.errors import OutputError
from pipeline.sink.atomic import write_atomically
from pipeline.sink.fragments import read_table, write_fragment
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.run_record import read_run_record

from .factories import make_embeddings, make_errors, make_folder


@pytest.fixture
def empty_store() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


def test_a_relative_folder_stays_the_same_one_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = OutputFolder("out")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(folder)).local == tmp_path / "out"
    assert OutputFolder(f"file://{tmp_path}/out").local == tmp_path / "out"


def test_creating_twice_is_the_same_as_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.create()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*Kind} - {Kind.REQUESTS}


def test_only_visible_fragments_are_listed_and_in_order(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for name in ("b.parquet", "a.parquet", ".c.parquet", ".a.parquet.0.tmp", "notes.txt"):
        (tmp_path / "out" / "plan" / name).touch()
    assert folder.fragments(Kind.PLAN) == ("a", "b")
    assert OutputFolder(str(tmp_path / "none")).fragments(Kind.PLAN) == ()


def test_a_folder_that_cannot_be_made_is_an_output_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out"):
        OutputFolder(str(tmp_path / "out")).create()
    with pytest.raises(OutputError, match="nosuch"):
        OutputFolder("nosuch://bucket/out").create()


def test_an_object_store_is_an_output_like_a_disk(empty_store: fsspec.AbstractFileSystem) -> None:
    folder = OutputFolder("memory://bucket/out")
    assert folder.local is None
    folder.create()
    assert folder.fragments(Kind.EMBEDDINGS) == ()
    write_fragment(folder, "r1", make_embeddings(), make_errors())
    assert folder.fragments(Kind.EMBEDDINGS) == ("r1",)
    assert folder.fragments(Kind.ERRORS) == ()
    folder.remove(folder.name(Kind.EMBEDDINGS, "r1"))
    folder.remove(folder.name(Kind.EMBEDDINGS, "r1"))
    assert folder.fragments(Kind.EMBEDDINGS) == ()


class DriverError(Exception):
    """What a store's driver may raise of a lost network: no OSError."""


def test_a_lost_network_is_an_output_error_that_names_the_file(
    empty_store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = OutputFolder("memory://bucket/out")
    folder.create()
    write_fragment(folder, "r1", make_embeddings(), make_errors())
    file = folder.open("embeddings/r1.parquet")

    def lost(*_: object, **__: object) -> None:
        raise DriverError("could not connect")

    for name in ("pipe_file", "_open", "ls", "makedirs", "info", "exists", "size", "rm", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, lost)
    monkeypatch.setattr(MemoryFile, "read", lost)
    calls: dict[str, Callable[[], object]] = {
        "cannot be made": folder.create,
        "embeddings: cannot be listed": lambda: folder.fragments(Kind.EMBEDDINGS),
        "table: cannot be listed": lambda: folder.entries("table"),
        "a: cannot be read": lambda: folder.size("a"),
        "b: cannot be removed": lambda: folder.remove("b"),
        "c: cannot be removed": lambda: folder.remove_all("c"),
        "d: cannot be written": lambda: write_atomically(folder, "d", lambda _: None),
        "r1.parquet: cannot be read": lambda: write_fragment(folder, "r1", make_embeddings(), make_errors()),
        "run.json: expected a run record": lambda: read_run_record(folder),
    }
    for message, call in calls.items():
        with pytest.raises(OutputError, match=f"memory://bucket/out.*{message}.*DriverError: could not connect"):
            call()
    with pytest.raises(OSError, match="DriverError: could not connect"):
        file.read(1)
    with pytest.raises(OSError, match="DriverError: could not connect"):
        read_table(folder, Kind.EMBEDDINGS, "r1")


def test_a_bug_in_what_writes_a_file_is_not_taken_for_a_lost_network(empty_store: fsspec.AbstractFileSystem) -> None:
    folder = OutputFolder("memory://bucket/out")
    with pytest.raises(ZeroDivisionError):
        write_atomically(folder, "d", lambda _: 1 / 0)


def test_an_output_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = OutputFolder(os.fsdecode(os.fsencode(tmp_path) + b"/o\xff\nut#%20"))
    folder.create()
    write_fragment(folder, "r1", make_embeddings(), make_errors())
    assert folder.fragments(Kind.EMBEDDINGS) == ("r1",)
