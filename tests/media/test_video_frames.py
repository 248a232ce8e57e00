"""Whatever is skipped or sought, frames are those of a plain sequential decode from the start."""

import gc

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, MediaError
from pipeline.media import reading
from pipeline.media.video_pyav import IndexCache
from tests.media.conftest import VIDEOS
from tests.media.helpers import SAMPLE_VIDEOS, damage, evenly, probe, read
from tests.media_factory import decode_plainly, make_video

# What decord refuses or fails, each for the reason that video_decord.py states.
NOT_FOR_DECORD = {name for name in VIDEOS if name.endswith(".ts")} | {
    "av1.mkv",
    "hidden_vp9.mp4",
    "hidden_vp8.webm",
    "interlaced.mp4",
    "three_quarter_turn.mkv",
    "no_duration.webm",
    "odd_sides.webm",
}
SAMPLES_NOT_FOR_DECORD = {
    "av1_video.mkv",
    "bikes_av1_10fps.mkv",
    "bbb_noduration_vp9.webm",
    "bbb_segment.ts",
    "hidden_frames_vp9.mp4",
    "testsrc_odd_vp9.mp4",
}


def assert_equal_frames(got, expected):
    assert len(got) == len(expected)
    for number, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert np.array_equal(ours, theirs), f"frame {number} differs"


