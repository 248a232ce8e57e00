"""The blocks' matrix products in 8-bit floating point, for who asks for it: `encode.dtype=float8`.

Weights are rounded once, each output channel scaled to the whole range of e4m3; activations as they come, each patch
with a scale of its own, so that there is nothing to calibrate and a patch's result does not depend on its
neighbours. LayerNorm and GELU write 8 bits and scales themselves, which costs no further pass over the memory.
Attention, the patch embedding, mergers and norms stay in bfloat16; so does the residual stream, to which the product
adds, or where it cannot, the next LayerNorm. `calibration` refuses a tower that this changes too much.

Where GELU's result is written in 8 bits by the product itself, its scale must be known beforehand. A normalised row has
length sqrt(D) before the LayerNorm's weight g and bias b, so no value of W (g * x + b) + c is beyond
sqrt(D) * |W * g| + |W b + c|, each by the rows of W; the largest of these is the scale for every patch. Rounding
factors to three bits can add an eighth to each term of a sum, however much of it cancels.

The MLP is widened by channels of zeros to what the tensor cores' tiles want: the 8B tower's 4304 to 4352, whose second
product takes two thirds of the time. A channel of zeros stays one through GELU and adds nothing.

Shapes: P = patches, D = hidden, A = heads, E = head_dim.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoder.attention import Place
from pipeline.encoder.kernels import FLOAT8_MAX, Float8Layer, Float8Rows, Kernels
from pipeline.encoder.tower import Block, Stream, VisionTower

_TILE = 128  # channels
_ROUNDING = 0.13  # a sixteenth of each of two factors


class Float8Linear(nn.Module):
    """A linear layer with its weight in 8 bits, and its bias as it was.

    Args:
        linear: (m, n), in bfloat16.
        kernels: of its device.
        norm: what normalises its input; without it there is no `reach`.
        more_inputs: channels of zeros behind its n.
        more_outputs: channels of zeros behind its m.
    """

    values: Tensor
    scales: Tensor
    bias: Tensor
    reach: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        kernels: Kernels,
        *,
        norm: nn.LayerNorm | None = None,
        more_inputs: int = 0,
        more_outputs: int = 0,
    ) -> None:
        super().__init__()
        weight = kernels.to_float8(functional.pad(linear.weight, (0, more_inputs, 0, more_outputs)))
        self.register_buffer("bias", functional.pad(linear.bias, (0, more_outputs)))
        self.register_buffer("values", weight.values)
        self.register_buffer("scales", weight.scales)
        self.register_buffer(
            "reach", torch.full_like(self.scales[:1], torch.nan) if norm is None else _reach(linear, norm)
        )

    @property
    def weight(self) -> Float8Rows:
        """The weight (m, n)."""
        return Float8Rows(values=self.values, scales=self.scales)

    @property
    def layer(self) -> Float8Layer:
        """The whole."""
        return Float8Layer(weight=self.weight, bias=self.bias, reach=self.reach)


class Float8Block(nn.Module):
    """A `Block` whose four products are in 8 bits."""

    def __init__(self, block: Block, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self.heads = block.attn.heads
        self.norm1 = block.norm1
        self.norm2 = block.norm2
        self.qkv = Float8Linear(block.attn.qkv, kernels)
        self.proj = Float8Linear(block.attn.proj, kernels)
        self.intermediate_size = block.mlp.linear_fc1.out_features
        more = -self.intermediate_size % _TILE
        self.linear_fc1 = Float8Linear(block.mlp.linear_fc1, kernels, norm=block.norm2, more_outputs=more)
        self.linear_fc2 = Float8Linear(block.mlp.linear_fc2, kernels, more_inputs=more)

    @property
    def stream_biases(self) -> tuple[Tensor, Tensor]:
        """What attention and MLP leave out of their results, each (D,)."""
        return self.proj.bias, self.linear_fc2.bias

    def add_to(self, stream: Stream, offset_2D: Tensor, place: Place) -> None:
        """Update the stream; float32 `offset_2D` is what it lacks before attention and MLP."""
        kernels = self._kernels
        normed = self._normed(stream, offset_2D[0], self.norm1)
        qkv_P3AE = kernels.project_float8(normed, self.qkv.layer, self.heads, place)
        attended = kernels.to_float8(kernels.attend(qkv_P3AE, place.runs))
        stream.late = kernels.add_float8_(stream.hidden, attended, self.proj.weight)
        widened = kernels.linear_gelu_float8(self._normed(stream, offset_2D[1], self.norm2), self.linear_fc1.layer)
        stream.late = kernels.add_float8_(stream.hidden, widened, self.linear_fc2.weight)

    def _normed(self, stream: Stream, offset_D: Tensor, norm: nn.LayerNorm) -> Float8Rows:
        late, stream.late = stream.late, None
        return self._kernels.layer_norm_float8(stream.hidden, late, offset_D, norm)


def _reach(linear: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """A scale for whatever a layer can make of what `norm` gives it: float32 (1, 1)."""
    weight, gain, shift = linear.weight.float(), norm.weight.float(), norm.bias.float()
    moving = (weight * gain).norm(dim=1) * linear.in_features**0.5
    standing = (weight @ shift + linear.bias.float()).abs()
    rounding = _ROUNDING * (moving + weight.abs() @ shift.abs())
    largest: Tensor = (moving + standing + rounding).max()
    return (largest / FLOAT8_MAX).view(1, 1)


def to_float8(tower: VisionTower, kernels: Kernels) -> VisionTower:
    """A tower like `tower` with its blocks in 8 bits; it shares everything else.

    Args:
        tower: in bfloat16, arranged.
        kernels: of its device, and those that arranged it.
    Cost: half the memory of the blocks' weights, beside `tower`'s for as long as that lives.
    """
    converted = copy.copy(tower)
    converted._modules = {
        **tower._modules,
        "blocks": nn.ModuleList(Float8Block(b, kernels) for b in tower.typed_blocks),
    }
    return converted
