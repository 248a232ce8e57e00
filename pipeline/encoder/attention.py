"""Attention inside temporal patches, as dense batches.

No patch sees beyond its own temporal patch, and neighbours in a request mostly have the same number of patches. So
a run of equal temporal patches is one dense batch for `scaled_dot_product_attention`: no padding, any kernel that
torch has, and lengths that stay Python integers, so there is no `cu_seqlens` tensor that somebody would have to read
back. The price is one call a run where sizes are mixed. Source: transformers 5.23 Qwen3VLVisionAttention.

Shapes: P = patches, F = temporal patches of a run, S = patches of each, D = hidden, A = heads, E = head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRun:
    """Consecutive temporal patches of `num_patches` patches each."""

    num_frames: int
    num_patches: int


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


def attend(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[FrameRun]) -> Tensor:
    """Attention of each temporal patch over itself.

    Args:
        query: (P, A, E).
        key: likewise.
        value: likewise.
        runs: how the P patches fall into temporal patches.
    Returns: (P, A * E).
    Cost: one attention call a run; where there is more than one run, one copy.
    """
    lengths = [run.num_frames * run.num_patches for run in runs]
    splits = zip(runs, *(torch.split(tensor, lengths) for tensor in (query, key, value)), strict=True)
    outputs = [_attend_run(run, *heads) for run, *heads in splits]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_run(run: FrameRun, *query_key_value: Tensor) -> Tensor:
    query, key, value = (
        tensor.view(run.num_frames, run.num_patches, *tensor.shape[1:]).transpose(1, 2) for tensor in query_key_value
    )
    output_FASE = functional.scaled_dot_product_attention(query, key, value)
    return output_FASE.transpose(1, 2).flatten(2).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_PD: Tensor, cos_PE: Tensor, sin_PE: Tensor, runs: Sequence[FrameRun]) -> Tensor:
        """Map (P, D) to (P, D); `cos_PE` and `sin_PE` are float32 (P, E / 2)."""
        qkv_P3AE = self.qkv(hidden_PD).view(hidden_PD.shape[0], 3, self.num_heads, -1)
        query, key = rotate(qkv_P3AE[:, :2], cos_PE, sin_PE).unbind(1)
        output: Tensor = self.proj(attend(query, key, qkv_P3AE[:, 2], runs))
        return output
