"""Clips that begin at a known start are those that reading from the beginning gives, and nothing before it is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import MediaError
from pipeline.media import probe as probing
from pipeline.media import reading
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import ClipJob
from pipeline.media.sandbox import Sandbox
from pipeline.plan.clips import safe_start_before
from tests.media.conftest import VIDEOS
from tests.media.helpers import SAMPLE_VIDEOS, make_job, probe, read, read_in_a_row, rows_of
from tests.media.test_reading import assert_same, cut, read_alone
from tests.media_factory import decode_plainly, make_video, remux

_B_FRAMES = {"x264-params": "bframes=3:b-pyramid=strict:ref=4:scenecut=0"}
_FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}
_FAST_AV1 = {"preset": "12", "svtav1-params": "lp=1"}
MATROSKA = {
    "b_frames.mkv": {"num_frames": 80, "gop": 20, "options": _B_FRAMES},
    "long_gop.mkv": {"num_frames": 120, "gop": 60, "options": _B_FRAMES},
    "open_gop.mkv": {"num_frames": 60, "options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "variable_rate.mkv": {"num_frames": 60, "gop": 10, "ticks": [n * n // 2 + n for n in range(60)]},
    "no_cues.mkv": {"num_frames": 80, "gop": 10, "options": _B_FRAMES, "is_seekable": False},
    "cues_in_front.mkv": {"num_frames": 80, "gop": 10, "muxer_options": {"reserve_index_space": "4000"}},
    "vp9.webm": {"codec": "libvpx-vp9", "num_frames": 60, "gop": 10, "options": _FAST_VP9},
    "no_duration.webm": {
        "codec": "libvpx-vp9",
        "num_frames": 60,
        "gop": 10,
        "options": _FAST_VP9,
        "is_seekable": False,
    },
    "hidden_vp9.mkv": {
        "codec": "libvpx-vp9",
        "num_frames": 12,
        "gop": 1,
        "options": _FAST_VP9,
        "hidden": (6,),
        "muxer_options": {"fflags": "-autobsf"},
    },
    "av1.mkv": {"codec": "libsvtav1", "num_frames": 40, "gop": 10, "options": _FAST_AV1},
}
_CLUSTER, _SIMPLE_BLOCK, _BLOCK_GROUP = 0x1F43B675, 0xA3, 0xA0


@pytest.fixture(autouse=True)
def all_starts(monkeypatch):
    monkeypatch.setattr(probing, "_FRAMES_BETWEEN_STARTS", 1)


@pytest.fixture(scope="module")
def matroska(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matroska")
    return lambda name: folder / name if (folder / name).exists() else make_video(folder / name, **MATROSKA[name])


@pytest.fixture
def origins_read(monkeypatch):
    """Where each index was begun to be read: a number, or None for the file's beginning."""
    begun = []
    original = reading.Reading.read_index

    def noting(self, first_frame, last_frame, origin):
        begun.append(None if origin is None else origin.number)
        return original(self, first_frame, last_frame, origin)

    monkeypatch.setattr(reading.Reading, "read_index", noting)
    return begun


def origins_of(info, clips):
    return [safe_start_before(info, clip[0]) for clip in clips]


def assert_known_starts_change_nothing(path):
    info = probe(path)
    for length, step in ((7, 3), (16, 5)):
        clips = cut(info.num_frames, length, step)
        origins = origins_of(info, clips)
        alone = [read_alone(path, clip) for clip in clips]
        assert_same([read_alone(path, clip, origin) for clip, origin in zip(clips, origins, strict=True)], alone)
        assert_same(read_in_a_row(path, clips, origins=origins), alone)
        assert_same(read_in_a_row(path, clips[1::2], origins=origins[1::2]), alone[1::2])


@pytest.mark.parametrize("name", sorted(MATROSKA.keys() - {"hidden_vp9.mkv", "open_gop.mkv"}))
def test_every_start_gives_the_frames_of_a_sequential_decode(matroska, origins_read, name):
    path = matroska(name)
    expected, info = decode_plainly(path), probe(path)
    assert info.safe_starts
    for start in info.safe_starts:
        wanted = sorted({start.number, min(start.number + 9, len(expected) - 1), len(expected) - 1})
        assert_same([read(path, wanted, origin=start)], [[expected[number] for number in wanted]])
    assert None not in origins_read
    assert_known_starts_change_nothing(path)


@pytest.mark.parametrize("name", VIDEOS)
def test_known_starts_change_no_generated_video(made, name):
    assert_known_starts_change_nothing(made(name))


