"""What strangers and full disks do to a run from end to end; the parts have their own tests."""

import os
import re
import struct
import subprocess
import unicodedata
import zlib
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from pipeline.sources.items import absolute_path
from tests.command import patchwire
from tests.faults.processes import SETTINGS, embed_here, num_fragments
from tests.media_factory import make_image

NAMES = (
    b"line\nbreak.png",
    "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}.png".encode(),
    unicodedata.normalize("NFC", "é.png").encode(),
    unicodedata.normalize("NFD", "é.png").encode(),
    b"100%#?&*[x].png",
    b"-rf.png",
    b"a b'\".png",
    b"x" * 251 + b".png",
    b"not\xffutf8\xfe.png",
    b"file:%2e%2e%2fetc.png",
)


def table_of(out: Path, kind: str = "embeddings") -> pa.Table:
    return ds.dataset(out / kind, format="parquet").to_table().sort_by("source_uri")


def test_any_name_comes_back_exactly_from_the_table(tmp_path: Path) -> None:
    from pipeline.media.location import local_path

    media = tmp_path / "media"
    media.mkdir()
    image = make_image(tmp_path / "i.png").read_bytes()
    for number, name in enumerate(NAMES):
        Path(os.fsdecode(os.fsencode(media) + b"/" + name)).write_bytes(image + bytes(number))
    os.mkfifo(media / "pipe.png")
    summary = embed_here(media, tmp_path / "OUT")
    assert (summary.num_new_rows, summary.num_errors) == (len(NAMES), 1)
    paths = {os.fsencode(local_path(uri) or b"") for uri in table_of(tmp_path / "OUT")["source_uri"].to_pylist()}
    assert {path.rpartition(b"/")[2] for path in paths} == set(NAMES)
    assert all(absolute_path(path) == path and Path(os.fsdecode(path)).is_file() for path in paths)
    assert table_of(tmp_path / "OUT", "errors")["code"].to_pylist() == ["not_a_file"]
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok
    assert embed_here(media, tmp_path / "OUT").num_requests == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    media, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("clean") / "OUT"
    for number in range(40):
        make_image(media / f"{number:02}.png", seed=number)
    embed_here(media, out)
    return media, out


@pytest.mark.parametrize("step", [10, 1])
def test_corrupt_files_among_good_ones_are_error_rows_and_change_no_vector(
    images: tuple[Path, Path], tmp_path: Path, step: int
) -> None:
    clean, expected = images
    media = tmp_path / "media"
    media.mkdir()
    for number, path in enumerate(sorted(clean.iterdir())):
        content = path.read_bytes()
        damaged = (b"\0" * 100, content[: len(content) // 2], b"")[number // step % 3]
        (media / path.name).write_bytes(content if number % step else damaged)
    summary = embed_here(media, tmp_path / "OUT")
    num_bad = 40 // step
    assert (summary.num_new_rows, summary.num_errors, summary.exit_code) == (40 - num_bad, num_bad, 3)
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok
    vectors = {Path(row["source_uri"]).name: row["embedding"] for row in table_of(expected).to_pylist()}
    for row in table_of(tmp_path / "OUT").to_pylist() if step > 1 else ():
        assert row["embedding"] == vectors[Path(row["source_uri"]).name]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one line of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    line = zlib.compress(bytes(width * 3 + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", line) + chunk(b"IEND", b"")


def make_8k_video(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
        stream.codec_context.thread_count = 1
        output.mux(stream.encode(av.VideoFrame(7680, 4320, "yuv420p")))
        output.mux(stream.encode(None))


def test_a_200_megapixel_image_and_an_8k_video_are_refused_with_little_memory(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "large.png").write_bytes(png_header(20_000, 10_000))
    make_8k_video(media / "8k.mp4")
    make_image(media / "good.png")
    # Less than one of the two pictures would take, 600 MB and 50 MB. FFmpeg has threads of its own, whose stacks and
    # heaps may use that up before it has said how large the video's picture is: then the other limit is named.
    summary = embed_here(media, tmp_path / "OUT", limits={"max_decoder_bytes": 24 << 20})
    assert (summary.num_new_rows, summary.num_errors) == (1, 2)
    rows = table_of(tmp_path / "OUT", "errors").to_pylist()
    assert {row["code"] for row in rows} == {"limit_exceeded"}
    assert re.search(r"limits\.max_(video_pixels|decoder_bytes)", rows[0]["message"])
    assert "limits.max_image_pixels" in rows[1]["message"]


def test_a_full_disk_ends_the_run_in_words_and_it_goes_on_once_there_is_room(
    videos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root; tests/sink holds the rule by a file size limit")
    try:
        out = disk / "OUT"
        arguments = ("embed", videos, "--out", out, *SETTINGS, "--runner", "local")
        pages = sum(-(-path.stat().st_size // 4096) for path in undisturbed.rglob("*.*"))
        (disk / "ballast").write_bytes(bytes((1 << 20) - pages // 2 * 4096))
        full = patchwire(*arguments)
        assert full.returncode == 1
        assert "no space left" in full.stderr
        assert "what is finished is kept" in full.stderr
        assert "Traceback" not in full.stderr
        before = num_fragments(out)
        assert before > 0
        (disk / "ballast").unlink()
        done = embed_here(videos, out)
        assert (done.num_clips_done_before, done.exit_code) == (before, 0)
        assert verify_output(OutputFolder(str(out))).ok
    finally:
        subprocess.run(["umount", disk], check=True)
