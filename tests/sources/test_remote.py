import asyncio
import functools
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from pipeline.errors import ErrorCode, MediaError, UsageError
from pipeline.media.addresses import _check_redirect
from pipeline.media.byte_range import ByteRange
from pipeline.media.location import open_binary
from pipeline.sources.content_id import content_id
from tests.containers import make_shard

from .factories import list_with, make_file, only_failure, uris_of


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in ("/bucket/a.mp4", "/bucket/s/b c#%20.mp4", "/bucket/.hidden/x.mp4", "/bucket/notes.txt"):
        memory.pipe_file(name, name.encode())
    yield memory
    memory.store.clear()


def test_an_object_a_folder_and_a_glob_are_listed_by_their_urls(store: fsspec.AbstractFileSystem) -> None:
    everything = ["memory:///bucket/a.mp4", "memory:///bucket/notes.txt", "memory:///bucket/s/b c#%20.mp4"]
    assert uris_of(list_with("memory://bucket/a.mp4")) == everything[:1]
    assert uris_of(list_with("memory://bucket")) == everything
    assert uris_of(list_with("memory://bucket/**/*.mp4")) == [everything[0], everything[2]]
    assert uris_of(list_with("memory://bucket", exclude=("*.txt",))) == [everything[0], everything[2]]


def test_a_listed_url_lists_as_itself_with_the_same_facts(store: fsspec.AbstractFileSystem) -> None:
    for item in list_with("memory://bucket", hidden=True).items:
        assert list_with(item.uri).items == (item,)
        assert item.modified_ns > 0
        assert content_id(item).startswith("b2-")


def test_a_remote_manifest_names_objects_beside_it(store: fsspec.AbstractFileSystem) -> None:
    rows = b"uri,end_seconds\na.mp4,2\ns/../a.mp4,2\nmemory://bucket/notes.txt,\nmissing.mp4,\n"
    store.pipe_file("/bucket/m.csv", rows)
    listing = list_with("memory://bucket/m.csv")
    assert uris_of(listing) == ["memory:///bucket/a.mp4", "memory:///bucket/notes.txt"]
    assert listing.items[0].end_seconds == 2.0
    assert only_failure(listing).code is ErrorCode.UNREADABLE


def test_a_manifest_names_media_inside_files_of_a_store(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    store.pipe_file("/bucket/s.tar", make_shard(tmp_path / "s.tar", {"a.jpg": b"x", "b.jpg": b"y"}).read_bytes())
    rows = b"uri,end_seconds\ntar://b.jpg::s.tar,2\ntar://a.jpg::memory://bucket/s.tar,\ntar://a.jpg::../s.tar,\n"
    store.pipe_file("/bucket/m.csv", rows)
    listing = list_with("memory://bucket/m.csv")
    names = [f"tar://{name}::memory:///bucket/s.tar" for name in ("a.jpg", "b.jpg")]
    assert [(item.uri, item.end_seconds) for item in listing.items] == list(zip(names, (None, 2.0), strict=True))
    assert only_failure(listing).code is ErrorCode.OUTSIDE_ROOT
    local = make_file(tmp_path / "m.csv", f"uri\n{names[0]}\n{tmp_path}/s.tar\n".encode())
    assert uris_of(list_with(local)) == [f"tar://{name}::{tmp_path}/s.tar" for name in ("a.jpg", "b.jpg")] + names[:1]


@pytest.mark.parametrize("row", ["../other/x.mp4", "/etc/passwd", "file:///etc/passwd"])
def test_a_remote_manifest_leaves_neither_its_folder_nor_the_network(
    store: fsspec.AbstractFileSystem, row: str
) -> None:
    store.pipe_file("/bucket/m.csv", f"uri\n{row}\n".encode())
    assert only_failure(list_with("memory://bucket/m.csv")).code is ErrorCode.OUTSIDE_ROOT


def test_a_local_manifest_may_name_objects(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    path = make_file(tmp_path / "m.jsonl", b'{"uri": "memory://bucket/a.mp4"}\n{"uri": "memory://bucket/s"}\n')
    listing = list_with(path)
    assert uris_of(listing) == ["memory:///bucket/a.mp4"]
    assert only_failure(listing).code is ErrorCode.NOT_A_FILE


@pytest.mark.parametrize(
    "url",
    [
        "memory://bucket/none.mp4",
        "memory://none/*.mp4",
        "memory://bucket/**.mp4",
        "nosuch://x/y",
        "memory://bucket/none.csv",
    ],
)
def test_a_url_that_matches_nothing_or_cannot_be_served_is_wrong_usage(
    store: fsspec.AbstractFileSystem, url: str
) -> None:
    with pytest.raises(UsageError):
        list_with(url)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.7:80",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "2852039166",
        "0xa9fea9fe",
        "user:pass@169.254.169.254",
        "metadata.google.internal.",
    ],
)
def test_a_metadata_address_is_refused_whoever_asks(tmp_path: Path, host: str) -> None:
    for spec in (f"http://{host}/latest", f"simplecache::HTTPS://{host}/x"):
        with pytest.raises(UsageError, match=r"metadata|link-local"):
            list_with(spec, follow_outside=True)
    manifest = make_file(tmp_path / "m.csv", f"uri\nhttp://{host}/latest\n".encode())
    with pytest.raises(UsageError, match="metadata"):
        list_with(manifest)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]", "0.0.0.0", "2130706433"])
