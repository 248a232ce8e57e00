"""Tar shards: which members are sources, where they lie, and what a hostile or broken shard costs."""

import gzip
import io
import os
import tarfile
import tracemalloc
import unicodedata
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode
from pipeline.media.inside import inside_of, member_uri
from pipeline.media.location import open_binary
from pipeline.sources.content_id import content_id
from pipeline.sources.listing import Listing
from pipeline.sources.tar_index import TarError, read_members
from tests.containers import add_member, make_shard

from .factories import list_with, make_file, only_failure, uris_of

JPEG = b"\xff\xd8\xff" + bytes(700)


def contents_of(listing: Listing) -> list[bytes]:
    found = []
    for item in listing.items:
        with open_binary(item.uri, byte_range=item.byte_range) as file:
            found.append(file.read())
    return found


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_media_members_are_sources_in_the_shards_order_and_read_in_place(tmp_path: Path, tar_format: int) -> None:
    members = {f"d/{number}.jpg": JPEG + bytes([number]) * number for number in (3, 1, 2)}
    shard = make_shard(tmp_path / "s.tar", members, tar_format=tar_format)
    listing = list_with(shard)
    assert uris_of(listing) == [f"tar://{name}::{shard}" for name in members]
    assert contents_of(listing) == list(members.values())
    assert [item.num_bytes for item in listing.items] == [len(content) for content in members.values()]
    assert not listing.failures


def test_a_shard_counts_by_name_in_a_folder_by_a_glob_in_a_manifest_and_in_a_store(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    shard = make_shard(tmp_path / "s" / "a.tar", {"x.jpg": JPEG})
    manifest = make_file(tmp_path / "m.csv", b"uri\ns/a.tar\n")
    expected = [f"tar://x.jpg::{shard}"]
    for spec in (shard, tmp_path / "s", tmp_path / "s" / "*.tar", manifest):
        assert uris_of(list_with(spec)) == expected
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shards/a.tar", shard.read_bytes())
    for spec in ("memory://shards", "memory://shards/a.tar"):
        listing = list_with(spec)
        assert uris_of(listing) == ["tar://x.jpg::memory:///shards/a.tar"]
        assert contents_of(listing) == [JPEG]
    memory.rm("/shards", recursive=True)


def test_sidecars_are_left_out_and_a_medium_without_a_suffix_is_found_by_its_bytes(tmp_path: Path) -> None:
    members = {
        "0.json": b"{}",
        "0.txt": JPEG,
        "0.cls": b"7",
        "0.npy": b"\x93NUMPY",
        "0": JPEG,
        "0.odd": JPEG + b"1",
        "0.jpg": b"broken",
        "._0.jpg": JPEG,
        "./.hidden/1.jpg": JPEG,
        "./2.jpg": JPEG + b"2",
    }
    shard = make_shard(tmp_path / "s.tar", members)
    assert [inside_of(uri).name for uri in uris_of(list_with(shard))] == ["0", "0.odd", "0.jpg", "./2.jpg"]
    assert len(list_with(shard, hidden=True).items) == 6
    assert len(list_with(shard, members=("*.jpg",)).items) == 2


def test_a_medium_named_like_a_shard_is_a_medium(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a.tar", JPEG)
    assert uris_of(list_with(path)) == [str(path)]


AWKWARD_NAMES = [
    "line\nbreak.jpg",
    "\N{GRINNING FACE}.jpg",
    unicodedata.normalize("NFD", "é.jpg"),
    "50%25#1?2.jpg",
    "a::b://c.jpg",
    "n" * 300 + ".jpg",
    os.fsdecode(b"\xff\xfe.jpg"),
    "sp ace\ttab.jpg",
]


@pytest.mark.parametrize("name", AWKWARD_NAMES, ids=ascii)
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_awkward_member_name_round_trips(tmp_path: Path, name: str, tar_format: int) -> None:
    shard = make_shard(tmp_path / "odd ::name#.tar", {"first.jpg": JPEG + b"1", name: JPEG}, tar_format=tar_format)
    listing = list_with(shard)
    [_, item] = listing.items
    item.uri.encode("utf-8")
    assert contents_of(listing)[1] == JPEG
    assert list_with(item.uri).items == (item,)
    inside = inside_of(item.uri)
    assert (inside.container, inside.uri) == (str(shard), item.uri)


@given(name=st.binary(min_size=1, max_size=40), container=st.text(min_size=1, max_size=20), number=st.integers(1, 3))
def test_any_name_of_a_member_is_taken_apart_as_it_was_put_together(name: bytes, container: str, number: int) -> None:
    inside = inside_of(member_uri(container, name, number))
    assert inside is not None
    assert inside.container == container
    assert member_uri(container, name) != member_uri(container, name, 2)


def test_fsspec_reads_a_plain_member_by_the_same_uri(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "s.tar", {"d/x.jpg": JPEG})
    with fsspec.open(uris_of(list_with(shard))[0]) as file:
        assert file.read() == JPEG


def test_a_name_that_comes_twice_is_two_sources(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "s.tar", [("a.jpg", JPEG), ("a.jpg", JPEG + b"2")])
    listing = list_with(shard)
    assert uris_of(listing) == [f"tar://a.jpg::{shard}", f"tar://a.jpg?2::{shard}"]
    assert contents_of(listing) == [JPEG, JPEG + b"2"]


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg"])
def test_a_name_that_leaves_the_archive_is_an_error_row_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    listing = list_with(make_shard(tmp_path / "s.tar", {name: JPEG, "good.jpg": JPEG}))
    assert only_failure(listing).code is ErrorCode.OUTSIDE_ROOT
    assert contents_of(listing) == [JPEG]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (b"Q", "type b'Q'"),
    ],
)
def test_what_is_no_plain_file_is_an_error_row_and_the_others_are_read(tmp_path: Path, kind: bytes, word: str) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        add_member(shard, "folder", type=tarfile.DIRTYPE)
        add_member(shard, "bad.jpg", type=kind, linkname="/etc/passwd")
        add_member(shard, "good.jpg", JPEG)
    listing = list_with(tmp_path / "s.tar")
    failure = only_failure(listing)
    assert failure.code is ErrorCode.NOT_A_FILE
    assert word in failure.message
    assert contents_of(listing) == [JPEG]


