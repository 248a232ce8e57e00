# mypy: ignore-errors
# Triton comes with torch's CUDA wheels alone, so its types are not there to be checked on a CPU.
"""The steps from 4:2:0 frames to resized planes as Triton kernels: each byte read from memory once, or out of a cache.

Import this on a machine with CUDA only; `rows.py` does, and says in plain torch what the kernels compute. Sizes are
run-time numbers: a kernel is compiled once for a number of taps, never for a size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.device.rows import Frames, device_taps

_BLOCK = 1024
_SIZES_BY_TAPS = (48, 28, 24, 20, 16)  # from 32 pixels: 4 to 8 taps, what frames are resized with that come as planes
_LAUNCH = {"num_warps": 4}


@triton.jit
def _clip_byte(values):
    return tl.minimum(tl.maximum(values, 0), 255).to(tl.uint8)


@triton.jit(do_not_specialize=["num_pixels", "width"])
def _to_rgb(frames, tables, planes, num_pixels, width, TAKES_TURNS: tl.constexpr, BLOCK: tl.constexpr):
    frame = tl.program_id(1).to(tl.int64)
    pixels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixels < num_pixels
    rows = pixels // width
    columns = pixels - rows * width
    start = frames + frame * (num_pixels + num_pixels // 2)
    y = tl.load(start + pixels, mask=inside, other=0).to(tl.int32)
    place = (rows // 2) * (width // 2) + columns // 2
    if TAKES_TURNS:
        chroma = start + num_pixels + place * 2
        u = tl.load(chroma, mask=inside, other=0).to(tl.int32)
        v = tl.load(chroma + 1, mask=inside, other=0).to(tl.int32)
    else:
        chroma = start + num_pixels + place
        u = tl.load(chroma, mask=inside, other=0).to(tl.int32)
        v = tl.load(chroma + num_pixels // 4, mask=inside, other=0).to(tl.int32)
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
        for takes_turns in (False, True):
            frames = Frames(
                planes=torch.zeros((1, 1536), dtype=torch.uint8, device=device),
                height=32,
                width=32,
                tables=torch.zeros((5, 256), dtype=torch.int16, device=device),
                takes_turns=takes_turns,
            )
            planes = self.to_rgb(frames)
        for size in _SIZES_BY_TAPS:
            self.resize_columns(planes, size)

    def to_rgb(self, frames: Frames) -> Tensor:
        """One kernel."""
        num_frames, device = frames.planes.shape[0], frames.planes.device
        planes = torch.empty((num_frames, 3, frames.height, frames.width), dtype=torch.uint8, device=device)
        num_pixels = frames.height * frames.width
        with torch.cuda.device(device):
            _to_rgb[(triton.cdiv(num_pixels, _BLOCK), num_frames)](
                frames.planes,
                frames.tables,
                planes,
                num_pixels,
                frames.width,
                TAKES_TURNS=frames.takes_turns,
                BLOCK=_BLOCK,
                **_LAUNCH,
            )
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
