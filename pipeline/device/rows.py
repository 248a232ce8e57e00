"""Decoded planes become patch rows on the device, with the bytes that the CPU decoder's rows have.

All of it is integer arithmetic: colours by swscale's tables (`media/colour.py`), then columns and rows by torch's own
taps (`media/resize.py`), each step rounded to bytes as there, then the patch order. `patch_rows` says it in plain
torch, on any device; on CUDA Triton's kernels do the same in a pass a step, where they can be compiled.

Planes come from the GPU's own decoders (NV12: U and V by turns), or from the CPU's with the request (`media/planes.py`:
all of U, then all of V).

Shapes: N = frames, H x W = their size, h x w = the resized one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from pipeline.media.colour import ColourTables
from pipeline.media.grid import MERGE_SIZE, NUM_CHANNELS, PATCH_SIZE
from pipeline.media.resize import Taps, resize_taps

_LOG = logging.getLogger(__name__)
_BYTES_AT_ONCE = 100 << 20  # of RGB: what bounds the temporaries
_MOST_AT_ONCE = 4096  # frames: CUDA takes 65,535 planes of them in a launch
_TEMPORAL_SIZE = 2
_LEVELS = 256
_LINE = torch.complex128  # any 16-byte type: it is only moved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """4:2:0 frames of one size on the device.

    `planes` are uint8 (N, H * W * 3/2), luma first, H and W even; `takes_turns` says that U and V do (NV12).
    `tables` are int16 (5, 256), in the order of ColourTables.
    """

    planes: Tensor
    height: int
    width: int
    tables: Tensor
    takes_turns: bool

    def part(self, start: int, stop: int) -> "Frames":
        """Some of the frames."""
        return replace(self, planes=self.planes[start:stop])


class RowMaker(Protocol):
    """The steps from frames to resized planes; all tensors are uint8 and contiguous."""

    def to_rgb(self, frames: Frames) -> Tensor:
        """(N, 3, H, W)."""
        ...

    def resize_columns(self, planes: Tensor, size: int) -> Tensor:
        """(N, 3, H, W) to (N, 3, H, size)."""
        ...

    def resize_rows(self, planes: Tensor, size: int) -> Tensor:
        """(N, 3, H, W) to (N, 3, size, W)."""
        ...


class TorchRowMaker:
    """Plain torch: what the bytes are."""

    def to_rgb(self, frames: Frames) -> Tensor:
        """Several kernels and int16 temporaries."""
        height, width, half = frames.height, frames.width, (frames.height // 2, frames.width // 2)
        luma, red_v, green_u, green_v, blue_u = frames.tables
        values, chroma = frames.planes[:, : height * width], frames.planes[:, height * width :]
        small = chroma.reshape(-1, *half, 2).movedim(-1, 1) if frames.takes_turns else chroma.reshape(-1, 2, *half)
        u, v = small.repeat_interleave(2, 2).repeat_interleave(2, 3).to(torch.int64).unbind(1)
        base = luma[values.reshape(-1, height, width).to(torch.int64)]
        colours = [base + red_v[v], base + green_u[u] + green_v[v], base + blue_u[u]]
        return torch.stack(colours, dim=1).clamp_(0, _LEVELS - 1).to(torch.uint8)

    def resize_columns(self, planes: Tensor, size: int) -> Tensor:
        """Two kernels a tap and int32 temporaries."""
        starts, weights, precision = device_taps(planes.shape[-1], size, planes.device)
        total = torch.full((*planes.shape[:-1], size), 1 << (precision - 1), dtype=torch.int32, device=planes.device)
        for tap in range(weights.shape[1]):
            places = (starts + tap).clamp_max_(planes.shape[-1] - 1)
            total += planes.index_select(-1, places).to(torch.int32) * weights[:, tap]
        return (total >> precision).clamp_(0, _LEVELS - 1).to(torch.uint8)

    def resize_rows(self, planes: Tensor, size: int) -> Tensor:
        """As `resize_columns`, turned."""
        return self.resize_columns(planes.transpose(-1, -2), size).transpose(-1, -2).contiguous()


def patch_rows(frames: Frames, order: Sequence[int], rows: Tensor, height: int, width: int, maker: RowMaker) -> None:
    """Make a video clip's patch rows.

    Args:
        frames: of the clip.
        order: for each sampled frame its place among them; the last one is repeated where the number is odd.
        rows: uint8 (t * h/16 * w/16, 1536) on the frames' device; filled in the order that `media/patchify.py` gives.
        height: of the resized frame, a multiple of 32.
        width: likewise.
        maker: does the steps.
    Cost: no copy from the host once a size is known, and no sync, but for an order that is not that of the frames.
    """
    num_frames = frames.planes.shape[0]
    planes = torch.empty((num_frames, NUM_CHANNELS, height, width), dtype=torch.uint8, device=rows.device)
    step = min(max(1, _BYTES_AT_ONCE // (NUM_CHANNELS * frames.height * frames.width)), _MOST_AT_ONCE)
    for start in range(0, num_frames, step):
        part = maker.to_rgb(frames.part(start, start + step))
        if part.shape[-1] != width:
            part = maker.resize_columns(part, width)
        if part.shape[-2] != height:
            part = maker.resize_rows(part, height)
        planes[start : start + step] = part
    _cut(planes, order, rows)


def _cut(planes: Tensor, order: Sequence[int], rows: Tensor) -> None:
    """Patches of frame pairs: (N, 3, h, w) to (t * h/16 * w/16, 1536); a patch's line is moved as one element."""
    padded = [*order, *order[-1:]] if len(order) % _TEMPORAL_SIZE else list(order)
    if padded != list(range(len(planes))):
        planes = planes.index_select(0, torch.tensor(padded).to(planes.device, non_blocking=True))
    down, across = (size // (PATCH_SIZE * MERGE_SIZE) for size in planes.shape[-2:])
    lines = planes.view(_LINE).view(-1, _TEMPORAL_SIZE, NUM_CHANNELS, down, MERGE_SIZE, PATCH_SIZE, across, MERGE_SIZE)
    target = rows.view(_LINE).view(-1, down, across, MERGE_SIZE, MERGE_SIZE, NUM_CHANNELS, _TEMPORAL_SIZE, PATCH_SIZE)
    target.copy_(lines.permute(0, 3, 6, 4, 7, 2, 1, 5))


@lru_cache(maxsize=4096)
def device_taps(size: int, new_size: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """A direction's taps on a device: starts int32 (new,), weights int32 (new, taps), precision."""
    taps: Taps = resize_taps(size, new_size)
    return torch.from_numpy(taps.starts).to(device), torch.from_numpy(taps.weights).to(device), taps.precision


@lru_cache(maxsize=32)
def colour_lookup(tables: ColourTables, device: torch.device) -> Tensor:
    """Tables on a device, int16 (5, 256)."""
    return torch.from_numpy(tables.stacked()).to(device)


def make_row_maker(device: torch.device) -> RowMaker:
    """Triton's kernels where they can be compiled, plain torch elsewhere."""
    if device.type == "cuda":
        try:
            from pipeline.device.triton_rows import TritonRowMaker

            return TritonRowMaker(device)
        except Exception as error:  # no Triton, no compiler for its launchers, a card it does not know
            _LOG.warning("rows_without_triton reason=%s", error)
    return TorchRowMaker()