@pytest.mark.parametrize("name", sorted(set(SAMPLE_VIDEOS) - {"bbb_30s_vp8.webm", "hidden_frames_vp9.mp4"}))
def test_known_starts_change_no_sample_video_nor_what_it_is_in_matroska(sample_media, tmp_path, name):
    path = sample_media / "video" / name
    assert_sample_is_unchanged(path)
    if path.suffix == ".mp4":
        assert_sample_is_unchanged(remux(path, tmp_path / "sample.mkv", repeats=2))


def assert_sample_is_unchanged(path):
    info = probe(path)
    clips = [clip for clip in cut(info.num_frames, 25, 12)[-3:] if clip]
    expected = [read_alone(path, clip) for clip in clips]
    assert_same(read_in_a_row(path, clips, origins=origins_of(info, clips)), expected)


def test_hidden_frame_ends_the_starts_whose_packets_and_frames_have_one_number(matroska):
    assert [start.number for start in probe(matroska("hidden_vp9.mkv")).safe_starts] == [1, 2, 3, 4, 5]
    assert_known_starts_change_nothing(matroska("hidden_vp9.mkv"))


@pytest.mark.parametrize("name", ["b_frames.mkv", "no_cues.mkv", "vp9.webm", "av1.mkv"])
def test_keyframes_alone_are_those_that_reading_from_the_beginning_gives(matroska, name):
    path = matroska(name)
    info = probe(path, with_keyframes=True)
    clips = [[number] * 2 for number in info.keyframes] + [list(info.keyframes[1:])]
    expected = [read_alone(path, clip) for clip in clips]
    assert_same([read(path, clip, origin=safe_start_before(info, clip[0])) for clip in clips], expected)
    assert_same(read_in_a_row(path, clips, origins=origins_of(info, clips)), expected)


def test_open_groups_of_pictures_are_no_starts(matroska):
    assert probe(matroska("open_gop.mkv")).safe_starts == ()
    assert_known_starts_change_nothing(matroska("open_gop.mkv"))


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "h264.flv", "mpeg4.avi", "vp8.webm", "mpeg2.ts"])
def test_other_containers_and_codecs_are_read_from_their_beginning(made, name):
    assert probe(made(name)).safe_starts == ()


def test_sound_between_the_packets_changes_nothing(made, tmp_path, origins_read):
    path = remux(made("many_gops.mp4"), tmp_path / "sound.mkv", with_sound=True)
    assert len(probe(path).safe_starts) == 7
    assert_known_starts_change_nothing(path)
    assert None in origins_read  # of the clips that are read without a start
    origins_read.clear()
    read(path, [75], origin=probe(path).safe_starts[-1])
    assert origins_read == [70]


def test_keyframes_inside_a_cluster_are_starts_too(made, tmp_path, origins_read):
    path = one_cluster(remux(made("many_gops.mp4"), tmp_path / "many.mkv", is_seekable=False), tmp_path / "one.mkv")
    starts = probe(path).safe_starts
    assert [start.number for start in starts] == list(range(10, 80, 10))
    assert len({start.cluster_position for start in starts}) == 1
    expected = decode_plainly(made("many_gops.mp4"))
    for start in starts:
        assert_same([read(path, [start.number + 5], origin=start)], [[expected[start.number + 5]]])
    assert origins_read == [start.number for start in starts]
    assert_known_starts_change_nothing(path)


def one_cluster(source, target):
    """Put the blocks of all clusters of a file that was written into a pipe into one of unknown length."""
    data = source.read_bytes()
    position = data.index(_CLUSTER.to_bytes(4, "big"))
    out = bytearray(data[:position] + _CLUSTER.to_bytes(4, "big") + b"\x01" + b"\xff" * 7 + b"\xe7\x81\x00")
    cluster_time = 0
    while position < len(data):
        element, size, start = _element(data, position)
        if element == _CLUSTER:
            position = start
            continue
        body = bytearray(data[start : start + size])
        if element == 0xE7:
            cluster_time = int.from_bytes(body, "big")
        elif element == _SIMPLE_BLOCK:
            out += _with_time(data[position:start], body, cluster_time)
        elif element == _BLOCK_GROUP:
            inner, inner_size, inner_start = _element(body, 0)
            assert inner == 0xA1
            block = _with_time(b"", body[inner_start : inner_start + inner_size], cluster_time)
            out += data[position:start] + body[:inner_start] + block + body[inner_start + inner_size :]
        position = start + size
    target.write_bytes(out)
    return target


