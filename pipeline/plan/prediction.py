"""How long a plan will take on a cluster, what limits it, and what would help: a model of four lines.

    headers   sources * seconds each + bytes hashed                         over the decode workers
    decode    clips and pixels * the codec's rates, less where a GPU makes rows of planes   over the decode workers
    encode    requests * seconds a request + operations / rate             over the GPUs, or all cores together
    driver    requests * what Ray Data's executor spends on one            one process

The first shard's headers are read first; then the other three run at once, and the slowest of them counts. The other
shards' headers are read beside that, by the cores that decode, and are part of `decode`. Without a GPU, decoding,
encoding and the driver share the cores, and their CPU time adds up; with one, encoding begins later than decoding does.
The GPUs' own decoders count as so many cores more for the codecs that they read, as if all such clips were local and of
sizes that they take. What is left out, and so makes real runs longer: filling and emptying the pipeline, keyframes far
before a clip's first frame, slow stores, nodes that are lost. `docs/growth.md` holds predictions against runs.
"""

import math
from dataclasses import dataclass, replace

from pipeline.plan.rates import GPU_CODECS, DecodeRate, EncodeRate, Rates
from pipeline.plan.work import ClipWork, Work

START, HEADERS, DECODE, ENCODE, DRIVER = "start-up", "headers", "decode", "encode", "driver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a run may use. `decode_workers` None: a worker a core, less one for the rest, as a run has them.

    `gpus_decode`: the GPUs' own decoders work, too. `gpus_make_rows`: of planes, where clips may travel so.
    `shard_sources`: how many sources' headers are read before decoding
    begins; None for all.
    """

    num_cores: int
    num_gpus: int
    decode_workers: int | None = None
    gpus_decode: bool = False
    gpus_make_rows: bool = False
    shard_sources: int | None = None

    @property
    def num_decoders(self) -> int:
        """Decode workers that have a core each; more of them than cores gain nothing."""
        return min(self.decode_workers or max(1, self.num_cores - 1), self.num_cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A plan's cost on a cluster. Stage times are wall seconds of that stage alone, at full use of its machines.

    `start_seconds` pass before headers are read and decoding begins, `encoder_start_seconds` more before encoding does.
    `headers_seconds` are the first shard's; the others' are part of `decode_seconds`.
    `bottleneck` names the longest of them, the encoder's with its start. `help_cores` and `help_gpus` are what would
    shorten the run most simply, at most as much again as there is, and `helped_seconds` the time with it; all None
    where machines do not help.
    """

    seconds: float
    start_seconds: float
    encoder_start_seconds: float
    headers_seconds: float
    decode_seconds: float
    encode_seconds: float
    driver_seconds: float
    bottleneck: str
    core_hours: float
    gpu_hours: float
    help_cores: int | None = None
    help_gpus: int | None = None
    helped_seconds: float | None = None

    def cost(self, core_hour_price: float, gpu_hour_price: float) -> float:
        """What the machines cost, in the currency of the prices; they are paid for as long as the run lasts."""
        return core_hour_price * self.core_hours + gpu_hour_price * self.gpu_hours


def predict(work: Work, cluster: Cluster, rates: Rates) -> Prediction:
    """Predict a run from nothing to its last fragment. Pure arithmetic."""
    found = _predict(work, cluster, rates)
    cores, gpus = _help(found, work, cluster, rates)
    if not cores and not gpus:
        return found
    larger = replace(
        cluster, num_cores=cluster.num_cores + cores, num_gpus=cluster.num_gpus + gpus, decode_workers=None
    )
    helped = _predict(work, larger, rates).seconds
    return replace(found, help_cores=cores or None, help_gpus=gpus or None, helped_seconds=helped)


def decode_core_seconds(work: Work, rates: Rates, *, with_planes: bool = False) -> float:
    """CPU seconds that decoding takes, from files to patch rows, or to planes of which a GPU makes the rows."""
    seconds = (_clip_seconds(part, rates.decode_rate(codec), with_planes) for codec, part in work.by_codec)
    return rates.decode_pace * sum(seconds)


def _headers(work: Work, cluster: Cluster, rates: Rates) -> tuple[float, float]:
    """CPU seconds for the headers of the first shard, and of all others."""
    seconds = (
        rates.seconds_per_video * work.num_videos
        + rates.seconds_per_image * (work.num_sources - work.num_videos)
        + rates.seconds_per_hashed_byte * work.hashed_bytes
    )
    first = 1.0 if cluster.shard_sources is None else min(1.0, cluster.shard_sources / max(1, work.num_sources))
    return first * seconds, (1 - first) * seconds


