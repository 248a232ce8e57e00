"""The vision tower of Qwen3-VL and Qwen3.5: patches in, one token for each 2 x 2 patches out.

One tower serves all families; they differ in its dimensions and in whether it has deepstack mergers. Attribute names
are those of the checkpoints. The patch embedding is a matrix product: patches do not overlap, so the checkpoint's
3-d convolution is one. For inference alone: the residual stream is updated in place, which saves a temporary of its
size twice a block. Source: transformers 5.23 models/qwen3_vl and models/qwen3_5.

Shapes: P = patches, D = hidden, M = 4 * D, E = head_dim, N = tokens (P / 4), O = out_hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.checkpoint import VisionSpec
from pipeline.encoder.attention import Attention, FrameRun, frame_runs
from pipeline.encoder.positions import PositionTables

_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerOutput:
    """Tokens (N, O), and as many more of that shape as there are deepstack taps, if they were asked for."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...]


class PatchEmbed(nn.Module):
    """Projects a patch row of 1536 values to D channels."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.proj = nn.Linear(spec.patch_values, spec.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (P, 1536) to (P, D)."""
        hidden: Tensor = self.proj(pixel_values)
        return hidden


class Mlp(nn.Module):
    """Two layers around a tanh-approximated GELU."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.linear_fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """Map (P, D) to (P, D)."""
        output: Tensor = self.linear_fc2(functional.gelu(self.linear_fc1(hidden_PD), approximate="tanh"))
        return output


class Merger(nn.Module):
    """Four neighbouring patches to one token.

    The main merger normalises each patch and then joins four; deepstack mergers join first. Its GELU is the exact one.
    """

    def __init__(self, spec: VisionSpec, *, join_first: bool) -> None:
        super().__init__()
        self.merged_size = spec.hidden_size * spec.merged_patches
        self.join_first = join_first
        self.norm = nn.LayerNorm(self.merged_size if join_first else spec.hidden_size, eps=_NORM_EPS)
        self.linear_fc1 = nn.Linear(self.merged_size, self.merged_size)
        self.linear_fc2 = nn.Linear(self.merged_size, spec.out_hidden_size)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """Map (P, D) to (N, O)."""
        joined = hidden_PD.view(-1, self.merged_size) if self.join_first else hidden_PD
        normed_NM = self.norm(joined).view(-1, self.merged_size)
        tokens_NO: Tensor = self.linear_fc2(functional.gelu(self.linear_fc1(normed_NM)))
        return tokens_NO


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.hidden_size, eps=_NORM_EPS)
        self.norm2 = nn.LayerNorm(spec.hidden_size, eps=_NORM_EPS)
        self.attn = Attention(spec.hidden_size, spec.num_heads)
        self.mlp = Mlp(spec)

    def forward(self, hidden_PD: Tensor, cos_PE: Tensor, sin_PE: Tensor, runs: Sequence[FrameRun]) -> Tensor:
        """Update `hidden_PD` (P, D) in place and return it."""
        hidden_PD += self.attn(self.norm1(hidden_PD), cos_PE, sin_PE, runs)
        hidden_PD += self.mlp(self.norm2(hidden_PD))
        return hidden_PD


class VisionTower(nn.Module):
    """The whole encoder, from normalised patch rows to tokens. `weights.load_tower` makes one that is ready."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec)
        self.pos_embed = nn.Embedding(spec.num_position_embeddings, spec.hidden_size)
        self.positions = PositionTables(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.merger = Merger(spec, join_first=False)
        if spec.deepstack_visual_indexes:
            taps = spec.deepstack_visual_indexes
            self.deepstack_merger_list = nn.ModuleList(Merger(spec, join_first=True) for _ in taps)

    def forward(
        self, pixel_values: Tensor, grid_thw: Sequence[Sequence[int]], *, with_deepstack: bool = False
    ) -> TowerOutput:
        """Encode the patches of one or more clips.

        Args:
            pixel_values: (P, 1536) in the tower's dtype, clip after clip, each in merge-block order.
            grid_thw: [[t, h, w], ...] in patches, Python ints; h and w are even, and P = sum(t * h * w).
            with_deepstack: compute the deepstack tokens too, at a merger's cost each.
        Cost: no copy from the host and no sync. The peak is in the MLP: about 2 * P * (D + intermediate) elements.
        """
        hidden_PD = self.patch_embed(pixel_values)
        cos_PE, sin_PE = self._add_positions(hidden_PD, grid_thw)
        runs = frame_runs(grid_thw)
        deepstack = []
        for index, block in enumerate(self.blocks):
            hidden_PD = block(hidden_PD, cos_PE, sin_PE, runs)
            if with_deepstack and index in self.spec.deepstack_visual_indexes:
                tap = self.spec.deepstack_visual_indexes.index(index)
                deepstack.append(self.deepstack_merger_list[tap](hidden_PD))
        return TowerOutput(tokens=self.merger(hidden_PD), deepstack=tuple(deepstack))

    def _add_positions(self, hidden_PD: Tensor, grid_thw: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Add the learned positions in place; return the rotary cos and sin of every patch, float32 (P, E / 2)."""
        cosines, sines, start = [], [], 0
        for (height, width), grids in groupby(grid_thw, key=lambda grid: (grid[1], grid[2])):
            num_frames = sum(grid[0] for grid in grids)
            positions = self.positions(self.pos_embed.weight, height, width)
            stop = start + num_frames * height * width
            hidden_PD[start:stop].view(num_frames, height * width, -1).add_(positions.learned)
            cosines.append(positions.cos.expand(num_frames, -1, -1).flatten(0, 1))
            sines.append(positions.sin.expand(num_frames, -1, -1).flatten(0, 1))
            start = stop
        return torch.cat(cosines), torch.cat(sines)