def old_gnu_sparse(name: bytes) -> bytes:
    """A sparse member whose map goes on in a block of its own, with 512 bytes of data."""
    header = bytearray(512)
    header[: len(name)] = name
    header[124:136] = b"00000001000\0"
    header[156:157] = b"S"
    header[257:265] = b"ustar  \0"
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + bytes(512)


def test_sparse_members_of_both_kinds_are_error_rows_and_the_others_are_read(tmp_path: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as shard:
        add_member(shard, "pax.jpg", JPEG, pax_headers={"GNU.sparse.major": "1"})
        add_member(shard, "good.jpg", JPEG)
    path = make_file(tmp_path / "s.tar", old_gnu_sparse(b"gnu.jpg") + plain.getvalue())
    listing = list_with(path)
    assert [(failure.code, "sparse" in failure.message) for failure in listing.failures] == [
        (ErrorCode.NOT_A_FILE, True)
    ] * 2
    assert contents_of(listing) == [JPEG]


def test_a_shard_that_ends_in_a_member_keeps_the_ones_before_and_is_one_error_row(tmp_path: Path) -> None:
    whole = make_shard(tmp_path / "s.tar", {f"{number}.jpg": JPEG for number in range(4)}).read_bytes()
    for num_bytes, kept in ((1536 * 2 + 600, 2), (1536 * 3 + 100, 3), (1536 * 4, 4), (700, 0)):
        listing = list_with(make_file(tmp_path / "s.tar", whole[:num_bytes]))
        assert len(listing.items) == kept
        failure = only_failure(listing)
        assert (failure.uri, failure.code) == (str(tmp_path / "s.tar"), ErrorCode.TRUNCATED_MEDIA)
        assert f"{kept} media before that" in failure.message


def test_a_damaged_header_ends_the_shard_there_with_one_error_row(tmp_path: Path) -> None:
    data = bytearray(make_shard(tmp_path / "s.tar", {f"{number}.jpg": JPEG for number in range(4)}).read_bytes())
    data[1536 * 2 + 7] ^= 0xFF
    listing = list_with(make_file(tmp_path / "s.tar", bytes(data)))
    assert len(listing.items) == 2
    assert only_failure(listing).code is ErrorCode.CORRUPT_MEDIA


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.TAR.ZST", "s.txz", "s.tar"])
def test_a_compressed_shard_is_refused_by_its_name_or_its_bytes(tmp_path: Path, name: str) -> None:
    plain = make_shard(tmp_path / "plain", {"a.jpg": JPEG}).read_bytes()
    failure = only_failure(list_with(make_file(tmp_path / name, gzip.compress(plain))))
    assert failure.code is ErrorCode.UNSUPPORTED_MEDIA
    assert "decompress it" in failure.message


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", ErrorCode.CORRUPT_MEDIA),
        (b"neither tar nor medium" * 100, ErrorCode.CORRUPT_MEDIA),
        (bytes(10_240), ErrorCode.UNSUPPORTED_MEDIA),
        (bytes(512), ErrorCode.UNSUPPORTED_MEDIA),
    ],
    ids=["empty", "text", "no members", "one zero block"],
)
def test_a_shard_without_members_is_one_error_row(tmp_path: Path, content: bytes, code: ErrorCode) -> None:
    assert only_failure(list_with(make_file(tmp_path / "s.tar", content))).code is code


