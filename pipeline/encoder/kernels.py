"""The steps of the tower: products with what is done to their results, attention, and what stands between them.

`TorchKernels` says what each step computes. `TritonKernels` does the same on CUDA with each value read once and written
once, and is held to it by tests; it is imported only where there is a CUDA device, because only torch's CUDA wheels
bring Triton, which also wants a C compiler for its launchers. On Hopper GPUs with the `hopper` extra, `HopperKernels`
leaves it little to do: rotation, GELU and the residual's addition happen in the products, on sums not yet rounded.

Two of the tower's additions are not here, because products do them: the residual is the product's accumulator
(`addmm`), and its bias is not added at all but summed over the layers before, in float32, as the `offset` of the
next normalisation. That saves a pass over the hidden states and a rounding in each half of a block.

Shapes: P = patches, D = hidden, A = heads, E = head_dim.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoder.attention import FrameRun, Place, attend, rotate
from pipeline.encoder.hopper_attention import find_flash_attention

_LOG = logging.getLogger(__name__)
FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Float8Rows:
    """A matrix in 8 bits, each row with a scale of its own: `values` (rows, n) times float32 `scales` (rows, 1)."""

    values: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Float8Layer:
    """A linear layer in 8 bits: `weight` (m, n) by its output channels, and `bias` (m,) in bfloat16.

    `reach`, float32 (1, 1), is a scale that brings whatever comes out into the range of 8 bits.
    """

    weight: Float8Rows
    bias: Tensor
    reach: Tensor


class Kernels(Protocol):
    """The steps of a tower's blocks."""

    def normalise(
        self, patch_rows: Tensor, mean: Tensor, std: Tensor, shape: tuple[int, int, int], dtype: torch.dtype
    ) -> Tensor:
        """Turn uint8 (P, C * V) or (P, C * T * V) into (x - mean) / std by channel: (P, C * T * V) in `dtype`.

        Args:
            patch_rows: on the device; one frame a row is used T times.
            mean: float32 (C,) in byte values.
            std: likewise.
            shape: (C, T, V).
            dtype: rounded to it once, from float32.
        """
        ...

    def layer_norm(self, hidden: Tensor, offset: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Normalise the rows of `hidden + offset`, computed in float32.

        Args:
            hidden: (rows, n * D), contiguous.
            offset: float32 (D,), used n times a row.
            norm: over n * D channels.
        Returns: a new tensor like `hidden`.
        """
        ...

    def arrange_(self, qkv: nn.Linear, heads: tuple[int, int, int]) -> None:
        """Reorder the output channels of `qkv` (3 * D, D) as `project` wants them, in place."""
        ...

    def project(self, hidden: Tensor, qkv: nn.Linear, heads: tuple[int, int, int], place: Place) -> Tensor:
        """Queries and keys, turned by their patch's place, and values.

        Args:
            hidden: (P, D).
            qkv: arranged.
            heads: (3, A, E).
            place: of the P patches.
        Returns: (P, 3, A, E); queries' and keys' channels in any order that is the same for both.
        """
        ...

    def add_product_(self, hidden: Tensor, values: Tensor, weight: Tensor) -> None:
        """Add `values` (P, n) times the transpose of `weight` (D, n) to `hidden` (P, D) in place."""
        ...

    def rotate_(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turn queries and keys in place, pairs of channels (i, i + E / 2).

        Args:
            qkv: (P, 3, A, E), contiguous.
            cos: float32 (p, E / 2), used P / p times, one after the other.
            sin: likewise.
        """
        ...

    def attend(self, qkv: Tensor, runs: Sequence[FrameRun]) -> Tensor:
        """Attention of each temporal patch over itself: (P, 3, A, E) to (P, A * E)."""
        ...

    def linear_gelu(self, hidden: Tensor, linear: nn.Linear) -> Tensor:
        """Apply `linear` and the tanh-approximated GELU."""
        ...

    def layer_norm_float8(self, hidden: Tensor, late: Tensor | None, offset: Tensor, norm: nn.LayerNorm) -> Float8Rows:
        """Add `late` (P, D) to `hidden` (P, D) in place, then normalise as `layer_norm`, of the unrounded sum."""
        ...

    def to_float8(self, values: Tensor) -> Float8Rows:
        """Scale each row of (rows, n) by its largest magnitude and round it to 8 bits."""
        ...

    def gelu_to_float8(self, values: Tensor, bias: Tensor) -> Float8Rows:
        """`to_float8` of the tanh-approximated GELU of `values + bias`, computed in float32."""
        ...

    def float8_product(self, rows: Float8Rows, weight: Float8Rows, bias: Tensor | None) -> Tensor:
        """Multiply (P, n) by the transpose of `weight` (m, n), add `bias` (m,): bfloat16 (P, m)."""
        ...

    def project_float8(self, rows: Float8Rows, qkv: Float8Layer, heads: tuple[int, int, int], place: Place) -> Tensor:
        """`project`, to bfloat16."""
        ...

    def linear_gelu_float8(self, rows: Float8Rows, layer: Float8Layer) -> Float8Rows:
        """`linear_gelu`; the rows come from the LayerNorm for which the layer's reach was computed."""
        ...

    def add_float8_(self, hidden: Tensor, rows: Float8Rows, weight: Float8Rows) -> Tensor | None:
        """Add the product to `hidden` (P, D) in place, or return it for the next `layer_norm_float8` to add."""
        ...


def make_kernels(device: torch.device) -> Kernels:
    """The fastest kernels for a device; plain torch, with a warning, where Triton or its C compiler is missing.

    On Hopper with the `hopper` extra, FlashAttention 4 does the attention of large temporal patches, and quack's
    products do what else can be done to a product's sums.
    """
    if device.type != "cuda":
        return TorchKernels()
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        _LOG.warning("plain_torch_kernels reason=no_c_compiler install gcc or clang, or set CC")
        return TorchKernels()
    try:
        from pipeline.encoder.triton_kernels import TritonKernels
    except ImportError as error:
        _LOG.warning("plain_torch_kernels reason=no_triton error=%s", error)
        return TorchKernels()
    flash = find_flash_attention(device)
    if flash is None:
        return TritonKernels()
    try:
        with warnings.catch_warnings():  # the compiler that it brings warns of itself
            warnings.simplefilter("ignore")
            from pipeline.encoder.hopper_kernels import HopperKernels
        return HopperKernels(flash, device)
    except Exception as error:  # another version of a package, a driver that is too old: anything may come out of them
        _LOG.warning("hopper_products=none reason=%s", error)
        return TritonKernels(flash)


class TorchKernels:
    """`Kernels` in plain torch, for any device; the others are what it leaves to be overridden."""

    def normalise(
        self, patch_rows: Tensor, mean: Tensor, std: Tensor, shape: tuple[int, int, int], dtype: torch.dtype
    ) -> Tensor:
        """Two kernels and a float32 temporary."""
        channels, _, values = shape
        bytes_PCTV = patch_rows.reshape(patch_rows.shape[0], channels, -1, values)
        pixels_PCTV = torch.empty((patch_rows.shape[0], *shape), dtype=dtype, device=patch_rows.device)
        centred_PCTV = torch.sub(bytes_PCTV, mean.view(-1, 1, 1)).expand(pixels_PCTV.shape)
        torch.div(centred_PCTV, std.view(-1, 1, 1), out=pixels_PCTV)
        return pixels_PCTV.flatten(1)

    def layer_norm(self, hidden: Tensor, offset: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Two kernels and a float32 temporary."""
        shifted = hidden.view(hidden.shape[0], -1, offset.numel()) + offset
        weight, bias = norm.weight.to(shifted.dtype), norm.bias.to(shifted.dtype)
        normed = functional.layer_norm(shifted.view(hidden.shape), norm.normalized_shape, weight, bias, norm.eps)
        return normed.to(hidden.dtype)

    def arrange_(self, qkv: nn.Linear, heads: tuple[int, int, int]) -> None:
        """Nothing: the checkpoints' order serves."""

    def project(self, hidden: Tensor, qkv: nn.Linear, heads: tuple[int, int, int], place: Place) -> Tensor:
        """A product, and a pass over queries and keys."""
        projected: Tensor = qkv(hidden).view(-1, *heads)
        self.rotate_(projected, place.cos, place.sin)
        return projected

    def add_product_(self, hidden: Tensor, values: Tensor, weight: Tensor) -> None:
        """One product, whose accumulator `hidden` is."""
        hidden.addmm_(values, weight.t())

    def rotate_(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Four kernels and a copy."""
        times = qkv.shape[0] // cos.shape[0]
        qkv[:, :2] = rotate(qkv[:, :2], cos.repeat(times, 1), sin.repeat(times, 1))

    def attend(self, qkv: Tensor, runs: Sequence[FrameRun]) -> Tensor:
        """Torch's attention."""
        return attend(qkv, runs)

    def linear_gelu(self, hidden: Tensor, linear: nn.Linear) -> Tensor:
        """Two kernels; the GELU sees a rounded product."""
        return functional.gelu(linear(hidden), approximate="tanh")

    def layer_norm_float8(self, hidden: Tensor, late: Tensor | None, offset: Tensor, norm: nn.LayerNorm) -> Float8Rows:
        """Several kernels and float32 temporaries."""
        shifted = hidden.to(torch.float32)
        if late is not None:
            shifted += late
            hidden.copy_(shifted)
        weight, bias = norm.weight.to(torch.float32), norm.bias.to(torch.float32)
        return self.to_float8(functional.layer_norm(shifted + offset, norm.normalized_shape, weight, bias, norm.eps))

    def to_float8(self, values: Tensor) -> Float8Rows:
        """Several kernels and a float32 temporary."""
        exact = values.to(torch.float32)
        scales = exact.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / FLOAT8_MAX
        return Float8Rows(values=(exact / scales).to(FLOAT8), scales=scales)

    def gelu_to_float8(self, values: Tensor, bias: Tensor) -> Float8Rows:
        """Several kernels and float32 temporaries."""
        return self.to_float8(functional.gelu(values.to(torch.float32) + bias, approximate="tanh"))

    def float8_product(self, rows: Float8Rows, weight: Float8Rows, bias: Tensor | None) -> Tensor:
        """A product in float32."""
        exact = rows.values.to(torch.float32) @ weight.values.to(torch.float32).t() * rows.scales * weight.scales.t()
        return (exact if bias is None else exact + bias).to(torch.bfloat16)

    def project_float8(self, rows: Float8Rows, qkv: Float8Layer, heads: tuple[int, int, int], place: Place) -> Tensor:
        """A product, and a pass over queries and keys."""
        projected = self.float8_product(rows, qkv.weight, qkv.bias).view(-1, *heads)
        self.rotate_(projected, place.cos, place.sin)
        return projected

    def linear_gelu_float8(self, rows: Float8Rows, layer: Float8Layer) -> Float8Rows:
        """A product, and a pass over its result."""
        return self.gelu_to_float8(self.float8_product(rows, layer.weight, None), layer.bias)

    def add_float8_(self, hidden: Tensor, rows: Float8Rows, weight: Float8Rows) -> Tensor | None:  # noqa: ARG002
        """One product, which is left to be added: torch's scaled ones have no accumulator."""
        return self.float8_product(rows, weight, None)
