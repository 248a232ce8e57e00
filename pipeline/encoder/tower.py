"""The vision tower of Qwen3-VL and Qwen3.5: patches in, one token for each 2 x 2 patches out.

One tower serves all families; they differ in its dimensions and in whether it has deepstack mergers. Attribute names
are those of the checkpoints. The patch embedding is a matrix product: patches do not overlap, so the checkpoint's
3-d convolution is one. For inference alone: the residual stream is updated in place, by the products themselves, and
without their biases: these are summed once a pass, in float32, and what reads the stream adds the sum of those that
came before (`kernels` says why). Source: transformers 5.23 models/qwen3_vl and models/qwen3_5.

Shapes: P = patches, D = hidden, M = 4 * D, E = head_dim, A = heads, N = tokens (P / 4), O = out_hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.checkpoint import VisionSpec
from pipeline.encoder.attention import Place, frame_runs
from pipeline.encoder.kernels import Kernels, TorchKernels
from pipeline.encoder.positions import GridPositions, PositionTables

_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerOutput:
    """Tokens (N, O), and as many more of that shape as there are deepstack taps, if they were asked for."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Stream:
    """The residual stream `hidden` (P, D), and what is `late`: computed, and left to the next kernel to add."""

    hidden: Tensor
    late: Tensor | None = None

    def settled(self) -> Tensor:
        """`hidden` with nothing left to add."""
        if self.late is not None:
            self.hidden += self.late
            self.late = None
        return self.hidden


class PatchEmbed(nn.Module):
    """Projects a patch row of 1536 values to D channels."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.proj = nn.Linear(spec.patch_values, spec.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (P, 1536) to (P, D)."""
        hidden: Tensor = self.proj(pixel_values)
        return hidden


