"""FlashAttention 4 for the temporal patches where it is faster than our own kernel: Hopper's warp-specialised products.

An optional package (`pip install '.[hopper]'`), because it brings a compiler of 90 MB with it and serves one
generation of GPUs. It is called once for each run of equal temporal patches, and computes what `attention.attend`
says. The gain is largest at 72 channels a head (the 8B tower), which its tiles pad to 80 where Triton's pad to 128; for
small temporal patches its launch costs more than it saves, so `LEAST_PATCHES` says from which size on it serves.

Its tiles of keys are cut for long sequences. 784 patches are six of 128 and a rest, or seven of 112 and none, so the
width that computes fewer keys beyond the last is asked for (4 % less time at 784 patches of 72 channels, 3 % at 1560
of 64). Only the function below the package's public one takes it. docs/gpu.md has the figures.

A kernel is compiled once a machine for each number of channels and width of tiles (`kernel_cache`): both at the first
call, two seconds each, at the warm-up. Arithmetic depends on a temporal patch's own size only, so vectors do not depend
on what else a request holds.
"""

import logging
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.encoder.attention import FrameRun
from pipeline.encoder.kernel_cache import keep_kernels

HOPPER = 9  # major compute capability
# Patches of a temporal patch from which on it beats our own kernel, for up to so many channels a head (H100).
LEAST_PATCHES = {64: 1200, 96: 384}
# Keys of a tile, for up to so many channels a head, and queries: the package's own choice first.
_KEY_TILES = {64: (128, 112), 96: (144, 112)}
_QUERY_TILE = 192
_LOG = logging.getLogger(__name__)
_Value = TypeVar("_Value")

FlashFunction = Callable[..., tuple[Tensor, ...]]  # (query, key, value, *, tile_mn)


def find_flash_attention(device: torch.device) -> "HopperAttention | None":
    """FlashAttention 4 for a CUDA device, or None where the device is no Hopper or the package is not there."""
    if torch.cuda.get_device_capability(device)[0] != HOPPER:
        return None
    keep_kernels()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function: FlashFunction = import_module("flash_attn.cute.interface")._flash_attn_fwd
    except (ImportError, AttributeError, OSError) as error:
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
        least = _of_channels(LEAST_PATCHES, head_dim)
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
        head_dim = query.shape[-1]
        if (head_dim, query.dtype) not in self._compiled:
            with warnings.catch_warnings():  # its compiler warns of its own arguments
                warnings.simplefilter("ignore")
                for tile in _of_channels(_KEY_TILES, head_dim) or ():
                    self._function(query[:1], key[:1], value[:1], tile_mn=(_QUERY_TILE, tile))
            self._compiled.add((head_dim, query.dtype))
        tiles = _QUERY_TILE, key_tile(head_dim, run.num_patches)
        return self._function(query, key, value, tile_mn=tiles)[0].view(qkv.shape[0], -1)


def key_tile(head_dim: int, num_patches: int) -> int:
    """The width of tiles that computes the fewest keys that are not there; `takes` has taken the channels."""
    tiles = _of_channels(_KEY_TILES, head_dim)
    assert tiles is not None, head_dim
    return min(tiles, key=lambda tile: -(-num_patches // tile) * tile)


def _of_channels(table: dict[int, _Value], head_dim: int) -> _Value | None:
    """The first entry whose key is not below `head_dim`."""
    return next((value for channels, value in table.items() if head_dim <= channels), None)
