"""Decoded planes become patch rows on the device, with the bytes that the CPU decoder's rows have.

All of it is integer arithmetic: colours by swscale's tables (`media/colour.py`), then columns and rows by torch's own
taps (`media/resize.py`), each step rounded to bytes as there, then the patch order. `patch_rows` says it in plain
torch, on any device; on CUDA Triton's kernels do the same in a pass a step, where they can be compiled.

Shapes: N = frames, H x W = their size, h x w = the resized one.
"""

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.media.colour import ColourTables
from pipeline.media.grid import MERGE_SIZE, NUM_CHANNELS, PATCH_SIZE
from pipeline.media.resize import Taps, resize_taps

_LOG = logging.getLogger(__name__)
_FRAMES_AT_ONCE = 16  # of one size: what bounds the temporaries
_TEMPORAL_SIZE = 2
_LEVELS = 256


class RowMaker(Protocol):
    """The three steps from NV12 frames to patch rows; all tensors are uint8 and contiguous."""

    def to_rgb(self, frames: Tensor, height: int, tables: Tensor) -> Tensor:
        """(N, H * 3/2, W) to (N, 3, H, W); `tables` are int16 (5, 256), in the order of ColourTables."""
        ...

    def resize_columns(self, planes: Tensor, size: int) -> Tensor:
        """(N, 3, H, W) to (N, 3, H, size)."""
        ...

    def resize_rows(self, planes: Tensor, size: int) -> Tensor:
        """(N, 3, H, W) to (N, 3, size, W)."""
        ...


class TorchRowMaker:
    """Plain torch: what the bytes are."""

    def to_rgb(self, frames: Tensor, height: int, tables: Tensor) -> Tensor:
        """Several kernels and int16 temporaries."""
        num_frames, _, width = frames.shape
        luma, red_v, green_u, green_v, blue_u = tables
        chroma = frames[:, height:].reshape(num_frames, height // 2, width // 2, 2)
        u, v = (
            plane.repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.int64) for plane in chroma.unbind(dim=-1)
        )
        base = luma[frames[:, :height].to(torch.int64)]
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


def patch_rows(
    frames: Tensor, order: Sequence[int], tables: ColourTables, height: int, width: int, maker: RowMaker
) -> Tensor:
    """Make a video clip's patch rows of its distinct frames.

    Args:
        frames: uint8 (N, H * 3/2, W), NV12; H and W even.
        order: for each sampled frame its place among them; the last one is repeated where the number is odd.
        tables: of the frames' colours.
        height: of the resized frame, a multiple of 32.
        width: likewise.
        maker: does the steps.
    Returns: uint8 (t * h/16 * w/16, 1536), in the order that `media/patchify.py` gives, on the frames' device.
    Cost: no copy from the host once a size is known, no sync.
    """
    num_planes = frames.shape[1]
    source_height = num_planes * 2 // 3
    lookup = colour_lookup(tables, frames.device)
    planes = torch.empty((frames.shape[0], NUM_CHANNELS, height, width), dtype=torch.uint8, device=frames.device)
    for start in range(0, frames.shape[0], _FRAMES_AT_ONCE):
        part = maker.to_rgb(frames[start : start + _FRAMES_AT_ONCE], source_height, lookup)
        if part.shape[-1] != width:
            part = maker.resize_columns(part, width)
        if part.shape[-2] != height:
            part = maker.resize_rows(part, height)
        planes[start : start + part.shape[0]] = part
    return _cut(planes, order, height, width)


def _cut(planes: Tensor, order: Sequence[int], height: int, width: int) -> Tensor:
    """Patches of frame pairs: (N, 3, h, w) to (t * h/16 * w/16, 1536)."""
    padded = [*order, *order[-1:]] if len(order) % _TEMPORAL_SIZE else list(order)
    if padded != list(range(len(planes))):
        planes = planes.index_select(0, torch.tensor(padded).to(planes.device, non_blocking=True))
    down, across = (size // (PATCH_SIZE * MERGE_SIZE) for size in (height, width))
    blocks = down, MERGE_SIZE, PATCH_SIZE, across, MERGE_SIZE, PATCH_SIZE
    rows = planes.view(-1, _TEMPORAL_SIZE, NUM_CHANNELS, *blocks).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return rows.reshape(-1, NUM_CHANNELS * _TEMPORAL_SIZE * PATCH_SIZE * PATCH_SIZE)


@lru_cache(maxsize=64)
def device_taps(size: int, new_size: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """A direction's taps on a device: starts int32 (new,), weights int32 (new, taps), precision."""
    taps: Taps = resize_taps(size, new_size)
    return torch.from_numpy(taps.starts).to(device), torch.from_numpy(taps.weights).to(device), taps.precision


@lru_cache(maxsize=32)
def colour_lookup(tables: ColourTables, device: torch.device) -> Tensor:
    """Tables on a device, int16 (5, 256)."""
    stacked = (tables.luma, tables.red_v, tables.green_u, tables.green_v, tables.blue_u)
    return torch.from_numpy(np.stack(stacked)).to(device)


def make_row_maker(device: torch.device) -> RowMaker:
    """Triton's kernels where they can be compiled, plain torch elsewhere."""
    if device.type == "cuda":
        try:
            from pipeline.device.nvdec.triton_rows import TritonRowMaker

            return TritonRowMaker(device)
        except Exception as error:  # no Triton, no compiler for its launchers, a card it does not know
            _LOG.warning("nvdec_rows_without_triton reason=%s", error)
    return TorchRowMaker()


class RowQueue:
    """Makes rows beside what the encoder computes, for many threads.

    Args:
        device: where frames come from and rows go to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._maker = make_row_maker(device)
        self._queueing = threading.Lock()
        # Rows are short work that whole requests wait for: they go before the encoder's.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def make(self, frames: Tensor, order: Sequence[int], tables: ColourTables, height: int, width: int) -> Tensor:
        """What `patch_rows` makes, complete on return: the frames' memory may then be written again.

        Raises: torch.OutOfMemoryError; by then, too, nothing reads the frames any more.
        Cost: waits for this work, not for the encoder's.
        """
        if self._stream is None:
            return patch_rows(frames, order, tables, height, width, self._maker)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                with self._queueing:
                    rows = patch_rows(frames, order, tables, height, width, self._maker)
                rows.record_stream(torch.cuda.default_stream(self._device))
            finally:
                done = torch.cuda.Event()
                done.record(self._stream)
                done.synchronize()
        return rows
