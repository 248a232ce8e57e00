"""Clips that go on where the last one ended are those that each would be alone, whatever is wrong with the file."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media import reading
from pipeline.media.container import ClipJob, MediaType
from pipeline.media.frames import open_frames
from pipeline.media.video_pyav import IndexCache
from tests.media.conftest import VIDEOS
from tests.media.helpers import SAMPLE_VIDEOS, damage, probe, read, read_in_a_row
from tests.media_factory import decode_plainly, make_image, make_video


def cut(num_frames, length, step):
    """Neighbouring clips of `length` frames, every `step`-th of them wanted and the last one of each."""
    spans = [range(start, min(start + length, num_frames)) for start in range(0, num_frames, length)]
    return [sorted({*span[::step], span[-1]}) for span in spans]


def read_alone(path, clip, origin=None):
    try:
        return read(path, clip, origin=origin)
    except MediaError as error:
        return error.code, error.message


def assert_same(got, expected):
    assert len(got) == len(expected)
    for number, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        if isinstance(theirs, tuple):
            assert ours == theirs
            continue
        same = not isinstance(ours, tuple) and len(ours) == len(theirs)
        assert same and all(map(np.array_equal, ours, theirs)), f"clip {number} differs"


@pytest.fixture
def fed(monkeypatch):
    """The packets that decoders are given, by their times, in order."""
    packets = []
    original = reading.Reading._decode

    def counting(self, packet):
        if packet is not None:
            packets.append(packet.pts)
        return original(self, packet)

    monkeypatch.setattr(reading.Reading, "_decode", counting)
    return packets


@pytest.mark.parametrize("name", VIDEOS)
def test_clips_in_a_row_have_the_frames_of_a_sequential_decode(made, name):
    expected = decode_plainly(made(name))
    for length, step in ((7, 2), (5, 5), (16, 1)):
        clips = cut(len(expected), length, step)
        assert_same(read_in_a_row(made(name), clips), [[expected[index] for index in clip] for clip in clips])


@pytest.mark.parametrize("name", sorted(set(SAMPLE_VIDEOS) - {"bbb_30s_vp8.webm", "bikes_longgop_1080p.mp4"}))
def test_clips_of_sample_videos_in_a_row_are_those_of_each_alone(sample_media, name):
    path = sample_media / "video" / name
    clips = cut(min(probe(path).num_frames, 100), 25, 12)
    assert_same(read_in_a_row(path, clips), [read_alone(path, clip) for clip in clips])


@pytest.mark.parametrize("clips", [[[65], [0]], [[65], [0], [65]], [[70, 71], [2, 40], [3, 60]]])
def test_clips_that_lie_before_the_last_one_are_those_of_each_alone(made, clips):
    expected = decode_plainly(made("many_gops.mp4"))
    assert_same(read_in_a_row(made("many_gops.mp4"), clips), [[expected[index] for index in clip] for clip in clips])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_clips_of_one_file_one_after_the_other_are_those_of_each_alone(made, data):
    name = data.draw(st.sampled_from(["many_gops.mp4", "b_frames.mp4", "open_gop.mp4", "h264.ts", "variable_rate.mp4"]))
    expected = decode_plainly(made(name))
    frames = st.integers(0, len(expected) - 1)
    clips = data.draw(st.lists(st.lists(frames, min_size=1, max_size=5).map(sorted), min_size=2, max_size=5))
    assert_same(read_in_a_row(made(name), clips), [[expected[index] for index in clip] for clip in clips])


@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_clips_of_a_damaged_file_in_a_row_are_those_of_each_alone(made, tmp_path, data):
    name = data.draw(st.sampled_from(["b_frames.mp4", "many_gops.mp4", "hevc.mp4", "mpeg4.avi", "vp9.webm"]))
    content = bytearray(made(name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(len(content) // 5, len(content) * 4 // 5))
        length = data.draw(st.sampled_from([1, 1, 40, 400]))
        content[place : place + length] = bytes(value ^ 16 for value in content[place : place + length])
    damaged = tmp_path / f"damaged_{name}"
    damaged.write_bytes(content)
    clips = cut(VIDEOS[name].get("num_frames", 24), data.draw(st.sampled_from([4, 10])), 3)
    assert_same(read_in_a_row(damaged, clips), [read_alone(damaged, clip) for clip in clips])


@pytest.mark.parametrize("lost", [[9], [10, 11], [30], [14, 45, 46]])
def test_frames_that_are_missing_are_stood_in_for_as_if_each_clip_were_alone(tmp_path, lost):
    options = {"x264-params": "bframes=2:keyint=30:scenecut=0"}
    source = make_video(tmp_path / "whole.mp4", num_frames=60, gop=30, options=options)
    damaged = damage(source, tmp_path / "damaged.mp4", lost)
    clips = cut(60, 10, 2)
    assert_same(read_in_a_row(damaged, clips), [read_alone(damaged, clip) for clip in clips])


def test_clip_that_fails_leaves_its_neighbours_as_they_are(made):
    expected = decode_plainly(made("b_frames.mp4"))
    got = read_in_a_row(made("b_frames.mp4"), [[0, 9], [10, 900], [20, 29], [30, 39]])
    assert got[1][0] is ErrorCode.TRUNCATED_MEDIA
    wanted = [[0, 9], [20, 29], [30, 39]]
    assert_same([got[0], *got[2:]], [[expected[index] for index in clip] for clip in wanted])


@pytest.mark.parametrize("name", ["b_frames.mp4", "vp9.webm", "av1.mkv"])
def test_clips_that_go_on_decode_no_packet_twice(made, fed, name):
    num_frames = VIDEOS[name].get("num_frames", 24)
    read_in_a_row(made(name), cut(num_frames, 5, 3))
    assert num_frames - 5 <= len(fed) == len(set(fed))


def test_clips_without_a_word_of_the_next_one_decode_no_packet_beyond_their_last(made, fed):
    for clip in cut(60, 20, 3):
        read(made("b_frames.mp4"), clip)
    assert len(fed) > 100


def test_next_clip_in_another_group_of_pictures_begins_at_its_own_keyframe(made, fed):
    read_in_a_row(made("many_gops.mp4"), [[0, 2], [75, 76]])
    assert len(fed) <= 3 + 10


def test_container_is_opened_once_for_a_run_of_clips(made, monkeypatch):
    opened = []
    original = reading.open_video
    monkeypatch.setattr(reading, "open_video", lambda *args: opened.append(args) or original(*args))
    read_in_a_row(made("h264.mp4"), cut(24, 6, 2)[:2])
    assert len(opened) == 1


def announcing(path, frame_indices, num_source_frames, following):
    return ClipJob(
        uri=str(path),
        media_type=MediaType.VIDEO,
        frame_indices=frame_indices,
        num_source_frames=num_source_frames,
        resized_height=32,
        resized_width=32,
        following=following,
    )


def test_reading_that_the_decoder_complained_of_is_not_gone_on_with(made, tmp_path):
    damaged = damage(made("b_frames.mp4"), tmp_path / "damaged.mp4", [8])
    cache = IndexCache()
    job = announcing(damaged, (0, 20), 60, (21, 30))
    with damaged.open("rb") as file:
        list(open_frames(job, file, DecodeConfig(), ImagesConfig(), LimitsConfig(), cache).frames)
        assert not cache.keeps(file)


def first_of_two(path, cache):
    """Read a clip that announces another; its file, which is left open."""
    job = announcing(path, (0, 5), 24, (6, 10))
    file = path.open("rb")
    list(open_frames(job, file, DecodeConfig(), ImagesConfig(), LimitsConfig(), cache).frames)
    assert cache.keeps(file)
    return file


def test_file_that_was_replaced_between_two_clips_is_read_anew(made, tmp_path):
    path, cache = tmp_path / "video.mp4", IndexCache()
    path.write_bytes(made("h264.mp4").read_bytes())
    kept = first_of_two(path, cache)
    other = make_video(tmp_path / "other.mp4", num_frames=30)
    other.replace(path)
    (got,) = read_in_a_row(path, [[6, 10]], cache)
    assert_same([got], [[decode_plainly(path)[index] for index in (6, 10)]])
    assert kept.closed


def test_file_that_was_kept_for_a_clip_is_closed_when_another_medium_comes(made, tmp_path):
    cache = IndexCache()
    kept = first_of_two(made("h264.mp4"), cache)
    read(made("h264.mkv"), [0], cache=cache)
    assert kept.closed
    kept = first_of_two(made("h264.mp4"), cache)
    read(make_image(tmp_path / "a.png"), [0], cache=cache, media_type=MediaType.IMAGE)
    assert kept.closed


@pytest.mark.parametrize("name", ["many_gops.mp4", "hevc.mp4", "h264.mkv", "h264.ts", "vp9.webm", "av1.mkv"])
def test_frames_that_are_keyframes_are_decoded_one_packet_each(made, fed, name):
    keyframes = probe(made(name), with_keyframes=True).keyframes
    assert len(keyframes) > 1
    fed.clear()
    expected = decode_plainly(made(name))
    assert_same([read(made(name), keyframes)], [[expected[index] for index in keyframes]])
    assert len(fed) == len(keyframes)
