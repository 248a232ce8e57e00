import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import OutputError
from pipeline.sink.fragments import write_fragment
from pipeline.sink.output import Kind, OutputFolder

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


def test_an_output_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = OutputFolder(os.fsdecode(os.fsencode(tmp_path) + b"/o\xff\nut#%20"))
    folder.create()
    write_fragment(folder, "r1", make_embeddings(), make_errors())
    assert folder.fragments(Kind.EMBEDDINGS) == ("r1",)
