# mypy: ignore-errors
# Triton comes with torch's CUDA wheels alone, so its types are not there to be checked on a CPU.
"""The steps from NV12 frames to resized planes as Triton kernels: each byte read from memory once, or out of a cache.

Import this on a machine with CUDA only; `rows.py` does, and says in plain torch what the kernels compute. Sizes are
run-time numbers: a kernel is compiled once for a number of taps, never for a size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.device.nvdec.rows import device_taps

_BLOCK = 1024
_LAUNCH = {"num_warps": 4}


@triton.jit
def _clip_byte(values):
    return tl.minimum(tl.maximum(values, 0), 255).to(tl.uint8)


@triton.jit(do_not_specialize=["num_pixels", "width"])
def _to_rgb(frames, tables, planes, num_pixels, width, BLOCK: tl.constexpr):
    frame = tl.program_id(1).to(tl.int64)
    pixels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixels < num_pixels
    rows = pixels // width
    columns = pixels - rows * width
    start = frames + frame * (num_pixels + num_pixels // 2)
    chroma = start + num_pixels + (rows // 2) * width + columns // 2 * 2
    y = tl.load(start + pixels, mask=inside, other=0).to(tl.int32)
    u = tl.load(chroma, mask=inside, other=0).to(tl.int32)
    v = tl.load(chroma + 1, mask=inside, other=0).to(tl.int32)
    base = tl.load(tables + y).to(tl.int32)
    red = base + tl.load(tables + 256 + v)
    green = base + tl.load(tables + 512 + u) + tl.load(tables + 768 + v)
    blue = base + tl.load(tables + 1024 + u)
    target = planes + frame * 3 * num_pixels + pixels
    tl.store(target, _clip_byte(red), mask=inside)
    tl.store(target + num_pixels, _clip_byte(green), mask=inside)
    tl.store(target + 2 * num_pixels, _clip_byte(blue), mask=inside)


@triton.jit(do_not_specialize=["num_new", "size", "new_size", "inner", "precision"])
def _resize(
    planes, starts, weights, resized, num_new, size, new_size, inner, precision, TAPS: tl.constexpr, BLOCK: tl.constexpr
):
    # A plane is (size, inner) before and (new_size, inner) after: columns have inner = 1, rows the width.
    plane = tl.program_id(1).to(tl.int64)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < num_new
    lines = places // inner
    offset = places - lines * inner
    outer = lines // new_size
    new = lines - outer * new_size
    first = tl.load(starts + new, mask=inside, other=0)
    source = planes + plane * (num_new // new_size * size) + outer * size * inner + offset
    total = tl.full((BLOCK,), 1, tl.int32) << (precision - 1)
    for tap in range(TAPS):
        place = tl.minimum(first + tap, size - 1)
        value = tl.load(source + place * inner, mask=inside, other=0).to(tl.int32)
        total += value * tl.load(weights + new * TAPS + tap, mask=inside, other=0)
    tl.store(resized + plane * num_new + places, _clip_byte(total >> precision), mask=inside)


class TritonRowMaker:
    """The steps on CUDA, queued on the current stream. Raises where Triton cannot compile; it does so at once.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        frames = torch.zeros((1, 48, 32), dtype=torch.uint8, device=device)
        tables = torch.zeros((5, 256), dtype=torch.int16, device=device)
        self.resize_rows(self.resize_columns(self.to_rgb(frames, 32, tables), 16), 16)

    def to_rgb(self, frames: Tensor, height: int, tables: Tensor) -> Tensor:
        """One kernel."""
        num_frames, _, width = frames.shape
        planes = torch.empty((num_frames, 3, height, width), dtype=torch.uint8, device=frames.device)
        num_pixels = height * width
        with torch.cuda.device(frames.device):
            grid = (triton.cdiv(num_pixels, _BLOCK), num_frames)
            _to_rgb[grid](frames, tables, planes, num_pixels, width, BLOCK=_BLOCK, **_LAUNCH)
        return planes

    def resize_columns(self, planes: Tensor, size: int) -> Tensor:
        """One kernel."""
        return self._resize(planes, planes.shape[-1], size, 1, (*planes.shape[:3], size))

    def resize_rows(self, planes: Tensor, size: int) -> Tensor:
        """One kernel."""
        num_frames, channels, height, width = planes.shape
        return self._resize(planes, height, size, width, (num_frames, channels, size, width))

    def _resize(self, planes: Tensor, size: int, new_size: int, inner: int, shape: tuple[int, ...]) -> Tensor:
        starts, weights, precision = device_taps(size, new_size, planes.device)
        resized = torch.empty(shape, dtype=torch.uint8, device=planes.device)
        num_new = shape[2] * shape[3]
        with torch.cuda.device(planes.device):
            grid = (triton.cdiv(num_new, _BLOCK), shape[0] * shape[1])
            _resize[grid](
                planes,
                starts,
                weights,
                resized,
                num_new,
                size,
                new_size,
                inner,
                precision,
                TAPS=weights.shape[1],
                BLOCK=_BLOCK,
                **_LAUNCH,
            )
        return resized
