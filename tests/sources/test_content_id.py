import itertools
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.config import SourcesConfig
from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.content import SAMPLED_BYTES, WHOLE_LIMIT_BYTES, sample_ranges
from pipeline.sources.content_id import content_id
from pipeline.sources.items import SourceItem
from pipeline.sources.listing import list_sources
from pipeline.sources.version import require_unchanged

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
    assert id_of(path).startswith("samples-")


def test_samples_are_4_mib_in_order_with_both_ends_and_gaps_of_one_size_between() -> None:
    places = sample_ranges(LARGE_BYTES)
    assert sum(place.num_bytes for place in places) == SAMPLED_BYTES == 4 << 20
    assert (places[0].start, places[-1].stop) == (0, LARGE_BYTES)
    gaps = [after.start - before.stop for before, after in itertools.pairwise(places)]
    assert gaps[0] == gaps[-1] == 0  # a block follows the first MiB, and one ends where the last begins
    assert 0 < max(gaps[1:-1]) - 1 <= min(gaps[1:-1])


@pytest.mark.parametrize("place", range(len(sample_ranges(LARGE_BYTES))))
def test_a_change_of_any_sample_of_a_large_file_is_seen(tmp_path: Path, place: int) -> None:
    found = sample_ranges(LARGE_BYTES)[place]
    changed = {id_of(make_large(tmp_path / "b", {offset: b"x"})) for offset in (found.start, found.stop - 1)}
    assert len(changed) == 2
    assert id_of(make_large(tmp_path / "a")) not in changed


def test_a_large_file_of_another_size_is_other_content(tmp_path: Path) -> None:
    longer = make_large(tmp_path / "b")
    os.truncate(longer, LARGE_BYTES + 1)
    assert id_of(make_large(tmp_path / "a")) != id_of(longer)


def test_a_large_file_that_was_touched_or_copied_is_the_same_content(tmp_path: Path) -> None:
    """Also where it differs between the samples: that is what sampling cannot tell."""
    original, later = make_large(tmp_path / "a"), make_large(tmp_path / "b", modified_ns=10**18 + 1)
    assert id_of(original) == id_of(later)
    unseen = sample_ranges(LARGE_BYTES)[1].stop
    assert id_of(make_large(tmp_path / "c", {unseen: b"x"}, modified_ns=10**18 + 2)) == id_of(original)


def test_a_large_object_and_a_large_member_are_named_as_the_file_and_read_by_their_samples_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_large(tmp_path / "a.mp4", {0: b"first", LARGE_BYTES - 4: b"last"})
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(path, "a.mp4")
    memory = fsspec.filesystem("memory")
    for name in ("a.mp4", "s.tar"):
        memory.pipe_file(f"/large/{name}", (tmp_path / name).read_bytes())
    sizes: list[int] = []
    cat_file = MemoryFileSystem.cat_file

    def counted(store: MemoryFileSystem, place: str, start: int, end: int) -> bytes:
        data = cat_file(store, place, start, end)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    try:
        items = list_sources(["memory://large", str(tmp_path / "s.tar")], SourcesConfig()).items
        assert len(items) == 3
        assert {content_id(item) for item in items} == {id_of(path)}
        assert sum(sizes) == 2 * SAMPLED_BYTES
    finally:
        memory.rm("/large", recursive=True)


def test_a_large_file_that_was_only_touched_is_what_was_planned_and_a_changed_one_is_not(tmp_path: Path) -> None:
    path = make_large(tmp_path / "a")
    [planned] = list_with(path).items
    source_id = content_id(planned)
    os.utime(path, ns=(1, 1))
    require_unchanged(planned, source_id)
    make_large(path, {LARGE_BYTES - 1: b"x"})
    os.utime(path, ns=(2, 2))
    with pytest.raises(MediaError, match="samples-") as caught:
        require_unchanged(planned, source_id)
    assert caught.value.code is ErrorCode.CHANGED_MEDIA


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
