import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import ErrorCode, Stage, UsageError

from .factories import list_with, make_file, only_failure, uris_of


def test_a_folder_gives_every_regular_file_below_it_sorted_whatever_its_name(tmp_path: Path) -> None:
    names = ["b.mp4", "a.jpg", "sub/deeper/notes", "sub/table.csv", "a/z"]
    for name in names:
        make_file(tmp_path / name)
    assert uris_of(list_with(tmp_path)) == sorted(str(tmp_path / name) for name in names)


def test_an_item_carries_size_and_modification_time(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a.mp4", b"12345")
    os.utime(path, ns=(0, 1_234_567_890_123_456_789))
    [item] = list_with(path).items
    assert (item.num_bytes, item.modified_ns) == (5, 1_234_567_890_123_456_789)
    assert item.start_seconds is None
    assert item.end_seconds is None


def test_the_same_file_by_several_arguments_in_any_order_is_listed_once(tmp_path: Path) -> None:
    specs = [tmp_path, make_file(tmp_path / "a.mp4"), make_file(tmp_path / "s" / "b.mp4"), tmp_path / "s" / "*"]
    expected = list_with(*specs)
    for seed in range(5):
        assert list_with(*random.Random(seed).sample(specs, len(specs))) == expected
    assert len(expected.items) == 2


def test_hidden_files_and_folders_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    shown = make_file(tmp_path / "a.mp4")
    make_file(tmp_path / ".thumb.jpg")
    make_file(tmp_path / ".cache" / "b.mp4")
    assert uris_of(list_with(tmp_path)) == [str(shown)]
    assert len(list_with(tmp_path, hidden=True).items) == 3
    assert uris_of(list_with(tmp_path / ".thumb.jpg")) == [str(tmp_path / ".thumb.jpg")]


def test_patterns_choose_file_names_in_folders_and_not_what_is_named(tmp_path: Path) -> None:
    video, note = make_file(tmp_path / "s" / "a.mp4"), make_file(tmp_path / "s" / "a.txt")
    assert uris_of(list_with(tmp_path, include=("*.mp4",))) == [str(video)]
    assert uris_of(list_with(tmp_path, exclude=("*.mp4",))) == [str(note)]
    assert uris_of(list_with(note, include=("*.mp4",))) == [str(note)]


def test_a_relative_path_is_listed_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_file(tmp_path / "-a.mp4")
    monkeypatch.chdir(tmp_path)
    assert uris_of(list_with("-a.mp4")) == uris_of(list_with("./-a.mp4")) == uris_of(list_with(".")) == [str(path)]


def test_a_glob_is_expanded_and_the_folders_it_matches_are_listed(tmp_path: Path) -> None:
    paths = [make_file(tmp_path / name) for name in ("a/1.mp4", "a/x/2.mp4", "b/3.mp4", "c.txt")]
    assert uris_of(list_with(tmp_path / "*" / "*.mp4")) == [str(paths[0]), str(paths[2])]
    assert uris_of(list_with(tmp_path / "a*")) == [str(paths[0]), str(paths[1])]
    assert uris_of(list_with(tmp_path / "**" / "*.mp4")) == [str(path) for path in paths[:3]]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a[1]*.mp4")
    make_file(tmp_path / "a1b.mp4")
    assert uris_of(list_with(path)) == [str(path)]


@pytest.mark.parametrize("spec", ["a\0b.mp4", "file:///a%00b.mp4"])
def test_a_zero_byte_is_wrong_usage(spec: str) -> None:
    with pytest.raises(UsageError, match="zero byte"):
        list_with(spec)


@pytest.mark.parametrize("name", ["missing.mp4", "missing/*.mp4", "*.nothing", "a**b", ""])
def test_an_argument_that_matches_nothing_is_wrong_usage_that_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="source"):
        list_with(f"{tmp_path}/{name}" if name else "")


def test_no_argument_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="at least one"):
        list_with()


def test_an_empty_folder_is_an_empty_listing(tmp_path: Path) -> None:
    listing = list_with(tmp_path)
    assert listing.items == ()
    assert listing.failures == ()


def test_a_link_to_a_file_in_the_folder_is_a_source_of_its_own(tmp_path: Path) -> None:
    make_file(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    assert uris_of(list_with(tmp_path)) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]


