import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.media.location import local_path
from pipeline.sources.content_id import content_id
from pipeline.sources.items import absolute_path, has_scheme

from .factories import list_with, make_bytes_file, uris_of

AWKWARD_NAMES = [
    b"line\nbreak.mp4",
    "\N{GRINNING FACE}.mp4".encode(),
    unicodedata.normalize("NFC", "é.mp4").encode(),
    unicodedata.normalize("NFD", "é.mp4").encode(),
    b"50%25#1.mp4",
    b"-rf.mp4",
    b"n" * 255,
    b"\xff\xfe latin \xe9.mp4",
    b"a b[1]*?.mp4",
    b"tab\tand\rreturn",
    b"c:\\d.mp4",
    b"s3:name",
]


def as_bytes(uri: str) -> bytes:
    path = local_path(uri)
    assert path is not None
    return os.fsencode(path)


@pytest.mark.parametrize("name", AWKWARD_NAMES, ids=repr)
def test_an_awkward_name_round_trips_through_folder_file_and_content(tmp_path: Path, name: bytes) -> None:
    path = make_bytes_file(tmp_path, name)
    in_folder = list_with(tmp_path)
    named = list_with(os.fsdecode(path))
    assert uris_of(in_folder) == uris_of(named)
    [uri] = uris_of(named)
    uri.encode("utf-8")
    assert as_bytes(uri) == path
    assert uris_of(list_with(uri)) == [uri]
    assert content_id(named.items[0]).startswith("b2-")


def test_composed_and_decomposed_spellings_are_two_sources(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        make_bytes_file(tmp_path, unicodedata.normalize(form, "é.mp4").encode())
    assert len(set(uris_of(list_with(tmp_path)))) == 2


@given(
    names=st.sets(
        st.binary(min_size=1, max_size=60).filter(
            lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..")
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_set_of_names_that_a_disk_takes_is_listed_once_each(names: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = {make_bytes_file(Path(folder), name) for name in names}
        listing = list_with(folder, hidden=True)
        assert {as_bytes(uri) for uri in uris_of(listing)} == paths
        assert uris_of(listing) == sorted(uris_of(listing))
        assert not listing.failures


@pytest.mark.parametrize("text", ["s3://b/k", "memory://a", "simplecache::s3://b/k", "file:///a", "HTTP://h/x"])
def test_a_url_is_told_from_a_path(text: str) -> None:
    assert has_scheme(text)


@pytest.mark.parametrize("text", ["/a://b", "a/b.mp4", "std::vector.mp4", "c:\\x", "./s3://b", "-://x"])
def test_a_path_is_told_from_a_url(text: str) -> None:
    assert not has_scheme(text)


def test_dots_behind_a_link_mean_the_folder_that_the_system_means(tmp_path: Path) -> None:
    target = tmp_path / "far" / "deep"
    target.mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)
    named = os.fsencode(tmp_path / "link") + b"/../x.mp4"
    assert absolute_path(named) == os.fsencode(os.path.realpath(tmp_path)) + b"/far/x.mp4"
