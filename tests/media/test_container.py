"""Files are what their bytes say; nothing in them leads to another file; limits come first."""

import io
import subprocess
import sys

import av
import pytest

from pipeline.config import ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import MediaType, sniff
from pipeline.media.location import open_binary
from pipeline.media.probe import probe_media
from tests.media.helpers import probe, read
from tests.media_factory import decode_plainly, make_animation, make_audio, make_image, make_streams, make_video


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "JPEG"),
        ("a.png", "PNG"),
        ("a.webp", "WEBP"),
        ("a.bmp", "BMP"),
        ("a.tiff", "TIFF"),
        ("a.gif", "GIF"),
        ("a.avif", "AVIF"),
        ("a.jp2", "JPEG2000"),
        ("a.ppm", "PPM"),
    ],
)
def test_image_is_recognised_by_its_bytes_under_a_video_name(tmp_path, name, expected):
    path = make_image(tmp_path / name)
    found = sniff(path.rename(tmp_path / "x.mp4").read_bytes()[:4096])
    assert (found.media_type, found.name) == (MediaType.IMAGE, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h264.mp4", "mov"),
        ("h264.mkv", "matroska"),
        ("vp9.webm", "matroska"),
        ("h264.ts", "mpegts"),
        ("mpeg4.avi", "avi"),
        ("h264.flv", "flv"),
        ("fragmented.mp4", "mov"),
    ],
)
def test_video_is_recognised_by_its_bytes(made, name, expected):
    found = sniff(made(name).read_bytes()[:4096])
    assert (found.media_type, found.name) == (MediaType.VIDEO, expected)


def test_transport_stream_cut_in_mid_packet_is_recognised_and_read(made, tmp_path):
    cut = tmp_path / "cut.ts"
    cut.write_bytes(made("h264.ts").read_bytes()[100:])
    assert sniff(cut.read_bytes()[:4096]).name == "mpegts"
    assert len(read(cut, [0, 10], num_source_frames=probe(cut).num_frames)) == 2


SCRIPTS = {
    "concat": "ffconcat version 1.0\nfile {target}\n",
    "concat_url": "ffconcat version 1.0\nfile file://{target}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{target}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD><BaseURL>file://{target}</BaseURL></MPD>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{target}"/></svg>',
}


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("name", ["innocent.mp4", "innocent.jpg", "innocent.ts"])
def test_script_that_points_to_a_real_video_is_not_followed(made, tmp_path, kind, name):
    script = tmp_path / name
    script.write_text(SCRIPTS[kind].format(target=made("h264.mp4")))
    for attempt in (probe, lambda path: read(path, [0], backend="decord"), lambda path: read(path, [0])):
        with pytest.raises(MediaError) as caught:
            attempt(script)
        assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA


@pytest.mark.parametrize("data", [b"", b"plain text, nothing else", bytes(5000), b"<html>not found</html>"])
def test_other_bytes_are_unsupported_media_and_the_message_names_the_file(tmp_path, data):
    path = tmp_path / "what.mp4"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"what\.mp4: expected a video or an image, found") as caught:
        probe(path)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA


def test_audio_alone_is_no_video_stream(tmp_path):
    with pytest.raises(MediaError, match="found streams of type audio") as caught:
        probe(make_audio(tmp_path / "sound.m4a"))
    assert caught.value.code is ErrorCode.NO_VIDEO_STREAM


def test_container_without_its_index_is_corrupt_media(made, tmp_path):
    cut = tmp_path / "cut.mp4"
    data = made("h264.mp4").read_bytes()
    cut.write_bytes(data[: data.index(b"moov") - 8])
    with pytest.raises(MediaError) as caught:
        probe(cut)
    assert caught.value.code is ErrorCode.CORRUPT_MEDIA


@pytest.mark.parametrize(
    ("limit", "value"), [("max_video_pixels", 6_143), ("max_video_frames", 23), ("max_video_seconds", 0.5)]
)
@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm"])
def test_video_over_a_limit_is_refused_by_that_limits_name(made, name, limit, value):
    with pytest.raises(MediaError, match=f"limits.{limit}") as caught:
        probe(made(name), limits=LimitsConfig.model_validate({limit: value}))
    assert caught.value.code is ErrorCode.LIMIT_EXCEEDED


