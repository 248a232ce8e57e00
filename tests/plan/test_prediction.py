from dataclasses import replace

import pytest

from pipeline.checkpoint import official_checkpoint
from pipeline.plan.prediction import DECODE, DRIVER, ENCODE, Cluster, Prediction, decode_core_seconds, predict
from pipeline.plan.rates import CORE_FLOPS, DECODE_PACE, GPU_FLOPS, EncodeRate, Rates
from pipeline.plan.schema import RequestPlan, SourceRecord
from pipeline.plan.work import NO_WORK, ClipWork, Work
from tests.plan.factories import make_clip

VISION = official_checkpoint().vision


def make_work(**changes: object) -> Work:
    """A thousand seconds of one core, and a hundred of one GPU, at the rates below."""
    clips = ClipWork(num_clips=100, read_pixels=int(1e12), sampled_pixels=0, row_pixels=0)
    values = {
        "num_sources": 100,
        "num_videos": 100,
        "hashed_bytes": 0,
        "num_requests": 100,
        "flops": int(1e14),
        "by_codec": (("h264", clips),),
    }
    return Work(**(values | changes))


def make_rates(**changes: object) -> Rates:
    rates = replace(
        Rates.default(64, 1024),
        gpu=EncodeRate(seconds_per_request=0.0, flops_per_second=1e12),
        core=EncodeRate(seconds_per_request=0.0, flops_per_second=1e11),
        seconds_per_video=0.0,
        seconds_per_image=0.0,
        start_seconds=5.0,
        gpu_start_seconds=5.0,
        gpu_encoder_start_seconds=0.0,
        gpu_read_pixels_per_second=4e9,
        gpu_decoding_slows_encoding=1.5,
        driver_seconds_per_request=0.01,
    )
    # Whatever a pixel of H.264 costs, a read one is to take a nanosecond here.
    pace = 1000 / decode_core_seconds(make_work(), rates)
    return replace(rates, decode_pace=pace, **changes)


def predict_on(num_cores: int, num_gpus: int, **changes: object) -> Prediction:
    return predict(make_work(**changes), Cluster(num_cores=num_cores, num_gpus=num_gpus), make_rates())


def test_a_clip_is_counted_in_pixels_of_its_frames_its_samples_and_its_rows() -> None:
    clip = make_clip()
    work = ClipWork.of(clip)
    first, last = clip.frame_indices[0], clip.frame_indices[-1]
    assert work.read_pixels == 640 * 360 * (last - first + 1)
    assert work.sampled_pixels == 640 * 360 * len(set(clip.frame_indices))
    assert work.row_pixels == clip.resized_height * clip.resized_width * 2 * clip.grid_thw[0]


def test_pixels_of_clips_that_may_travel_as_planes_are_counted_apart() -> None:
    clip = make_clip()
    work, odd = ClipWork.of(clip), ClipWork.of(replace(clip, width=641))
    assert (work.plane_pixels, work.plane_row_pixels) == (work.sampled_pixels, work.row_pixels)
    assert (odd.plane_pixels, odd.plane_row_pixels) == (0, 0)
    assert (work + odd).plane_pixels == work.plane_pixels


def test_a_gpu_makes_the_rows_of_planes_and_spares_the_cores_that() -> None:
    rates = make_rates()
    rows = ClipWork(num_clips=0, read_pixels=0, sampled_pixels=int(1e9), row_pixels=int(1e9))
    planes = replace(rows, plane_pixels=rows.sampled_pixels, plane_row_pixels=rows.row_pixels)
    seconds = {}
    for num_gpus in (0, 1):
        for name, clips in (("rows", rows), ("planes", planes)):
            cluster = Cluster(num_cores=2, num_gpus=num_gpus, gpus_make_rows=True)
            work = make_work(by_codec=(("h264", clips),))
            seconds[name, num_gpus] = predict(work, cluster, rates).decode_seconds
    rate = rates.decode_rate("h264")
    assert seconds["planes", 0] == seconds["rows", 0] == seconds["rows", 1]
    share = rate.ns_per_plane_pixel / (rate.ns_per_sampled_pixel + rate.ns_per_row_pixel)
    assert seconds["planes", 1] == pytest.approx(share * seconds["rows", 1])


