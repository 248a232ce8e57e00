"""A container that says its frames lie in another file is not followed there, whoever reads it."""

import struct
from pathlib import Path

import pytest

from pipeline.errors import MediaError
from tests.media.helpers import read

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
_SELF_CONTAINED = struct.pack(">I4sI", 12, b"url ", 1)


def pointing_to(target: Path, source: Path) -> bytes:
    """An MP4 without frames of its own: its data reference names another file that has them at the same places."""
    data = bytearray(source.read_bytes())
    assert data.index(b"mdat") < data.index(b"moov"), "the table lies behind the frames, so no offset changes"
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    place = data.index(_SELF_CONTAINED)
    url = f"file://{target}".encode() + b"\0"
    entry = struct.pack(">I4sI", 12 + len(url), b"url ", 0) + url
    for name in _PARENTS:
        size_at = data.rindex(name, 0, place) - 4
        (size,) = struct.unpack_from(">I", data, size_at)
        struct.pack_into(">I", data, size_at, size + len(entry) - 12)
    data[place : place + 12] = entry
    return bytes(data)


@pytest.mark.parametrize("backend", ["pyav", "decord", "auto"])
def test_frames_of_another_file_are_not_read_through_a_data_reference(made, tmp_path, backend):
    hollow = tmp_path / "innocent.mp4"
    hollow.write_bytes(pointing_to(made("h264.mp4"), made("h264.mp4")))
    with pytest.raises(MediaError):
        read(hollow, [0, 5], backend=backend, num_source_frames=24)


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
    # A member that is named is read inside the archive: its name is a key, never a path.
    assert sandbox.probe(f"tar://../../escaped.mp4::file://{shard}").num_frames == 24
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped-patchwire.mp4").exists()
