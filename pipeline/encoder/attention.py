"""Attention inside temporal patches, as dense batches.

No patch sees beyond its own temporal patch, and neighbours in a request mostly have the same number of patches. So
a run of equal temporal patches is one dense batch: no padding, and lengths that stay Python integers, so there is no
`cu_seqlens` tensor that somebody would have to read back. The price is one call a run where sizes are mixed. Here is
torch's own attention; `triton_kernels` has the one for CUDA. Source: transformers 5.23 Qwen3VLVisionAttention.

Shapes: P = patches, F = temporal patches of a run, S = patches of each, D = hidden, A = heads, E = head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRun:
    """Consecutive temporal patches of `num_patches` patches each."""

    num_frames: int
    num_patches: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """Where a pass's patches are, as its kernels want to know it, and the runs of equal temporal patches.

    Rotary angles `cos` and `sin` are float32 (p, E / 2) with p dividing P: one table serves every temporal patch where
    all have one (h, w). `coordinates` is float32 (2, P), each patch's row and column.
    """

    cos: Tensor
    sin: Tensor
    coordinates: Tensor
    runs: tuple[FrameRun, ...]


def frame_runs(grid_thw: Sequence[Sequence[int]]) -> tuple[FrameRun, ...]:
    """Group a request's temporal patches into runs of equal size, in order."""
    sizes = groupby(grid_thw, key=lambda grid: grid[1] * grid[2])
    return tuple(FrameRun(num_frames=sum(grid[0] for grid in run), num_patches=size) for size, run in sizes)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head's channel pairs (i, i + E / 2) by the patch's angles.

    Args:
        heads: (P, ..., E) in any float dtype.
        cos: float32 (P, E / 2).
        sin: likewise.
    Returns: a new tensor like `heads`, computed in float32 and rounded once.
    Cost: four kernels, one float32 temporary of half the size. Source: transformers' apply_rotary_pos_emb_vision.
    """
    middle = [1] * (heads.dim() - 2)
    cos, sin = (angles.view(angles.shape[0], *middle, -1) for angles in (cos, sin))
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    first, second = heads.chunk(2, dim=-1)
    turned_first, turned_second = turned.chunk(2, dim=-1)
    torch.addcmul(first * cos, second, sin, value=-1, out=turned_first)
    torch.addcmul(second * cos, first, sin, out=turned_second)
    return turned


def attend(qkv: Tensor, runs: Sequence[FrameRun]) -> Tensor:
    """Attention of each temporal patch over itself, by torch.

    Args:
        qkv: (P, 3, A, E).
        runs: how the P patches fall into temporal patches.
    Returns: (P, A * E).
    Cost: one attention call a run; where there is more than one run, one copy.
    """
    parts = torch.split(qkv, [run.num_frames * run.num_patches for run in runs])
    outputs = [_attend_run(run, part) for run, part in zip(runs, parts, strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_run(run: FrameRun, qkv: Tensor) -> Tensor:
    frames_FS3AE = qkv.view(run.num_frames, run.num_patches, *qkv.shape[1:])
    query, key, value = (heads.transpose(1, 2) for heads in frames_FS3AE.unbind(2))
    output_FASE = functional.scaled_dot_product_attention(query, key, value)
    return output_FASE.transpose(1, 2).flatten(2).flatten(0, 1)