def selections(num_frames):
    last = num_frames - 1
    yield range(num_frames)
    yield evenly(num_frames, 6)
    yield [last]
    yield [num_frames // 2, num_frames // 2, last]
    yield range(max(0, num_frames - 9), num_frames)


@pytest.mark.parametrize("name", VIDEOS)
def test_generated_video_gives_the_frames_of_a_sequential_decode(made, name):
    expected, cache = decode_plainly(made(name)), IndexCache()
    assert probe(made(name)).num_frames == len(expected)
    for indices in selections(len(expected)):
        for known in (cache, IndexCache()):
            assert_equal_frames(read(made(name), indices, cache=known), [expected[index] for index in indices])


@pytest.mark.parametrize("name", SAMPLE_VIDEOS)
def test_sample_video_gives_the_frames_of_a_sequential_decode(sample_media, name):
    path = sample_media / "video" / name
    expected = decode_plainly(path)
    info = probe(path)
    assert (info.num_frames, info.height, info.width) == (len(expected), *expected[0].shape[:2])
    for indices in (evenly(len(expected), 12), [len(expected) - 1], [len(expected) // 2]):
        assert_equal_frames(read(path, indices), [expected[index] for index in indices])


@pytest.mark.parametrize("name", sorted(VIDEOS.keys() - NOT_FOR_DECORD))
def test_decord_gives_the_same_frames(made, name):
    expected = decode_plainly(made(name))
    for indices in ([0], evenly(len(expected), 5), [len(expected) - 1] * 2):
        got = read(made(name), indices, backend="decord", num_source_frames=len(expected))
        assert_equal_frames(got, [expected[index] for index in indices])


@pytest.mark.parametrize("name", sorted(set(SAMPLE_VIDEOS) - SAMPLES_NOT_FOR_DECORD - {"bbb_30s_vp8.webm"}))
def test_decord_gives_the_same_frames_of_sample_videos(sample_media, name):
    path = sample_media / "video" / name
    indices = evenly(probe(path).num_frames, 6)
    got = read(path, indices, backend="decord", num_source_frames=probe(path).num_frames)
    assert_equal_frames(got, read(path, indices))


@pytest.mark.parametrize("name", sorted(NOT_FOR_DECORD))
def test_decord_refuses_what_it_gets_wrong(made, name):
    num_frames = probe(made(name)).num_frames
    with pytest.raises(MediaError) as caught:
        read(made(name), [0, num_frames - 1], backend="decord", num_source_frames=num_frames)
    assert caught.value.code in (ErrorCode.UNSUPPORTED_MEDIA, ErrorCode.CORRUPT_MEDIA)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_selection_of_frames_gives_those_frames(made, data):
    name = data.draw(st.sampled_from(["many_gops.mp4", "open_gop.mp4", "h264.mkv", "mpeg2.ts", "hidden_vp9.mp4"]))
    expected = decode_plainly(made(name))
    indices = sorted(data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=8)))
    assert_equal_frames(read(made(name), indices), [expected[index] for index in indices])


def count_decoded_packets(monkeypatch):
    fed = []
    original = reading.decode_packet

    def counting(context, packet):
        if packet is not None:
            fed.append(str(context.skip_frame))
        return original(context, packet)

    monkeypatch.setattr(reading, "decode_packet", counting)
    return fed


def test_late_frame_is_decoded_from_its_own_keyframe(made, monkeypatch):
    fed = count_decoded_packets(monkeypatch)
    read(made("many_gops.mp4"), [75])
    assert 1 <= len(fed) <= 10


def test_groups_without_wanted_frames_are_not_decoded(made, monkeypatch):
    fed = count_decoded_packets(monkeypatch)
    read(made("many_gops.mp4"), [0, 70])
    assert len(fed) == 2


def test_recovery_point_of_h264_is_not_taken_for_a_start(made, monkeypatch):
    fed = count_decoded_packets(monkeypatch)
    read(made("recovery_points.ts"), [45])
    assert len(fed) > 40


def test_clips_of_one_file_read_its_index_once(made, monkeypatch):
    built = []
    original = reading.read_index
    monkeypatch.setattr(reading, "read_index", lambda *args: built.append(args) or original(*args))
    cache = IndexCache()
    for start in range(0, 40, 4):
        read(made("h264.mkv"), [start, start + 2], cache=cache)
    assert len(built) == 1


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
def test_mirrored_video_is_shown_as_its_matrix_says_and_refused_to_decord(tmp_path, matrix):
    path = make_video(tmp_path / "mirrored.mp4", num_frames=2, matrix=matrix)
    stored = decode_plainly(make_video(tmp_path / "stored.mp4", num_frames=2))[0]
    a, b, c, d = matrix
    expected = np.zeros_like(stored if a else stored.transpose(1, 0, 2))
    height, width = stored.shape[:2]
    for y in range(height):
        for x in range(width):  # negative coordinates count from the far side, as after the matrix's shift
            column, row = a * x + c * y, b * x + d * y
            expected[row - (b + d < 0), column - (a + c < 0)] = stored[y, x]
    assert_equal_frames(read(path, [0]), [expected])
    assert (probe(path).height, probe(path).width) == expected.shape[:2]
    with pytest.raises(MediaError) as caught:
        read(path, [0], backend="decord", num_source_frames=2)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA


def test_repeated_index_gives_the_same_array(made):
    first, second = read(made("h264.mp4"), [3, 3])
    assert first is second


@pytest.mark.parametrize("name", ["hidden_vp9.mp4", "hidden_vp8.webm"])
def test_hidden_frames_are_in_the_file_but_not_counted(made, name):
    with av.open(str(made(name))) as container:
        num_packets = sum(packet.size > 0 for packet in container.demux(video=0))
    info, num_hidden = probe(made(name)), len(VIDEOS[name]["hidden"])
    assert info.num_frames == num_packets - num_hidden
    assert info.fps == pytest.approx(25 * info.num_frames / num_packets, rel=0.02)


def test_missing_frame_is_the_last_one_before_it(tmp_path):
    source = make_video(tmp_path / "whole.mp4", gop=1, options={"x264-params": "bframes=0"})
    expected = decode_plainly(source)
    damaged = damage(source, tmp_path / "damaged.mp4", [5, 6])
    got = read(damaged, [4, 5, 6, 7, 20])
    assert_equal_frames(got, [expected[index] for index in (4, 4, 4, 7, 20)])


def test_missing_first_frame_is_the_first_one_that_appears(tmp_path):
    source = make_video(tmp_path / "whole.mp4", gop=1, options={"x264-params": "bframes=0"})
    damaged = damage(source, tmp_path / "damaged.mp4", [0])
    assert_equal_frames(read(damaged, [0, 1]), [decode_plainly(source)[1]] * 2)


def test_two_frames_missing_at_the_end_repeat_the_last_one(tmp_path):
    source = make_video(tmp_path / "whole.mp4", gop=1, options={"x264-params": "bframes=0"})
    damaged = damage(source, tmp_path / "damaged.mp4", [22, 23])
    assert_equal_frames(read(damaged, [20, 23]), [decode_plainly(source)[index] for index in (20, 21)])


def test_more_frames_rejected_at_the_end_are_corrupt_media(tmp_path):
    source = make_video(tmp_path / "whole.mp4", gop=1, options={"x264-params": "bframes=0"})
    damaged = damage(source, tmp_path / "damaged.mp4", range(15, 24))
    with pytest.raises(MediaError, match="last frame that could be decoded is 14") as caught:
        read(damaged, [0, 23])
    assert caught.value.code is ErrorCode.CORRUPT_MEDIA


def test_file_that_ends_early_is_truncated_media(tmp_path):
    source = make_video(tmp_path / "whole.mp4", num_frames=60, muxer_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(source.read_bytes()[: int(source.stat().st_size * 0.6)])
    assert probe(cut).num_frames == 60
    assert len(read(cut, [0, 5])) == 2
    with pytest.raises(MediaError, match=r"cut\.mp4: expected frame 59, the file ends after") as caught:
        read(cut, [0, 59])
    assert caught.value.code is ErrorCode.TRUNCATED_MEDIA


def test_rejected_packet_in_the_middle_does_not_fail_the_clip(tmp_path):
    source = make_video(tmp_path / "whole.mp4", num_frames=60, gop=10)
    damaged = damage(source, tmp_path / "damaged.mp4", [23])
    expected, got = decode_plainly(source), read(damaged, range(60))
    assert_equal_frames(got[:20] + got[40:], expected[:20] + expected[40:])


def test_no_decodable_packet_is_corrupt_media(tmp_path):
    source = make_video(tmp_path / "whole.mp4", num_frames=5)
    damaged = damage(source, tmp_path / "damaged.mp4", range(5))
    with pytest.raises(MediaError) as caught:
        probe(damaged)
    assert caught.value.code is ErrorCode.CORRUPT_MEDIA


def test_auto_falls_back_to_decord_and_reports_pyavs_reason_when_both_fail(tmp_path):
    source = make_video(tmp_path / "whole.mp4", num_frames=5)
    damaged = damage(source, tmp_path / "damaged.mp4", range(5))
    with pytest.raises(MediaError, match="the decoder produced no frame"):
        read(damaged, [0, 4], backend="auto", num_source_frames=5)


def test_decoded_frames_are_freed_without_the_garbage_collector(made):
    gc.collect()
    gc.disable()
    try:
        read(made("many_gops.mp4"), range(80))
        assert not any(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
