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
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoder.attention import FrameRun, attend, rotate

_LOG = logging.getLogger(__name__)


class Kernels(Protocol):
    """The steps between a tower's matrix products."""

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


def make_kernels(device: torch.device) -> Kernels:
    """The fastest kernels for a device; plain torch, with a warning, where Triton or its C compiler is missing."""
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
    return TritonKernels()


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
