"""Names become bytes: local paths, file URIs with any byte in them, and whatever fsspec opens."""

import os
import socket
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.location import local_path, open_binary, path_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/a/b c#%41.mp4", "/a/b c#%41.mp4"),
        ("/a/x://y", "/a/x://y"),
        ("file:///a/%41%20.mp4", "/a/A .mp4"),
        ("file:///a/%FF.mp4", b"/a/\xff.mp4"),
        ("s3://bucket/key", None),
        ("memory://x", None),
    ],
)
def test_uri_names_a_local_path_or_none(uri, expected):
    assert local_path(uri) == expected


@given(name=st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_any_name_survives_the_way_to_a_uri_and_back(name):
    assert os.fsencode(local_path(path_uri(b"/" + name))) == b"/" + name


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", "ämöji😀".encode(), b"-lead", b"a#%41?", b"x" * 255])
def test_file_with_a_difficult_name_is_read(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"content")
    with open_binary(path_uri(os.fsencode(path))) as file:
        assert file.read() == b"content"


def test_a_store_that_is_lost_while_a_medium_is_read_raises_an_os_error(monkeypatch):
    class LostNetworkError(Exception):
        """What a store's driver may raise of a lost network: no OSError, so that it would say of a medium: corrupt."""

    def lose(*_):
        raise LostNetworkError("no route to the store")

    url = f"memory://{uuid.uuid4()}/a.bin"
    with fsspec.open(url, "wb") as file:
        file.write(b"content")
    with open_binary(url) as file:
        monkeypatch.setattr(MemoryFile, "read", lose)
        with pytest.raises(OSError, match="LostNetworkError: no route to the store"):
            file.read(4)


def test_fsspec_url_is_read():
    url = f"memory://{uuid.uuid4()}/a.bin"
    with fsspec.open(url, "wb") as file:
        file.write(b"content")
    with open_binary(url) as file:
        assert file.read() == b"content"


def refusal(uri, **kwargs):
    with pytest.raises(MediaError) as caught:
        open_binary(str(uri), **kwargs)
    assert str(uri) in caught.value.message
    return caught.value


def test_fifo_is_not_a_file_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refusal(tmp_path / "pipe.mp4").code is ErrorCode.NOT_A_FILE


def test_folder_device_and_socket_are_not_files(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        for path in (tmp_path, "/dev/null", tmp_path / "s"):
            assert refusal(path).code is ErrorCode.NOT_A_FILE


def test_missing_dangling_looping_and_impossible_names_are_unreadable(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("missing", "dangling", "loop", "x" * 300):
        error = refusal(tmp_path / name)
        assert (error.code, error.stage) == (ErrorCode.UNREADABLE, Stage.PROBE)
    assert refusal("/nul\0byte").code is ErrorCode.UNREADABLE


def test_remote_object_that_is_missing_is_unreadable():
    assert refusal("memory://nothing/here", stage=Stage.LIST).stage is Stage.LIST


@pytest.fixture
def without_privileges():
    """Root reads everything: look at files as nobody does."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(user)


def test_file_without_permission_is_unreadable(tmp_path, request):
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "x").chmod(0)
    request.getfixturevalue("without_privileges")
    assert refusal(tmp_path / "x").code is ErrorCode.UNREADABLE


def test_file_over_the_size_limit_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 11)
    assert refusal(tmp_path / "x", max_bytes=10).code is ErrorCode.LIMIT_EXCEEDED
    open_binary(str(tmp_path / "x"), max_bytes=11).close()