def test_this_machines_own_servers_are_refused_unless_asked_for(host: str) -> None:
    with pytest.raises(UsageError, match="follow_outside"):
        list_with(f"http://{host}:9/x.mp4")


def test_a_server_that_does_not_answer_is_an_error_row(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        listing = list_with(f"http://127.0.0.1:{port}/x.mp4", follow_outside=True)
    assert only_failure(listing).code is ErrorCode.UNREADABLE


@pytest.fixture
def web_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and a redirect to wherever `/to/` says."""

    def do_GET(self) -> None:
        if not self.path.startswith("/to/"):
            super().do_GET()
            return
        self.send_response(302)
        self.send_header("Location", self.path.removeprefix("/to/"))
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://metadata.google.internal/x", "//169.254.169.254/x"]
)
def test_a_redirect_to_a_metadata_address_is_an_error_row_and_is_not_followed(
    web_folder: tuple[Path, str], target: str
) -> None:
    _, address = web_folder
    url = f"{address}/to/{target}"
    failure = only_failure(list_with(url, follow_outside=True))
    assert failure.code is ErrorCode.UNREADABLE
    assert "redirects to" in failure.message
    with pytest.raises(MediaError, match="redirects to"):
        open_binary(url).read()
    with pytest.raises(MediaError, match="redirects to"):
        open_binary(f"tar://x::{url}", byte_range=ByteRange(start=0, num_bytes=9))


def test_other_redirects_are_followed(web_folder: tuple[Path, str]) -> None:
    folder, address = web_folder
    make_file(folder / "a.jpg", b"\xff\xd8\xff there")
    with open_binary(f"{address}/to//a.jpg") as file:
        assert file.read() == b"\xff\xd8\xff there"


def test_a_redirect_from_elsewhere_to_this_machine_is_not_followed() -> None:
    headers = {"Location": "http://127.0.0.1:8265/api"}
    redirect = SimpleNamespace(url="http://192.0.2.7/x.mp4", response=SimpleNamespace(headers=headers))
    with pytest.raises(PermissionError, match="this machine"):
        asyncio.run(_check_redirect(None, None, redirect))


def test_members_of_a_shard_on_a_server_that_sends_whole_files_are_read(web_folder: tuple[Path, str]) -> None:
    folder, address = web_folder
    members = {f"{number}.jpg": b"\xff\xd8\xff" + bytes([number]) * 5000 for number in range(3)}
    make_shard(folder / "s.tar", members)
    listing = list_with(f"{address}/s.tar", follow_outside=True)
    assert uris_of(listing) == [f"tar://{name}::{address}/s.tar" for name in members]
    for item, content in zip(listing.items, members.values(), strict=True):
        with open_binary(item.uri, byte_range=item.byte_range) as file:
            assert file.read() == content


def test_a_file_on_a_server_has_its_size_and_the_id_of_its_bytes(web_folder: tuple[Path, str]) -> None:
    folder, address = web_folder
    path = make_file(folder / "a b.mp4", b"x" * 10_000)
    [item] = list_with(f"{address}/a%20b.mp4?x=1", follow_outside=True).items
    assert (item.uri, item.num_bytes) == (f"{address}/a%20b.mp4?x=1", 10_000)
    assert content_id(item) == content_id(list_with(path).items[0])
    with pytest.raises(UsageError, match="no such"):
        list_with(f"{address}/missing.mp4", follow_outside=True)