def test_a_link_that_leaves_the_folder_fails_unless_it_may_or_is_named(tmp_path: Path) -> None:
    make_file(tmp_path / "rooted-too" / "secret.mp4")
    root = tmp_path / "root"
    root.mkdir()
    link = root / "a.mp4"
    link.symlink_to("../rooted-too/secret.mp4")
    failure = only_failure(list_with(root))
    assert (failure.uri, failure.code, failure.stage) == (str(link), ErrorCode.OUTSIDE_ROOT, Stage.LIST)
    assert "follow_outside" in failure.message
    for listing in (list_with(root, follow_outside=True), list_with(link), list_with(root, link)):
        assert uris_of(listing) == [str(link)]
        assert not listing.failures


def test_a_folder_whose_name_begins_like_the_root_is_outside_of_it(tmp_path: Path) -> None:
    make_file(tmp_path / "root2" / "x.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "l.mp4").symlink_to(tmp_path / "root2" / "x.mp4")
    assert only_failure(list_with(tmp_path / "root")).code is ErrorCode.OUTSIDE_ROOT


def test_a_glob_does_not_leave_the_folder_before_its_first_star(tmp_path: Path) -> None:
    make_file(tmp_path / "out" / "x.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "door").symlink_to(tmp_path / "out")
    assert only_failure(list_with(root / "*" / "*.mp4")).code is ErrorCode.OUTSIDE_ROOT
    assert uris_of(list_with(root / "door" / "*.mp4")) == [str(root / "door" / "x.mp4")]


def test_dangling_links_and_loops_fail_and_the_rest_is_listed(tmp_path: Path) -> None:
    good = make_file(tmp_path / "good.mp4")
    (tmp_path / "dangling").symlink_to("/no/such/file")
    (tmp_path / "loop").symlink_to("loop")
    listing = list_with(tmp_path)
    assert uris_of(listing) == [str(good)]
    assert [(Path(failure.uri).name, failure.code) for failure in listing.failures] == [
        ("dangling", ErrorCode.UNREADABLE),
        ("loop", ErrorCode.UNREADABLE),
    ]


def test_folder_links_are_not_followed_so_a_loop_of_folders_ends(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a" / "x.mp4")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    for spec in (tmp_path, tmp_path / "**"):
        listing = list_with(spec)
        assert uris_of(listing) == [str(path)]
        assert not listing.failures


def test_a_folder_link_to_the_outside_is_reported_and_not_left_out_in_silence(tmp_path: Path) -> None:
    make_file(tmp_path / "out" / "x.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "door").symlink_to(tmp_path / "out")
    assert only_failure(list_with(tmp_path / "root")).code is ErrorCode.OUTSIDE_ROOT
    assert only_failure(list_with(tmp_path / "root", follow_outside=True)).code is ErrorCode.NOT_A_FILE


def test_pipes_sockets_and_devices_fail_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.mp4"))
    server.close()
    listing = list_with(tmp_path, "/dev/zero")
    assert not listing.items
    assert {failure.uri: failure.code for failure in listing.failures} == {
        "/dev/zero": ErrorCode.NOT_A_FILE,
        str(tmp_path / "pipe.mp4"): ErrorCode.NOT_A_FILE,
        str(tmp_path / "socket.mp4"): ErrorCode.NOT_A_FILE,
    }


def test_a_pipe_behind_a_link_fails_as_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.mp4").symlink_to("pipe")
    assert {failure.code for failure in list_with(tmp_path).failures} == {ErrorCode.NOT_A_FILE}


@pytest.fixture
def folder_for_all() -> Iterator[Path]:
    """A folder that any user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may read everything, so it steps down for a while."""
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)


def test_what_this_user_may_not_read_fails(folder_for_all: Path) -> None:
    good = make_file(folder_for_all / "good.mp4")
    make_file(folder_for_all / "locked.mp4").chmod(0)
    locked = make_file(folder_for_all / "folder" / "x.mp4").parent
    locked.chmod(0)
    with without_rights():
        listing = list_with(folder_for_all)
    locked.chmod(0o755)
    assert uris_of(listing) == [str(good)]
    assert [(Path(failure.uri).name, failure.code) for failure in listing.failures] == [
        ("folder", ErrorCode.UNREADABLE),
        ("locked.mp4", ErrorCode.UNREADABLE),
    ]
