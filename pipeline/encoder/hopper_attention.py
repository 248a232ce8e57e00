"""FlashAttention 4 for the temporal patches where it is faster than our own kernel: Hopper's warp-specialised products.

An optional package (`pip install '.[hopper]'`), because it brings a compiler of 90 MB with it and serves one
generation of GPUs. It is called through its one public function, once for each run of equal temporal patches, and
computes what `attention.attend` says. The gain is largest at 72 channels a head (the 8B tower), which its tiles pad
to 80 where Triton's pad to 128; for small temporal patches its launch costs more than it saves, so
`LEAST_PATCHES` says from which size on it serves. docs/gpu.md has the figures.

The kernel is compiled once a process for each number of channels: two to three seconds, at the warm-up. Its arithmetic
depends on a temporal patch's own size only, so vectors do not depend on what else a request holds.
"""

import logging
import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from pipeline.encoder.attention import FrameRun

HOPPER = 9  # major compute capability
# Patches of a temporal patch from which on it beats our own kernel, for up to so many channels a head (H100).
LEAST_PATCHES = {64: 1200, 128: 384}
_LOG = logging.getLogger(__name__)

FlashFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def find_flash_attention(device: torch.device) -> "HopperAttention | None":
    """FlashAttention 4 for a CUDA device, or None where the device is no Hopper or the package is not there."""
    if torch.cuda.get_device_capability(device)[0] != HOPPER:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function: FlashFunction = import_module("flash_attn.cute.interface").flash_attn_func
    except (ImportError, AttributeError) as error:
        _LOG.info("flash_attention=none reason=%s", error)
        return None
    return HopperAttention(function)


class HopperAttention:
    """Dense attention of whole runs of temporal patches; for one thread at a time, as the encoder's queueing is."""

    def __init__(self, function: FlashFunction) -> None:
        self._function = function
        self._compiled: set[tuple[int, torch.dtype]] = set()

    @staticmethod
    def takes(run: FrameRun, head_dim: int) -> bool:
        """Whether a run is better served here; depends on the size of its temporal patches, never on their number."""
        least = next((least for channels, least in LEAST_PATCHES.items() if head_dim <= channels), None)
        return least is not None and head_dim % 8 == 0 and run.num_patches >= least

    def __call__(self, qkv: Tensor, run: FrameRun) -> Tensor:
        """Attention of each temporal patch of a run over itself.

        Args:
            qkv: bfloat16 or float16 (P, 3, A, E), contiguous; P = F * S of the run.
            run: how many temporal patches of how many patches.
        Returns: a new (P, A * E).
        """
        frames_FS3AE = qkv.view(run.num_frames, run.num_patches, *qkv.shape[1:])
        query, key, value = frames_FS3AE.unbind(2)
        return self._call(query, key, value).view(qkv.shape[0], -1)

    def _call(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kind = query.shape[-1], query.dtype
        if kind in self._compiled:
            return self._function(query, key, value)[0]
        with warnings.catch_warnings():  # its compiler warns of its own arguments
            warnings.simplefilter("ignore")
            output = self._function(query, key, value)[0]
            self._compiled.add(kind)
        return output
