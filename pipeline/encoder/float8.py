"""The blocks' matrix products in 8-bit floating point, for who asks for it: `encode.dtype=float8`.

Weights are rounded once, each output channel scaled to the whole range of e4m3; activations as they come, each patch
with a scale of its own, so that there is nothing to calibrate and a patch's result does not depend on its
neighbours. LayerNorm and GELU write 8 bits and scales themselves, which costs no further pass over the memory.
Attention, the patch embedding, mergers and norms stay in bfloat16; so does the residual stream, and because such a
product cannot add to it, the next LayerNorm does. `calibration` refuses a tower that this changes too much.

The MLP is widened by channels of zeros to what the tensor cores' tiles want: the 8B tower's 4304 to 4352, whose second
product takes two thirds of the time. A channel of zeros stays one through GELU and adds nothing.

Shapes: P = patches, D = hidden, A = heads, E = head_dim.
"""

import copy

from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoder.kernels import Float8Rows, Kernels
from pipeline.encoder.tower import Block, Place, Stream, VisionTower

_TILE = 128  # channels


class Float8Linear(nn.Module):
    """A linear layer with its weight in 8 bits, and its bias as it was.

    Args:
        linear: (m, n), in bfloat16.
        kernels: of its device.
        more_inputs: channels of zeros behind its n.
        more_outputs: channels of zeros behind its m.
    """

    values: Tensor
    scales: Tensor

    bias: Tensor

    def __init__(self, linear: nn.Linear, kernels: Kernels, *, more_inputs: int = 0, more_outputs: int = 0) -> None:
        super().__init__()
        self._kernels = kernels
        weight = kernels.to_float8(functional.pad(linear.weight, (0, more_inputs, 0, more_outputs)))
        self.register_buffer("bias", functional.pad(linear.bias, (0, more_outputs)))
        self.register_buffer("values", weight.values)
        self.register_buffer("scales", weight.scales)

    def forward(self, rows: Float8Rows, *, with_bias: bool = False) -> Tensor:
        """Map (P, n) to bfloat16 (P, m)."""
        weight = Float8Rows(values=self.values, scales=self.scales)
        return self._kernels.float8_product(rows, weight, self.bias if with_bias else None)


class Float8Block(nn.Module):
    """A `Block` whose four products are in 8 bits."""

    def __init__(self, block: Block, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self._heads = block.attn.heads
        self.norm1 = block.norm1
        self.norm2 = block.norm2
        self.qkv = Float8Linear(block.attn.qkv, kernels)
        self.proj = Float8Linear(block.attn.proj, kernels)
        self.intermediate_size = block.mlp.linear_fc1.out_features
        more = -self.intermediate_size % _TILE
        self.linear_fc1 = Float8Linear(block.mlp.linear_fc1, kernels, more_outputs=more)
        self.linear_fc2 = Float8Linear(block.mlp.linear_fc2, kernels, more_inputs=more)

    @property
    def stream_biases(self) -> tuple[Tensor, Tensor]:
        """What attention and MLP leave out of their results, each (D,)."""
        return self.proj.bias, self.linear_fc2.bias

    def add_to(self, stream: Stream, offset_2D: Tensor, place: Place) -> None:
        """Update the stream, the last half left late; float32 `offset_2D` is what it lacks before attention and MLP."""
        stream.late = self._attend(self._normed(stream, offset_2D[0], self.norm1), place)
        stream.late = self._mlp(self._normed(stream, offset_2D[1], self.norm2))

    def _normed(self, stream: Stream, offset_D: Tensor, norm: nn.LayerNorm) -> Float8Rows:
        late, stream.late = stream.late, None
        return self._kernels.layer_norm_float8(stream.hidden, late, offset_D, norm)

    def _attend(self, normed: Float8Rows, place: Place) -> Tensor:
        qkv_P3AE = self.qkv(normed, with_bias=True).view(-1, *self._heads)
        self._kernels.rotate_(qkv_P3AE, place.cos, place.sin)
        attended: Tensor = self.proj(self._kernels.to_float8(self._kernels.attend(qkv_P3AE, place.runs)))
        return attended

    def _mlp(self, normed: Float8Rows) -> Tensor:
        widened = self.linear_fc1(normed)
        narrowed: Tensor = self.linear_fc2(self._kernels.gelu_to_float8(widened, self.linear_fc1.bias))
        return narrowed


def to_float8(tower: VisionTower, kernels: Kernels) -> VisionTower:
    """A tower like `tower` with its blocks in 8 bits; it shares everything else.

    Args:
        tower: in bfloat16.
        kernels: of its device.
    Cost: half the memory of the blocks' weights, beside `tower`'s for as long as that lives.
    """
    converted = copy.copy(tower)
    converted._modules = {
        **tower._modules,
        "blocks": nn.ModuleList(Float8Block(b, kernels) for b in tower.typed_blocks),
    }
    return converted
