"""A container that says its frames lie in another file is not followed there, whoever reads it."""

import struct
from pathlib import Path

import av
import pytest

from pipeline.errors import MediaError
from tests.media.helpers import read

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
_SELF_CONTAINED = struct.pack(">I4sI", 12, b"url ", 1)


def url_entry(target: str) -> bytes:
    """A reference by URL, without the flag that says the data are in this file."""
    url = target.encode() + b"\0"
    return struct.pack(">I4sI", 12 + len(url), b"url ", 0) + url


def alias_entry(target: str, levels: int) -> bytes:
    """A reference by a Macintosh alias record; FFmpeg can follow its absolute path, or with `levels` a relative one."""
    name, path = target.rpartition("/")[2].encode()[:63], b"V" + target.encode()
    path += b"\0" * (len(path) % 2)
    record = bytes(10) + b"\1V" + bytes(26) + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    record += struct.pack(">HH", levels, levels) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + b"\xff\xff\0\0"
    return struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record


def pointing_to(entry: bytes, source: Path) -> bytes:
    """An MP4 without frames of its own: its data reference leads to another file that has them at the same places."""
    data = bytearray(source.read_bytes())
    assert data.index(b"mdat") < data.index(b"moov"), "the table lies behind the frames, so no offset changes"
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    place = data.index(_SELF_CONTAINED)
    for name in _PARENTS:
        size_at = data.rindex(name, 0, place) - 4
        (size,) = struct.unpack_from(">I", data, size_at)
        struct.pack_into(">I", data, size_at, size + len(entry) - 12)
    data[place : place + 12] = entry
    return bytes(data)


@pytest.fixture(params=["url", "relative url", "alias", "relative alias"])
def hollow(request, made, tmp_path):
    """A file whose frames are said to lie in another one, at an absolute path or beside it."""
    target = made("h264.mp4")
    (tmp_path / "beside.mp4").write_bytes(target.read_bytes())
    entries = {
        "url": url_entry(f"file://{target}"),
        "relative url": url_entry("beside.mp4"),
        "alias": alias_entry(str(target), levels=0),
        "relative alias": alias_entry(str(tmp_path / "beside.mp4"), levels=1),
    }
    path = tmp_path / "innocent.mp4"
    path.write_bytes(pointing_to(entries[request.param], target))
    return path


@pytest.mark.parametrize("backend", ["pyav", "decord", "auto"])
def test_frames_of_another_file_are_not_read_through_a_data_reference(hollow, backend):
    with pytest.raises(MediaError):
        read(hollow, [0, 5], backend=backend, num_source_frames=24)


@pytest.mark.parametrize("hollow", ["alias", "relative alias"], indirect=True)
def test_the_aliases_lead_there_for_a_reader_that_follows_them(hollow):
    with av.open(str(hollow), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24


def test_a_tar_shard_is_not_unpacked_and_its_members_go_nowhere(made, tmp_path, sandbox):
    import io
    import tarfile

    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    shard = folder / "shard.tar"
    content = made("h264.mp4").read_bytes()
    with tarfile.open(shard, "w") as archive:
        for name in ("../../escaped.mp4", "/tmp/escaped-patchwire.mp4", "plain.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MediaError, match="unsupported_media"):
        sandbox.probe(str(shard))
    # A member's name is a key, never a path: without its place in the shard there is nothing to open.
    with pytest.raises(MediaError, match="told where in the shard"):
        sandbox.probe(f"tar://../../escaped.mp4::file://{shard}")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped-patchwire.mp4").exists()