def _element(data, position):
    """Id, length and where the content begins of an EBML element."""
    id_bytes = 9 - data[position].bit_length()
    at = position + id_bytes
    size_bytes = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + size_bytes], "big") & ((1 << 7 * size_bytes) - 1)
    return int.from_bytes(data[position:at], "big"), size, at + size_bytes


def _with_time(head, block, cluster_time):
    block[1:3] = (int.from_bytes(block[1:3], "big", signed=True) + cluster_time).to_bytes(2, "big", signed=True)
    return head + block


@pytest.mark.parametrize(
    "change",
    [
        {"pts": 1},
        {"pts": 10**9},
        {"cluster_position": 25_000},
        {"cluster_position": 10**9},
        {"position": 7},
        {"num_bytes": 1},
    ],
)
def test_start_that_is_not_where_it_was_leads_to_the_files_beginning(matroska, origins_read, change):
    path = matroska("b_frames.mkv")
    start = probe(path).safe_starts[0]
    assert start.number == 20
    assert_same([read(path, [35], origin=replace(start, **change))], [[decode_plainly(path)[35]]])
    assert origins_read == [20, None]


@pytest.mark.parametrize("place", [0.3, 0.6, 0.95])
def test_file_that_ends_early_is_as_without_starts(matroska, tmp_path, place):
    for name in ("b_frames.mkv", "no_cues.mkv", "vp9.webm"):
        content = matroska(name).read_bytes()
        path = tmp_path / name
        path.write_bytes(content[: int(len(content) * place)])
        assert_known_starts_change_nothing(path)


@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_known_starts_of_a_damaged_file_change_nothing(matroska, tmp_path, data):
    name = data.draw(st.sampled_from(sorted(MATROSKA)))
    content = bytearray(matroska(name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(len(content) // 30, len(content) - 1))
        length = data.draw(st.sampled_from([1, 1, 1, 40, 400]))
        content[place : place + length] = bytes(value ^ 16 for value in content[place : place + length])
    damaged = tmp_path / f"damaged_{name}"
    damaged.write_bytes(content)
    try:
        info = probe(damaged)
    except MediaError:
        return
    clips = cut(info.num_frames, data.draw(st.sampled_from([4, 10, 25])), 3)
    expected = [read_alone(damaged, clip) for clip in clips]
    origins = origins_of(info, clips)
    assert_same([read_alone(damaged, clip, origin) for clip, origin in zip(clips, origins, strict=True)], expected)
    assert_same(read_in_a_row(damaged, clips, origins=origins), expected)


def test_member_of_a_shard_is_read_from_its_start(matroska, tmp_path, origins_read):
    content = matroska("b_frames.mkv").read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(bytes(5000) + content + bytes(5000))
    start = probe(matroska("b_frames.mkv")).safe_starts[-1]
    job = replace(
        make_job(shard, probe(matroska("b_frames.mkv")), [60, 79]),
        uri=f"tar://b_frames.mkv::{shard}",
        byte_range=ByteRange(start=5000, num_bytes=len(content)),
    )
    with Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), LimitsConfig()) as sandbox:
        assert np.array_equal(rows_of(sandbox, replace(job, origin=start)), rows_of(sandbox, job))


def bytes_read(sandbox: Sandbox, job: ClipJob) -> int:
    def counted() -> int:
        lines = Path(f"/proc/{sandbox.pid}/io").read_text().splitlines()
        return int(lines[0].removeprefix("rchar: "))

    before = counted()
    rows_of(sandbox, job)
    return counted() - before


@pytest.mark.parametrize("is_seekable", [True, False])
def test_bytes_read_for_the_last_clip_do_not_grow_with_the_file(tmp_path, is_seekable):
    source = make_video(tmp_path / "source.mp4", num_frames=200, width=192, height=128, gop=25, options={"crf": "5"})
    sizes, costs = [], []
    for repeats in (5, 20):
        path = remux(source, tmp_path / f"{repeats}.mkv", repeats=repeats, is_seekable=is_seekable)
        with Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), LimitsConfig()) as sandbox:
            info = sandbox.probe(str(path))
            wanted = [info.num_frames - 8, info.num_frames - 1]
            job = make_job(path, info, wanted)
            sizes.append(path.stat().st_size)
            costs.append(bytes_read(sandbox, replace(job, origin=safe_start_before(info, wanted[0]))))
            assert bytes_read(sandbox, job) > sizes[-1]
    assert sizes[1] > 3 * sizes[0]
    assert max(costs) < sizes[0] / 6
    assert costs[1] < costs[0] + 65_536
