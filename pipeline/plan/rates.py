"""How fast machines are, as measured: the numbers that a prediction holds a plan against.

Decoding and the driver: one core of a noisy two-core x86-64 virtual machine (docs/growth.md has the commands and the
spread). Encoding on a GPU: NVIDIA H100 80GB, docs/gpu.md, two request sizes a tower, fitted by a line. Another machine
is another number: `Rates.measured_by` takes what an earlier run on it wrote into its `run.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

DECODE_PACE = "decode_pace"
GPU_FLOPS = "gpu_flops_per_second"
CORE_FLOPS = "core_flops_per_second"
GPU_CODECS = ("h264", "hevc")  # that a GPU's own decoders are given


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRate:
    """CPU time of one codec's clips on one core; the pixels are those of `plan.work.ClipWork`."""

    seconds_per_clip: float
    ns_per_read_pixel: float
    ns_per_sampled_pixel: float
    ns_per_row_pixel: float
    ns_per_plane_pixel: float = 0.0  # in place of the two before, where a GPU makes the rows


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRate:
    """Time of a request in one encoder: a GPU's, or one core's."""

    seconds_per_request: float
    flops_per_second: float


# docs/gpu.md, 8x28x28 and 64x28x28: 9.6 and 69.1 ms (2B), 15.2 and 106.7 ms (8B).
_GPU_64 = EncodeRate(seconds_per_request=1.1e-3, flops_per_second=542e12)
_GPU_72 = EncodeRate(seconds_per_request=2.1e-3, flops_per_second=481e12)
# random:2b in float32 on one core: 90 and 94 GFLOP/s for 1x16x16 and 4x16x16.
_CORE = EncodeRate(seconds_per_request=0.003, flops_per_second=92e9)
# random:tiny, of 128 channels, where less of the time is matrix products: 35 to 57 GFLOP/s, 256 to 50,176 patches.
_NARROW_CHANNELS = 512
_NARROW_CORE = EncodeRate(seconds_per_request=0.003, flops_per_second=46e9)


def _video(ns_per_read_pixel: float) -> DecodeRate:
    return DecodeRate(
        seconds_per_clip=0.003,
        ns_per_read_pixel=ns_per_read_pixel,
        ns_per_sampled_pixel=4.6,
        ns_per_row_pixel=1.0,
        ns_per_plane_pixel=0.8,
    )


def _image(ns_per_read_pixel: float) -> DecodeRate:
    return DecodeRate(
        seconds_per_clip=0.0009,
        ns_per_read_pixel=ns_per_read_pixel,
        ns_per_sampled_pixel=4.0,
        ns_per_row_pixel=1.0,
    )


# `python -m benchmarks.decode --parts` over the sample media (docs/growth.md): the middle of each codec's files.
_DECODE = {
    "h264": _video(1.4),
    "hevc": _video(1.8),
    "vp8": _video(0.9),
    "vp9": _video(3.5),
    "av1": _video(1.2),
    "mpeg4": _video(0.55),
    "jpeg": _image(10.5),
    "png": _image(26.0),
    "webp": _image(21.0),
}
# docs/gpu.md: frames of 720p a second that eight of an H100's decoders do beside its encoder, and what that costs it.
_GPU_READ_PIXELS_PER_SECOND = 3_980 * 1280 * 720
_GPU_DECODING_SLOWS_ENCODING = 1.034
# `python -m benchmarks.growth --runner local` and headers of the sample media.
_SECONDS_PER_VIDEO = 0.010
_SECONDS_PER_IMAGE = 0.0014
_SECONDS_PER_HASHED_BYTE = 1.7e-9
# Runs of a few clips on two cores, and `benchmarks.churn` on 16 cores with an H100, without Ray's own start (5 to 8 s);
# with a GPU, decoding begins when the first is over, and encoding when the second is, too.
_START_SECONDS = 11.0
_GPU_START_SECONDS = 13.0
_GPU_ENCODER_START_SECONDS = 13.0
# The driver's CPU time of 1,000 more requests.
_DRIVER_SECONDS_PER_REQUEST = 0.017


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Everything that a prediction multiplies with.

    `decode_pace` scales all decoding: 1.2 is a fifth slower than the machine of the defaults. `core` is the encoder's
    rate on one core where there is no GPU. `gpu_read_pixels_per_second` is what one GPU's own decoders do beside its
    encoder, which then takes `gpu_decoding_slows_encoding` times as long. `origin` says where the numbers come from,
    for a person.
    """

    decode_pace: float
    gpu: EncodeRate
    core: EncodeRate
    seconds_per_video: float
    seconds_per_image: float
    seconds_per_hashed_byte: float
    start_seconds: float
    gpu_start_seconds: float
    gpu_encoder_start_seconds: float
    gpu_read_pixels_per_second: float
    gpu_decoding_slows_encoding: float
    driver_seconds_per_request: float
    origin: str

    @classmethod
    def default(cls, head_dim: int, hidden_size: int) -> Self:
        """The measured defaults for a tower.

        Its head_dim decides how well attention fits a GPU's tiles, its hidden_size how much of a core's time is
        matrix products.
        """
        return cls(
            decode_pace=1.0,
            gpu=_GPU_64 if head_dim <= 64 else _GPU_72,
            core=_NARROW_CORE if hidden_size < _NARROW_CHANNELS else _CORE,
            seconds_per_video=_SECONDS_PER_VIDEO,
            seconds_per_image=_SECONDS_PER_IMAGE,
            seconds_per_hashed_byte=_SECONDS_PER_HASHED_BYTE,
            start_seconds=_START_SECONDS,
            gpu_start_seconds=_GPU_START_SECONDS,
            gpu_encoder_start_seconds=_GPU_ENCODER_START_SECONDS,
            gpu_read_pixels_per_second=_GPU_READ_PIXELS_PER_SECOND,
            gpu_decoding_slows_encoding=_GPU_DECODING_SLOWS_ENCODING,
            driver_seconds_per_request=_DRIVER_SECONDS_PER_REQUEST,
            origin="an H100 and a core of the development machine",
        )

    def measured_by(self, measured: Mapping[str, float], where: str) -> Self:
        """What an earlier run measured replaces the defaults; what it did not measure stays.

        Args:
            measured: `rates` of its `run.json`: DECODE_PACE, GPU_FLOPS, CORE_FLOPS; each may be missing.
            where: its output, for `origin`.
        """
        return replace(
            self,
            decode_pace=measured.get(DECODE_PACE, self.decode_pace),
            gpu=_mean_rate(measured[GPU_FLOPS]) if GPU_FLOPS in measured else self.gpu,
            core=_mean_rate(measured[CORE_FLOPS]) if CORE_FLOPS in measured else self.core,
            origin=f"{', '.join(sorted(measured))} by {where}; the rest by {self.origin}",
        )

    def decode_rate(self, codec: str) -> DecodeRate:
        """The rate of a codec by FFmpeg's or Pillow's name; of one that was not measured, H.264's."""
        return _DECODE.get(codec, _DECODE["h264"])


def _mean_rate(flops_per_second: float) -> EncodeRate:
    """A whole run's mean: what a request costs beside its operations is in it."""
    return EncodeRate(seconds_per_request=0.0, flops_per_second=flops_per_second)
