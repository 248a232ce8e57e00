"""Attacks that the other media tests do not carry: calls to the network, absurd headers, bombs beside the pixels."""

import socket
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import FileFormat, MediaType
from pipeline.media.image import read_image
from pipeline.media.location import open_binary
from pipeline.media.reading import VideoSource
from pipeline.media.sandbox import Sandbox
from pipeline.media.video_decord import read_frames_decord
from pipeline.media.video_pyav import IndexCache, read_frames
from tests.media.helpers import make_job, probe, read, rows_of
from tests.media.test_references import pointing_to, url_entry
from tests.media_factory import make_image

CALLS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
    "hls_map": '#EXTM3U\n#EXT-X-MAP:URI="{url}"\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n',
    "concat": "ffconcat version 1.0\nfile {url}\n",
    "concat_option": "ffconcat version 1.0\nfile {url}\noption safe 0\noption protocol_whitelist file,http,tcp\n",
    "dash": '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-live:2011"><BaseURL>{url}</BaseURL></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
    "postscript": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {url}) (r) file\nshowpage\n",
}


@pytest.fixture
def server():
    """A listening port that remembers whether anybody called."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def was_called(listener):
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def as_video(file, path):
    return VideoSource(
        file=file,
        uri=str(path),
        file_format=FileFormat(media_type=MediaType.VIDEO, name="mov"),
        limits=LimitsConfig(),
    )


READERS = {
    "sniffed": lambda path: probe(path),
    "sniffed by decord": lambda path: read(path, [0], backend="decord"),
    # Past the sniffing: the readers alone, told that this is what it is named as.
    "pyav": lambda path: with_file(path, lambda file: next(read_frames(as_video(file, path), [0], IndexCache()))),
    "decord": lambda path: with_file(path, lambda file: next(read_frames_decord(as_video(file, path), [0], 1))),
    "pillow": lambda path: with_file(path, lambda file: read_jpeg(file, path)),
}


def with_file(path, call):
    with open_binary(str(path)) as file:
        return call(file)


def read_jpeg(file, path):
    file_format = FileFormat(media_type=MediaType.IMAGE, name="JPEG")
    return read_image(file, str(path), file_format, ImagesConfig(), LimitsConfig())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", CALLS)
def test_a_script_under_an_innocent_name_calls_nobody(tmp_path, server, kind, reader):
    port = server.getsockname()[1]
    script = tmp_path / ("innocent.jpg" if reader == "pillow" else "innocent.mp4")
    script.write_text(CALLS[kind].format(url=f"http://127.0.0.1:{port}/latest/meta-data/", port=port))
    with pytest.raises(MediaError):
        READERS[reader](script)
    assert not was_called(server)
    assert [path.name for path in tmp_path.iterdir()] == [script.name]


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_data_reference_to_a_server_calls_nobody(made, tmp_path, server, backend):
    hollow = tmp_path / "innocent.mp4"
    url = f"http://127.0.0.1:{server.getsockname()[1]}/frames.mp4"
    hollow.write_bytes(pointing_to(url_entry(url), made("h264.mp4")))
    with pytest.raises(MediaError):
        read(hollow, [0, 5], backend=backend, num_source_frames=24)
    assert not was_called(server)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(tmp_path: Path, kind: bytes, data: bytes) -> bytes:
    """A small sound PNG with one more chunk behind its header."""
    whole = make_image(tmp_path / "sound.png").read_bytes()
    return whole[:33] + chunk(kind, data) + whole[33:]


def patched(content: bytes, where: bytes, behind: int, value: bytes) -> bytes:
    """The bytes with a number replaced, so many behind a name."""
    place = content.index(where) + behind
    return content[:place] + value + content[place + len(value) :]


def absurd_files(tmp_path: Path, mp4: bytes) -> dict[str, bytes]:
    """Headers that claim what no file holds."""
    zeros = zlib.compress(bytes(400_000_000 // 4), 9)
    png = make_image(tmp_path / "p.png").read_bytes()
    bmp = make_image(tmp_path / "b.bmp").read_bytes()
    gif = make_image(tmp_path / "g.gif").read_bytes()
    most = b"\x7f\xff\xff\xff"
    return {
        "text bomb.png": png_with(tmp_path, b"zTXt", b"Comment\0\0" + zeros),
        "profile bomb.png": png_with(tmp_path, b"iCCP", b"icc\0\0" + zeros),
        "claims 2^31 a side.png": png[:16] + chunk_header(most, most, png) + png[33:],
        "claims 2^31 a side.bmp": bmp[:18] + most[::-1] * 2 + bmp[26:],
        "claims 65535 a side.gif": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "claims 2^31 tall.ppm": b"P6 2147483647 2147483647 255\n" + bytes(300),
        "claims 2^31 samples.mp4": patched(mp4, b"stsz", 12, most),
        "claims 2^31 chunks.mp4": patched(mp4, b"stco", 8, most),
        "claims 2^31 times.mp4": patched(mp4, b"stts", 8, most),
        "claims a box of 2^63.mp4": patched(mp4, b"moov", -4, b"\0\0\0\1moov\x7f" + b"\xff" * 7),
        "endless sample.mp4": patched(mp4, b"stsz", 16, most),
    }


def chunk_header(width: bytes, height: bytes, png: bytes) -> bytes:
    """A PNG's header chunk, behind its name, with other sides and a checksum that holds."""
    data = width + height + png[24:29]
    return data + struct.pack(">I", zlib.crc32(b"IHDR" + data))


def test_absurd_headers_cost_little_memory_an_error_at_most_and_no_decoder(made, tmp_path):
    ends = {}
    limits = LimitsConfig(max_decoder_bytes=512 << 20)
    with Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), limits) as box:
        good = probe(made("h264.mp4"))
        rows_of(box, make_job(made("h264.mp4"), good, [0, 1]))
        decoder, before_kib = box.pid, peak_kib(box.pid)
        for name, content in absurd_files(tmp_path, made("h264.mp4").read_bytes()).items():
            path = tmp_path / name
            path.write_bytes(content)
            ends[name] = outcome(box, path)
        rows_of(box, make_job(made("h264.mp4"), good, [0, 1]))
        assert box.pid == decoder
        assert peak_kib(decoder) - before_kib < 64 << 10
    # FFmpeg 8 takes the chunks that are there; everything else is refused.
    assert {name for name, code in ends.items() if code is None} <= {"claims 2^31 chunks.mp4"}
    assert ErrorCode.DECODER_TIMEOUT not in ends.values()


def outcome(box, path):
    try:
        info = box.probe(str(path))
        rows_of(box, make_job(path, info, [0], 64, 64))
    except MediaError as error:
        return error.code
    return None


def peak_kib(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])


def test_an_animation_of_more_frames_than_allowed_is_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "many.gif"
    frames = [Image.new("L", (8, 8), number % 256) for number in range(60)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    limits = LimitsConfig(max_video_frames=50)
    with pytest.raises(MediaError, match=r"limits\.max_video_frames") as caught:
        probe(path, images=ImagesConfig(animated="video"), limits=limits)
    assert caught.value.code is ErrorCode.LIMIT_EXCEEDED
