"""What the tower does between matrix products, and attention: on CUDA with Triton, elsewhere with plain torch.

`TorchKernels` says what each step computes. `TritonKernels` does the same with each value read once and written
once, and is held to it by tests; it is imported only where there is a CUDA device, because only torch's CUDA wheels
bring Triton, which also wants a C compiler for its launchers.

Two of the tower's additions are not here, because products do them: the residual is the product's accumulator
(`addmm`), and its bias is not added at all but summed over the layers before, in float32, as the `offset` of the
next normalisation. That saves a pass over the hidden states and a rounding in each half of a block.

Shapes: P = patches, D = hidden, A = heads, E = head_dim.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoder.attention import FrameRun, attend, rotate
from pipeline.encoder.hopper_attention import find_flash_attention

_LOG = logging.getLogger(__name__)
FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Float8Rows:
    """A matrix in 8 bits, each row scaled to the whole range: `values` (rows, n) times float32 `scales` (rows, 1)."""

    values: Tensor
    scales: Tensor


class Kernels(Protocol):
    """The steps between a tower's matrix products; those in float8, the products too."""

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

    def rotate_(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turn queries and keys in place.

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


def make_kernels(device: torch.device) -> Kernels:
    """The fastest kernels for a device; plain torch, with a warning, where Triton or its C compiler is missing.

    On Hopper with the `hopper` extra, FlashAttention 4 does the attention of large temporal patches.
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
    return TritonKernels(find_flash_attention(device))


class TorchKernels:
    """`Kernels` in plain torch, for any device."""

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
