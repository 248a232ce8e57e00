"""What GPU tests share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUDA = torch.device("cuda")


def cuda_noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """The same numbers on every device, drawn on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(CUDA, dtype)


@contextmanager
def syncs_forbidden() -> Iterator[None]:
    """Turn every device sync that torch makes, and knows of, into an error."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