def test_work_adds_up_over_requests_sources_and_shards() -> None:
    requests = [RequestPlan.of([make_clip(f"/{name}", name, codec=name)]) for name in ("h264", "vp9", "h264")]
    sources = [
        SourceRecord(**dict.fromkeys(SourceRecord.__slots__) | {"num_bytes": size, "media_type": media_type})
        for size, media_type in ((5, "image"), (1 << 40, "video"))
    ]
    whole = Work.of(requests, sources, VISION)
    assert [(codec, work.num_clips) for codec, work in whole.by_codec] == [("h264", 2), ("vp9", 1)]
    assert whole.num_videos == 1
    assert (whole.num_sources, whole.num_requests, whole.num_clips) == (2, 3, 3)
    assert whole.hashed_bytes == 5 + (4 << 20)
    assert Work.of(requests[:1], sources, VISION) + NO_WORK + Work.of(requests[1:], [], VISION) == whole


@pytest.mark.parametrize(
    ("num_cores", "num_gpus", "bottleneck", "seconds"),
    [
        (5, 1, DECODE, 250),  # 1,000 core-seconds on the four cores that are left to decode
        (41, 1, ENCODE, 100),
        (5, 100, DECODE, 250),
        (1001, 200, DECODE, 1),
    ],
)
def test_the_slowest_stage_decides_where_gpus_encode(
    num_cores: int, num_gpus: int, bottleneck: str, seconds: float
) -> None:
    found = predict_on(num_cores, num_gpus)
    assert found.bottleneck == bottleneck or seconds < found.start_seconds
    assert found.seconds == pytest.approx(5 + seconds)
    assert found.gpu_hours == pytest.approx(num_gpus * found.seconds / 3600)


def test_encoding_on_a_gpu_begins_later_than_decoding() -> None:
    rates = replace(make_rates(), gpu_start_seconds=8.0, gpu_encoder_start_seconds=30.0)
    assert predict(make_work(), Cluster(num_cores=41, num_gpus=1), rates).seconds == pytest.approx(8 + 30 + 100)
    assert predict(make_work(), Cluster(num_cores=5, num_gpus=1), rates).seconds == pytest.approx(8 + 250)


def test_the_first_shards_headers_come_before_and_the_others_beside_decoding() -> None:
    rates = replace(make_rates(), seconds_per_video=4.0)  # 400 seconds of one core
    cluster = Cluster(num_cores=5, num_gpus=1)
    whole = predict(make_work(), cluster, rates)
    assert (whole.headers_seconds, whole.decode_seconds) == pytest.approx((100, 250))
    in_shards = predict(make_work(), replace(cluster, shard_sources=25), rates)
    assert (in_shards.headers_seconds, in_shards.decode_seconds) == pytest.approx((25, 325))
    assert in_shards.seconds == pytest.approx(whole.seconds)
    behind_the_encoder = replace(cluster, num_cores=41, shard_sources=25)
    assert predict(make_work(), behind_the_encoder, rates).seconds == pytest.approx(5 + 2.5 + 100)
    assert predict(make_work(), replace(cluster, shard_sources=1000), rates) == whole


def test_the_gpus_own_decoders_stand_for_cores_for_the_codecs_that_they_read() -> None:
    cluster = Cluster(num_cores=5, num_gpus=1, gpus_decode=True)
    found = predict(make_work(), cluster, make_rates())  # 4e9 pixels a second are four cores' here
    assert found.decode_seconds == pytest.approx(1000 / 8)
    assert found.encode_seconds == pytest.approx(150)
    assert predict(make_work(), replace(cluster, gpus_decode=False), make_rates()).decode_seconds == pytest.approx(250)
    clips = make_work().by_codec[0][1]
    mixed = make_work(by_codec=(("h264", replace(clips, read_pixels=10**9)), ("mpeg4", clips)))
    alone = predict(mixed, replace(cluster, gpus_decode=False), make_rates()).decode_seconds
    assert predict(mixed, cluster, make_rates()).decode_seconds == pytest.approx(alone, rel=0.01)
    assert predict(make_work(), replace(cluster, num_gpus=0), make_rates()).decode_seconds == pytest.approx(250)


def test_keyframes_are_all_that_is_read_where_only_they_are_wanted() -> None:
    clip = make_clip()
    exact, keyframes = ClipWork.of(clip), ClipWork.of(clip, keyframes_only=True)
    assert keyframes.read_pixels == min(exact.read_pixels, 3 * exact.sampled_pixels) < exact.read_pixels
    assert keyframes.sampled_pixels == exact.sampled_pixels
    request = RequestPlan.of([clip])
    assert Work.of([request], [], VISION, keyframes_only=True).by_codec[0][1] == keyframes


