import os
from pathlib import Path

import pytest

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.sources.content_id import BLOCK_BYTES, NUM_BLOCKS, WHOLE_LIMIT_BYTES, content_id
from pipeline.sources.items import SourceItem

from .factories import list_with, make_file

LARGE_BYTES = WHOLE_LIMIT_BYTES + (3 << 20) + 1


def id_of(path: Path) -> str:
    return content_id(list_with(path).items[0])


def make_large(path: Path, changes: dict[int, bytes] | None = None, modified_ns: int = 10**18) -> Path:
    with path.open("wb") as file:
        file.truncate(LARGE_BYTES)
        for offset, content in (changes or {}).items():
            file.seek(offset)
            file.write(content)
    os.utime(path, ns=(modified_ns, modified_ns))
    return path


def test_equal_bytes_have_one_id_and_a_changed_byte_another(tmp_path: Path) -> None:
    a, b, c = (make_file(tmp_path / name, content) for name, content in (("a", b"12"), ("b", b"12"), ("c", b"13")))
    os.utime(b, ns=(1, 1))
    assert id_of(a) == id_of(b) != id_of(c)
    assert len(id_of(a)) == len("b2-") + 32


def test_an_empty_file_has_an_id(tmp_path: Path) -> None:
    assert id_of(make_file(tmp_path / "a", b"")).startswith("b2-")


def test_a_file_at_the_limit_is_hashed_whole_and_one_above_is_sampled(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(WHOLE_LIMIT_BYTES)
    assert id_of(path).startswith("b2-")
    with path.open("ab") as file:
        file.write(b"x")
    assert id_of(path).startswith("sampled-")


@pytest.mark.parametrize("block", range(NUM_BLOCKS))
def test_a_change_in_any_sampled_block_of_a_large_file_is_seen(tmp_path: Path, block: int) -> None:
    offset = block * (LARGE_BYTES - BLOCK_BYTES) // (NUM_BLOCKS - 1) + BLOCK_BYTES // 2
    assert id_of(make_large(tmp_path / "a")) != id_of(make_large(tmp_path / "b", {offset: b"x"}))


def test_the_first_and_the_last_byte_of_a_large_file_are_sampled(tmp_path: Path) -> None:
    ids = {id_of(make_large(tmp_path / "a", changes)) for changes in ({}, {0: b"x"}, {LARGE_BYTES - 1: b"x"})}
    assert len(ids) == 3


def test_a_large_file_of_another_time_is_other_content_and_an_equal_copy_is_not(tmp_path: Path) -> None:
    original, copy = make_large(tmp_path / "a"), make_large(tmp_path / "b")
    assert id_of(original) == id_of(copy)
    assert id_of(original) != id_of(make_large(tmp_path / "c", modified_ns=10**18 + 1))


@pytest.mark.parametrize("kind", ["missing", "pipe", "folder"])
def test_what_cannot_be_read_is_a_media_error_of_probing_and_never_blocks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(MediaError) as caught:
        content_id(SourceItem(uri=str(path), num_bytes=1, modified_ns=0))
    assert caught.value.stage is Stage.PROBE
    assert caught.value.code is (ErrorCode.UNREADABLE if kind == "missing" else ErrorCode.NOT_A_FILE)


def test_an_object_that_is_gone_is_a_media_error_of_probing() -> None:
    with pytest.raises(MediaError) as caught:
        content_id(SourceItem(uri="memory://none/x.mp4", num_bytes=1, modified_ns=0))
    assert (caught.value.code, caught.value.stage) == (ErrorCode.UNREADABLE, Stage.PROBE)
