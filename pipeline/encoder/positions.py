"""Where a patch is: learned positions resampled to its grid, and rotary angles.

Both depend on the grid's height and width alone, never on time or content, so they are made once for each (h, w)
and kept, least recently used out first. They are made by operations on the device from Python integers: a new
grid size costs a few kernels, and never a copy from the host or a sync.
Source: transformers 5.23 vision_utils (bilinear, align_corners=True) and Qwen3VLVisionRotaryEmbedding (axial).

Shapes: S = patches of one temporal patch (h * w) in merge-block order, D = hidden, E = head_dim.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import isqrt
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.checkpoint import VisionSpec

_ROTARY_THETA = 10_000.0
# Some 350 MB for the widest tower in bfloat16: over a hundred grids of a usual size, or two of the largest images.
MAX_CACHED_PATCHES = 131_072


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridPositions:
    """Positions of one (h, w) grid, the same for each of its temporal patches.

    `learned` is (S, D) in the tower's dtype. `cos` and `sin` are float32 (S, E / 2): the second half of a head turns
    by the same angles as the first. `coordinates` is float32 (2, S), each patch's row and column.
    """

    learned: Tensor
    cos: Tensor
    sin: Tensor
    coordinates: Tensor


class PositionTables(nn.Module):
    """Makes and keeps `GridPositions`, for the threads of one stream.

    Not for a tower whose weights still change: what is kept would be stale.
    """

    inverse_frequencies: Tensor

    def __init__(self, spec: VisionSpec, max_cached_patches: int = MAX_CACHED_PATCHES) -> None:
        super().__init__()
        self._merge_size = spec.spatial_merge_size
        self._max_cached_patches = max_cached_patches
        self._cache: OrderedDict[tuple[int, int], GridPositions] = OrderedDict()
        self._num_cached_patches = 0
        self._lock = Lock()
        # On the CPU even while the tower is built on the meta device: no checkpoint holds this buffer.
        self.register_buffer("inverse_frequencies", inverse_frequencies(spec.head_dim), persistent=False)

    def forward(self, table: Tensor, height: int, width: int) -> GridPositions:
        """Positions of a grid.

        Args:
            table: the learned positions (side * side, D).
            height: patches down, a multiple of the merge size.
            width: patches across, likewise.
        Cost: nothing for a grid seen lately, else about twenty small kernels; no sync either way.
        """
        key = (height, width)
        with self._lock:
            found = self._cache.get(key)
            if found is None:
                found = self._make(table, height, width)
                self._keep(key, found)
            else:
                self._cache.move_to_end(key)
            return found

    def _make(self, table: Tensor, height: int, width: int) -> GridPositions:
        rows, columns = merge_order(height, width, self._merge_size, table.device)
        angles = torch.cat([axis[:, None] * self.inverse_frequencies for axis in (rows, columns)], dim=1)
        cos, sin = _cos_sin(angles)
        learned = _interpolate(table, rows, columns, height, width)
        coordinates = torch.stack([rows, columns]).to(torch.float32)
        return GridPositions(learned=learned, cos=cos, sin=sin, coordinates=coordinates)

    def _keep(self, key: tuple[int, int], positions: GridPositions) -> None:
        self._cache[key] = positions
        self._num_cached_patches += key[0] * key[1]
        while self._num_cached_patches > self._max_cached_patches:
            (height, width), _ = self._cache.popitem(last=False)
            self._num_cached_patches -= height * width


def inverse_frequencies(head_dim: int) -> Tensor:
    """Radians a step along an axis, of each pair of channels that turns by that axis: float32 (E / 4,), on the CPU."""
    axis_dim = head_dim // 2
    exponents = torch.arange(0, axis_dim, 2, dtype=torch.float32, device="cpu") / axis_dim
    return 1.0 / (_ROTARY_THETA**exponents)


def merge_order(height: int, width: int, merge_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each patch of a grid, as int64 (S,), one merge block after the other."""
    blocks = (height // merge_size, width // merge_size, merge_size, merge_size)
    rows = torch.arange(height, device=device).view(blocks[0], 1, merge_size, 1)
    columns = torch.arange(width, device=device).view(1, blocks[1], 1, merge_size)
    return rows.expand(blocks).flatten(), columns.expand(blocks).flatten()


def _cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 like the angles.

    On a CPU by numpy, rounded from float64: torch (2.13) calls MKL's vector library, which in one process of ten gives
    its first cosines in fewer bits, even in float64, and a request's vectors with them.
    """
    if angles.device.type != "cpu":
        return angles.cos(), angles.sin()
    exact = angles.numpy().astype(np.float64)
    cos, sin = (torch.from_numpy(function(exact).astype(np.float32)) for function in (np.cos, np.sin))
    return cos, sin


def _interpolate(table: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Four taps weighted and summed in float32, then rounded to the table's dtype: (S, D)."""
    side = isqrt(table.shape[0])
    learned_SD = torch.zeros((rows.shape[0], table.shape[1]), dtype=torch.float32, device=table.device)
    for row_tap, row_weight in _axis_taps(rows, height, side):
        for column_tap, column_weight in _axis_taps(columns, width, side):
            learned_SD += table[row_tap * side + column_tap] * (row_weight * column_weight)[:, None]
    return learned_SD.to(table.dtype)


def _axis_taps(index: Tensor, size: int, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Find the two table rows (or columns) around each index, with their weights."""
    # Filled on the device: CUDA would multiply by the reciprocal of a Python divisor, and miss the last row.
    intervals = torch.full((), max(size - 1, 1), dtype=torch.float32, device=index.device)
    source = index.to(torch.float32) * (side - 1) / intervals
    floor = source.floor()
    low = floor.long()
    low_weight = 1 - (source - floor)
    return (low, low_weight), ((low + 1).clamp(max=side - 1), 1 - low_weight)