class Attention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    def __init__(self, spec: VisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self.heads = (3, spec.num_heads, spec.head_dim)
        self.qkv = nn.Linear(spec.hidden_size, 3 * spec.hidden_size)
        self.proj = nn.Linear(spec.hidden_size, spec.hidden_size)

    def add_to(self, hidden_PD: Tensor, normed_PD: Tensor, place: Place) -> None:
        """Add the result for `normed_PD`, but for the bias of `proj`, to `hidden_PD` in place."""
        qkv_P3AE = self._kernels.project(normed_PD, self.qkv, self.heads, place)
        self._kernels.add_product_(hidden_PD, self._kernels.attend(qkv_P3AE, place.runs), self.proj.weight)

    def arrange(self) -> None:
        """Bring `qkv`, once its weights are there, into the order in which the kernels want its channels."""
        self._kernels.arrange_(self.qkv, self.heads)


class Mlp(nn.Module):
    """Two layers around a tanh-approximated GELU."""

    def __init__(self, spec: VisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self.linear_fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.linear_fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def add_to(self, hidden_PD: Tensor, normed_PD: Tensor) -> None:
        """Add the result for `normed_PD`, but for the bias of `linear_fc2`, to `hidden_PD` in place."""
        widened_PM = self._kernels.linear_gelu(normed_PD, self.linear_fc1)
        self._kernels.add_product_(hidden_PD, widened_PM, self.linear_fc2.weight)


class Merger(nn.Module):
    """Four neighbouring patches to one token.

    The main merger normalises each patch and then joins four; deepstack mergers join first. Its GELU is the exact one.
    """

    def __init__(self, spec: VisionSpec, kernels: Kernels, *, join_first: bool) -> None:
        super().__init__()
        self._kernels = kernels
        self.merged_size = spec.hidden_size * spec.merged_patches
        self.join_first = join_first
        self.norm = nn.LayerNorm(self.merged_size if join_first else spec.hidden_size, eps=_NORM_EPS)
        self.linear_fc1 = nn.Linear(self.merged_size, self.merged_size)
        self.linear_fc2 = nn.Linear(self.merged_size, spec.out_hidden_size)

    def forward(self, hidden_PD: Tensor, offset_D: Tensor) -> Tensor:
        """Map (P, D), to which float32 `offset_D` is still to be added, to (N, O)."""
        joined = hidden_PD.view(-1, self.merged_size) if self.join_first else hidden_PD
        normed_NM = self._kernels.layer_norm(joined, offset_D, self.norm).view(-1, self.merged_size)
        tokens_NO: Tensor = self.linear_fc2(functional.gelu(self.linear_fc1(normed_NM)))
        return tokens_NO


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, spec: VisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self.norm1 = nn.LayerNorm(spec.hidden_size, eps=_NORM_EPS)
        self.norm2 = nn.LayerNorm(spec.hidden_size, eps=_NORM_EPS)
        self.attn = Attention(spec, kernels)
        self.mlp = Mlp(spec, kernels)

    @property
    def stream_biases(self) -> tuple[Tensor, Tensor]:
        """What attention and MLP leave out of their results, each (D,)."""
        return self.attn.proj.bias, self.mlp.linear_fc2.bias

    def add_to(self, stream: Stream, offset_2D: Tensor, place: Place) -> None:
        """Update the stream in place; float32 `offset_2D` is what it lacks before attention and MLP."""
        hidden_PD = stream.hidden
        self.attn.add_to(hidden_PD, self._kernels.layer_norm(hidden_PD, offset_2D[0], self.norm1), place)
        self.mlp.add_to(hidden_PD, self._kernels.layer_norm(hidden_PD, offset_2D[1], self.norm2))


class VisionTower(nn.Module):
    """The whole encoder, from normalised patch rows to tokens. `weights.load_tower` makes one that is ready."""

    def __init__(self, spec: VisionSpec, kernels: Kernels | None = None) -> None:
        super().__init__()
        kernels = kernels or TorchKernels()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec)
        # Not drawn: on the meta device that loads torch's compiler (2.11), more than a second in every encode process.
        shape = spec.num_position_embeddings, spec.hidden_size
        self.pos_embed = nn.Embedding(*shape, _weight=torch.empty(shape))
        self.positions = PositionTables(spec)
        self.blocks = nn.ModuleList(Block(spec, kernels) for _ in range(spec.depth))
        self.merger = Merger(spec, kernels, join_first=False)
        if spec.deepstack_visual_indexes:
            taps = spec.deepstack_visual_indexes
            self.deepstack_merger_list = nn.ModuleList(Merger(spec, kernels, join_first=True) for _ in taps)

    def forward(
        self, pixel_values: Tensor, grid_thw: Sequence[Sequence[int]], *, with_deepstack: bool = False
    ) -> TowerOutput:
        """Encode the patches of one or more clips.

        Args:
            pixel_values: (P, 1536) in the tower's dtype, clip after clip, each in merge-block order.
            grid_thw: [[t, h, w], ...] in patches, Python ints; h and w are even, and P = sum(t * h * w).
            with_deepstack: compute the deepstack tokens too, at a merger's cost each.
        Cost: no copy from the host and no sync; `memory.peak_bytes` says how much memory.
        """
        stream = Stream(hidden=self.patch_embed(pixel_values))
        place = self._add_positions(stream.hidden, grid_thw)
        offsets = self._offsets()
        deepstack = []
        for index, block in enumerate(self.typed_blocks):
            block.add_to(stream, offsets[2 * index : 2 * index + 2], place)
            if with_deepstack and index in self.spec.deepstack_visual_indexes:
                tap = self.spec.deepstack_visual_indexes.index(index)
                deepstack.append(self.deepstack_merger_list[tap](stream.settled(), offsets[2 * index + 2]))
        return TowerOutput(tokens=self.merger(stream.settled(), offsets[-1]), deepstack=tuple(deepstack))

    def arrange(self) -> None:
        """Bring the weights, once they are there, into the order that the kernels want; not twice."""
        for block in self.typed_blocks:
            block.attn.arrange()

    def hold(self, height: int, width: int) -> GridPositions:
        """Make a grid's positions, or find them, to be kept by the caller for as long as a graph reads them."""
        positions: GridPositions = self.positions(self.pos_embed.weight, height, width)
        return positions

    @property
    def typed_blocks(self) -> list[Block]:
        """The blocks, in order, by their type."""
        return cast("list[Block]", self.blocks)

    def _offsets(self) -> Tensor:
        """Sum the biases that the stream lacks before each half block and at the end: float32 (2 * depth + 1, D)."""
        biases = torch.stack([bias for block in self.typed_blocks for bias in block.stream_biases]).to(torch.float32)
        return functional.pad(biases, (0, 0, 1, 0)).cumsum(0)

    def _add_positions(self, hidden_PD: Tensor, grid_thw: Sequence[Sequence[int]]) -> Place:
        """Add the learned positions in place; return where the patches are."""
        cosines, sines, coordinates, start = [], [], [], 0
        groups = [
            (shape, sum(grid[0] for grid in grids))
            for shape, grids in groupby(grid_thw, key=lambda grid: (grid[1], grid[2]))
        ]
        for (height, width), num_frames in groups:
            positions = self.hold(height, width)
            stop = start + num_frames * height * width
            hidden_PD[start:stop].view(num_frames, height * width, -1).add_(positions.learned)
            times = num_frames if len(groups) > 1 else 1
            cosines.append(positions.cos.repeat(times, 1) if times > 1 else positions.cos)
            sines.append(positions.sin.repeat(times, 1) if times > 1 else positions.sin)
            coordinates.append(positions.coordinates.repeat(1, num_frames))
            start = stop
        cos, sin = (tables[0] if len(groups) == 1 else torch.cat(tables) for tables in (cosines, sines))
        return Place(cos=cos, sin=sin, coordinates=torch.cat(coordinates, dim=1), runs=frame_runs(grid_thw))