def header(name: bytes, kind: bytes, size: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [b"x", b"L", b"0"])
@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"no number\0\0\0"])
def test_a_member_that_claims_any_size_is_refused_before_memory_is_taken(kind: bytes, size: bytes) -> None:
    with pytest.raises(TarError):
        list(read_members(io.BytesIO(header(b"a.jpg", kind, size) + bytes(2048))))


def test_an_extended_header_of_megabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with path.open("wb") as file:
        file.write(header(b"a", b"x", b"%011o\0" % (1 << 31)))
        file.truncate(1 << 32)
    with path.open("rb") as file, pytest.raises(TarError, match="extended header of 2147483648 bytes"):
        list(read_members(file))


@given(data=st.binary(max_size=3000), at=st.integers(0, 4096))
def test_no_bytes_make_the_index_fail_otherwise_than_by_its_own_error(data: bytes, at: int) -> None:
    whole = bytearray(header(b"a", b"x", b"00000000036\0") + b"30 size=99999999999999999999\n\n".ljust(512, b"\0"))
    whole += header(b"a.jpg", b"0", b"00000001000\0") + bytes(512) + bytes(1024)
    whole[at : at + len(data)] = data
    try:
        for member in read_members(io.BytesIO(bytes(whole))):
            assert member.byte_range.stop <= len(whole)
    except TarError:
        pass


def test_a_member_has_the_content_id_of_an_equal_file(tmp_path: Path) -> None:
    [member] = list_with(make_shard(tmp_path / "s.tar", {"a.jpg": JPEG})).items
    [file] = list_with(make_file(tmp_path / "a.jpg", JPEG)).items
    assert content_id(member) == content_id(file)


def test_a_member_that_is_named_is_listed_whatever_the_settings_leave_out(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "s.tar", {".x.txt": JPEG, "y.jpg": JPEG})
    uri = f"tar://.x.txt::{shard}"
    assert uris_of(list_with(uri)) == [uri]
    rows = f'uri,end_seconds\n"tar://y.jpg::s.tar",2\n"tar://none::{shard}",\n"tar://a::{tmp_path}/none.tar",\n'
    listing = list_with(make_file(tmp_path / "m.csv", rows.encode()))
    assert [(item.uri, item.end_seconds) for item in listing.items] == [(f"tar://y.jpg::{shard}", 2.0)]
    assert [failure.code for failure in listing.failures] == [ErrorCode.UNREADABLE] * 2


@pytest.mark.parametrize("row", ["tar://a.jpg::../out/s.tar", "tar://a.jpg::simplecache::file:///etc/s.tar"])
def test_a_manifest_leads_no_further_through_a_shard_than_to_a_file(tmp_path: Path, row: str) -> None:
    make_shard(make_file(tmp_path / "out" / "s.tar"), {"a.jpg": JPEG})
    listing = list_with(make_file(tmp_path / "in" / "m.csv", f"uri\n{row}\n".encode()))
    assert only_failure(listing).code is ErrorCode.OUTSIDE_ROOT


def test_extended_headers_before_a_member_take_no_more_memory_than_one_of_them(tmp_path: Path) -> None:
    with (tmp_path / "s.tar").open("wb") as file:
        for number in range(16):
            records = b"".join(b"72 %062d=abcde\n" % (number << 32 | place) for place in range(14_000))
            header = tarfile.TarInfo("pax")
            header.type, header.size = tarfile.XHDTYPE, len(records)
            file.write(header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512))
        file.write(tarfile.TarInfo("x.jpg").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with (tmp_path / "s.tar").open("rb") as file:
        tracemalloc.start()
        members = list(read_members(file))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert [member.name for member in members] == [b"x.jpg"]
    assert peak_bytes < 5 << 20


@pytest.mark.parametrize(("limit", "most"), [("MAX_MEMBERS", 3), ("MAX_NAME_BYTES", 3 * len("0.jpg"))])
def test_an_archive_of_too_many_members_is_read_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(f"pipeline.sources.tar_index.{limit}", most)
    listing = list_with(make_shard(tmp_path / "s.tar", {f"{number}.jpg": JPEG for number in range(5)}))
    assert len(listing.items) == 3
    (failure,) = listing.failures
    assert failure.code is ErrorCode.CORRUPT_MEDIA
    assert "split the archive; 3 media before that are read" in failure.message
