"""Bytes to what the first matrix product reads, on the device.

A patch row travels as uint8 and becomes `(x - 255 * mean) / (255 * std)` here: a quarter of the bytes that
float32 rows would be, and an image's one frame is doubled only now. The arithmetic is transformers' own (fused,
in float32, with a true division), so the bits are too. A Python number as divisor would not do: CUDA multiplies
by its reciprocal. Source: transformers 5.23 `TorchvisionBackend.rescale_and_normalize`, rescale_factor 1/255.

Shapes: P = patches.
"""

import torch
from torch import Tensor, nn

from pipeline.checkpoint import Preprocessing, VisionSpec
from pipeline.encoder.kernels import Kernels, TorchKernels

_RESCALE_FACTOR = 1 / 255


class PixelNormalizer(nn.Module):
    """Normalises uint8 patch rows; its few numbers move to the device once, with the module."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: VisionSpec, preprocessing: Preprocessing, kernels: Kernels | None = None) -> None:
        super().__init__()
        self._shape = (spec.in_channels, spec.temporal_patch_size, spec.patch_size**2)
        self._kernels = kernels or TorchKernels()
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            scaled = torch.tensor(values, dtype=torch.float32) * (1.0 / _RESCALE_FACTOR)
            self.register_buffer(name, scaled, persistent=False)

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of an image's patch row (one frame) and of a video's (768 and 1536)."""
        channels, num_frames, values = self._shape
        return channels * values, channels * values * num_frames

    def forward(self, patch_rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise patch rows.

        Args:
            patch_rows: uint8 (P, 768) of images or (P, 1536) of videos, each row (C, 1 or T, 16, 16), on the device.
            dtype: what the tower computes in.
        Returns: (P, 1536) in `dtype`, rounded once, from float32.
        Cost: on CUDA one kernel, else two and a float32 temporary of the input's size; no copy from the host, no sync.
        """
        return self._kernels.normalise(patch_rows, self.mean, self.std, self._shape, dtype)