def _clip_seconds(work: ClipWork, rate: DecodeRate, with_planes: bool) -> float:
    plane_pixels, plane_row_pixels = (work.plane_pixels, work.plane_row_pixels) if with_planes else (0, 0)
    return rate.seconds_per_clip * work.num_clips + 1e-9 * (
        rate.ns_per_read_pixel * work.read_pixels
        + rate.ns_per_sampled_pixel * (work.sampled_pixels - plane_pixels)
        + rate.ns_per_row_pixel * (work.row_pixels - plane_row_pixels)
        + rate.ns_per_plane_pixel * plane_pixels
    )


def _decode_core_seconds(work: Work, cluster: Cluster, rates: Rates) -> float:
    return decode_core_seconds(work, rates, with_planes=cluster.gpus_make_rows and cluster.num_gpus > 0)


def _gpus_as_cores(work: Work, cluster: Cluster, rates: Rates) -> tuple[float, float]:
    """How many cores the GPUs' decoders stand for, and the core seconds of what they can read."""
    if not cluster.gpus_decode or not cluster.num_gpus:
        return 0.0, 0.0
    parts = tuple((codec, part) for codec, part in work.by_codec if codec in GPU_CODECS)
    pixels = sum(part.read_pixels for _, part in parts)
    if not pixels:
        return 0.0, 0.0
    seconds = _decode_core_seconds(replace(work, by_codec=parts), cluster, rates)
    return cluster.num_gpus * rates.gpu_read_pixels_per_second * seconds / pixels, seconds


def _encode_seconds(work: Work, rate: EncodeRate) -> float:
    return rate.seconds_per_request * work.num_requests + work.flops / rate.flops_per_second


def _predict(work: Work, cluster: Cluster, rates: Rates) -> Prediction:
    decoders, cores = cluster.num_decoders, cluster.num_cores
    driver = rates.driver_seconds_per_request * work.num_requests
    headers, headers_beside = _headers(work, cluster, rates)
    decode = _decode_core_seconds(work, cluster, rates) + headers_beside
    more_decoders, shared_decode = _gpus_as_cores(work, cluster, rates)
    if cluster.num_gpus:
        encode = _encode_seconds(work, rates.gpu) / cluster.num_gpus
        encode *= rates.gpu_decoding_slows_encoding if more_decoders else 1.0
        start, encoder_start = rates.gpu_start_seconds, rates.gpu_encoder_start_seconds
        shared = 0.0
    else:
        encode = _encode_seconds(work, rates.core) / cores
        start, encoder_start = rates.start_seconds, 0.0
        shared = (decode + driver) / cores + encode
    decode_seconds = max((decode - shared_decode) / decoders, decode / (decoders + more_decoders))
    stages = {DECODE: decode_seconds, ENCODE: encoder_start + encode, DRIVER: driver}
    before = {START: start, HEADERS: headers / decoders}
    seconds = sum(before.values()) + max(shared, *stages.values())
    longest = {**stages, **before}
    return Prediction(
        seconds=seconds,
        start_seconds=start,
        encoder_start_seconds=encoder_start,
        headers_seconds=before[HEADERS],
        decode_seconds=stages[DECODE],
        encode_seconds=encode,
        driver_seconds=driver,
        bottleneck=max(longest, key=lambda name: longest[name]),
        core_hours=seconds * cores / 3600,
        gpu_hours=seconds * cluster.num_gpus / 3600,
    )


def _help(found: Prediction, work: Work, cluster: Cluster, rates: Rates) -> tuple[int, int]:
    """Cores and GPUs that would let the next stage be the slowest, at most as many again; (0, 0) where none help."""
    if found.bottleneck in (DECODE, HEADERS):
        encode = found.encoder_start_seconds + found.encode_seconds if cluster.num_gpus else 0.0
        next_seconds = max(encode, found.driver_seconds, 1e-9)
        decode = _decode_core_seconds(work, cluster, rates) + _headers(work, cluster, rates)[1]
        more_decoders, for_gpus = _gpus_as_cores(work, cluster, rates)
        least = max(decode - for_gpus, decode - more_decoders * next_seconds)
        return max(1, min(math.ceil(least / next_seconds) + 1 - cluster.num_cores, cluster.num_cores)), 0
    if found.bottleneck == ENCODE and cluster.num_gpus:
        next_seconds = max(found.decode_seconds, found.driver_seconds) - found.encoder_start_seconds
        next_seconds = max(next_seconds, 1e-9)
        wanted = math.ceil(found.encode_seconds * cluster.num_gpus / next_seconds) - cluster.num_gpus
        return 0, max(1, min(wanted, cluster.num_gpus))
    return (0, 1) if found.bottleneck == ENCODE else (0, 0)