def test_bomb_is_refused_without_its_memory(tmp_path):
    bomb = tmp_path / "bomb.mp4"
    with av.open(str(bomb), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width = stream.height = 6400
        output.mux(stream.encode(av.VideoFrame(6400, 6400, "yuv420p")))
        output.mux(stream.encode(None))
    code = (
        "import sys; from tests.media.helpers import probe\n"
        "import resource; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: probe(sys.argv[1])\n"
        "except Exception as error: print(error.code)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bomb)], capture_output=True, text=True, check=True)
    error_code, grown_kib = done.stdout.split()
    one_frame_kib = 6400 * 6400 * 3 // 2 // 1024
    assert error_code == "limit_exceeded"
    assert int(grown_kib) < one_frame_kib / 2


class CountingFile(io.BufferedReader):
    """Counts the bytes that are asked for."""

    num_read = 0

    def read(self, size=-1):
        data = super().read(size)
        self.num_read += len(data)
        return data


def test_probe_of_an_mp4_reads_a_small_part_of_it(tmp_path):
    path = make_video(
        tmp_path / "big.mp4", num_frames=60, width=640, height=480, gop=30, options={"qp": "4", "preset": "ultrafast"}
    )
    assert path.stat().st_size > 5_000_000
    with CountingFile(io.FileIO(path)) as file:
        info = probe_media(file, str(path), ImagesConfig(), LimitsConfig())
    assert info.num_frames == 60
    assert file.num_read < path.stat().st_size / 10


def test_displayed_size_and_rate_are_reported(made):
    turned, varying = probe(made("quarter_turn.mp4")), probe(made("variable_rate.mp4"), with_times=True)
    assert (turned.width, turned.height, turned.fps, turned.codec) == (64, 96, 25.0, "h264")
    assert turned.frame_times_seconds is None
    ticks = [n * n // 2 + n for n in range(20)]
    assert varying.frame_times_seconds == pytest.approx([tick / 25 for tick in ticks], abs=1e-3)
    assert 2 < varying.fps < 4


def test_stream_that_starts_late_is_timed_from_its_first_frame(tmp_path):
    info = probe(make_video(tmp_path / "late.mkv", ticks=range(100, 124)), with_times=True)
    assert info.frame_times_seconds[:2] == pytest.approx((0.0, 0.04), abs=1e-3)


def test_times_are_the_same_number_as_frames_for_hidden_frames(made):
    info = probe(made("hidden_vp9.mp4"), with_times=True)
    assert len(info.frame_times_seconds) == info.num_frames == len(decode_plainly(made("hidden_vp9.mp4")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("many_gops.mp4", tuple(range(0, 80, 10))),
        ("b_frames.mp4", (0,)),
        ("open_gop.mp4", (0,)),
        ("hevc.mp4", (0, 12)),  # x265 leaves the later groups open
        ("recovery_points.ts", (0,)),
        ("h264.mkv", (0, 12, 24, 36)),
        ("hidden_vp8.webm", (0, 11, 22)),
    ],
)
def test_keyframes_are_the_frames_from_which_decoding_may_begin(made, name, expected):
    assert probe(made(name), with_keyframes=True).keyframes == expected
    assert probe(made(name)).keyframes is None


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animation_is_a_video_where_that_is_asked(tmp_path, name):
    path = make_animation(tmp_path / name)
    still, video = probe(path), probe(path, images=ImagesConfig(animated="video"), with_times=True)
    assert (still.media_type, still.num_frames, still.fps) == (MediaType.IMAGE, 1, None)
    assert (video.media_type, video.num_frames, video.fps) == (MediaType.VIDEO, 5, pytest.approx(10))
    assert video.frame_times_seconds == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_file_object_is_enough_to_probe(made):
    with open_binary(made("h264.mp4").as_uri()) as file:
        assert probe_media(file, "x", ImagesConfig(), LimitsConfig()).num_frames == 24


@pytest.mark.parametrize(
    ("kinds", "size"),
    [
        (("art", "video"), (64, 48)),
        (("audio", "art", "video"), (64, 48)),
        (("audio", "video"), (64, 48)),
        (("small", "video", "audio"), (32, 32)),
    ],
    ids=["cover art first", "cover art and sound", "sound first", "two videos"],
)
def test_of_several_streams_the_video_is_read_that_is_meant(tmp_path, kinds, size):
    info = probe(path := make_streams(tmp_path / "a.mp4", *kinds))
    assert (info.width, info.height, info.num_frames) == (*size, 12)
    frames = read(path, [0, 5, 11], num_source_frames=12)
    alone = read(make_streams(tmp_path / "alone.mp4", "small" if size == (32, 32) else "video"), [0, 5, 11])
    assert all((frame == expected).all() for frame, expected in zip(frames, alone, strict=True))


def test_cover_art_is_no_video(tmp_path):
    with pytest.raises(MediaError) as raised:
        probe(make_streams(tmp_path / "song.mp4", "audio", "art"))
    assert raised.value.code is ErrorCode.NO_VIDEO_STREAM