def test_machines_cost_what_they_are_priced_at_for_as_long_as_the_run_lasts() -> None:
    found = predict_on(5, 2)
    assert found.cost(0.04, 2.5) == pytest.approx((5 * 0.04 + 2 * 2.5) * found.seconds / 3600)


def test_what_helps_counts_the_encoders_start_and_what_gpus_cannot_read() -> None:
    rates = replace(make_rates(), gpu_encoder_start_seconds=30.0)
    balanced = predict(make_work(), Cluster(num_cores=9, num_gpus=1), rates)  # 125 s of decoding, 130 of the encoder
    assert (balanced.bottleneck, balanced.help_gpus) == (ENCODE, 1)
    assert predict(make_work(), Cluster(num_cores=5, num_gpus=1), rates).help_cores == 4
    clips = make_work().by_codec[0][1]
    mixed = make_work(by_codec=(("h264", replace(clips, read_pixels=10**10)), ("vp9", clips)))
    slow = predict(mixed, Cluster(num_cores=5, num_gpus=1, gpus_decode=True), make_rates())
    assert slow.bottleneck == DECODE
    assert slow.help_cores is not None
    assert slow.help_cores > 1


def test_without_a_gpu_decoding_and_encoding_share_the_cores() -> None:
    found = predict_on(10, 0)
    assert (found.decode_seconds, found.encode_seconds) == (pytest.approx(1000 / 9), pytest.approx(100))
    assert found.seconds == pytest.approx(5 + 100 + 100 + 0.1)  # the last is the driver's


def test_without_a_gpu_the_driver_has_a_part_of_the_cores() -> None:
    found = predict_on(10, 0, num_requests=10_000)  # 100 seconds of the driver's
    assert found.seconds == pytest.approx(5 + 100 + 100 + 10)


def test_a_narrow_tower_has_a_slower_core() -> None:
    assert Rates.default(64, 128).core.flops_per_second < Rates.default(64, 1024).core.flops_per_second
    assert Rates.default(64, 128).gpu == Rates.default(64, 1024).gpu


def test_cores_are_asked_for_up_to_where_the_next_stage_limits_and_at_most_doubled() -> None:
    nearly = predict_on(9, 1)  # 125 s of decoding on 8 of them, against 100 s of encoding
    assert (nearly.help_cores, nearly.help_gpus) == (2, None)
    assert nearly.helped_seconds == pytest.approx(105)
    assert predict_on(3, 1).help_cores == 3


def test_gpus_are_asked_for_where_encoding_limits() -> None:
    found = predict_on(51, 1)
    assert (found.help_cores, found.help_gpus) == (None, 1)
    assert found.helped_seconds == pytest.approx(5 + 50)
    assert predict_on(10, 0, by_codec=()).help_gpus == 1


def test_nothing_helps_where_the_driver_limits() -> None:
    found = predict_on(1000, 50, num_requests=100_000)
    assert (found.bottleneck, found.helped_seconds) == (DRIVER, None)
    assert found.seconds == pytest.approx(5 + 1000)


def test_an_earlier_run_replaces_what_it_measured_and_nothing_else() -> None:
    rates = make_rates()
    measured = rates.measured_by({DECODE_PACE: 2 * rates.decode_pace, CORE_FLOPS: 5e10}, "OUT")
    assert decode_core_seconds(make_work(), measured) == pytest.approx(2000)
    assert measured.core == EncodeRate(seconds_per_request=0.0, flops_per_second=5e10)
    assert measured.gpu == rates.gpu
    assert "OUT" in measured.origin
    assert rates.measured_by({GPU_FLOPS: 2e12}, "OUT").gpu.flops_per_second == 2e12


def test_a_codec_that_was_not_measured_costs_what_h264_does() -> None:
    rates = make_rates()
    assert rates.decode_rate("theora") == rates.decode_rate("h264")


@pytest.mark.parametrize("head_dim", [64, 72])
def test_the_defaults_give_the_times_that_were_measured_on_an_h100(head_dim: int) -> None:
    """docs/gpu.md: a request of 50,176 patches takes 69.1 ms (2B) and 106.7 ms (8B) from host to host."""
    from pipeline.checkpoint import resolve_model

    name, measured = {64: ("random:2b", 0.0691), 72: ("random:8b", 0.1067)}[head_dim]
    vision = resolve_model(name).vision
    assert vision.head_dim == head_dim
    rate = Rates.default(head_dim, vision.hidden_size).gpu
    seconds = rate.seconds_per_request + vision.flops(50_176, 784) / rate.flops_per_second
    assert seconds == pytest.approx(measured, rel=0.05)
