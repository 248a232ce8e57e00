"""How large Ray's object store is made on a machine with GPUs. Nothing here loads torch: a driver asks."""

import os
from pathlib import Path

MAX_BYTES = 32 << 30  # what an encode actor page-locks at most
_REQUESTS_PER_DEVICE = 32
_REQUESTS_PER_WORKER = 2
_QUEUED_PER_DEVICE = 10
_LEAST_STORE_BYTES = 1 << 28
_MAPPED_BESIDE = 1 << 30  # a mapping may be larger than the store that was asked for
_DEVICES = Path("/dev")


def num_gpus_here() -> int:
    """NVIDIA GPUs that this process may use, by their device files: none of them is touched."""
    num_devices = sum(1 for _ in _DEVICES.glob("nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return num_devices
    return min(num_devices, sum(1 for name in visible.split(",") if name.strip() not in ("", "-1")))


def suggested_store_bytes(request_bytes: int, num_workers: int, num_gpus: int) -> int | None:
    """A store that keeps this machine's GPUs fed and can still be registered in seconds; None without a GPU.

    Args:
        request_bytes: of the largest usual request. There is room for two a worker (one in the making and one that is
            done) and ten a GPU, for 32 a GPU at least, within a third of the memory and what would be registered.
        num_workers: that make requests here at a time.
        num_gpus: of this machine.
    """
    if not num_gpus:
        return None
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = max(_REQUESTS_PER_DEVICE * num_gpus, _REQUESTS_PER_WORKER * num_workers + _QUEUED_PER_DEVICE * num_gpus)
    return max(_LEAST_STORE_BYTES, min(wanted * request_bytes, machine_bytes // 3, MAX_BYTES - _MAPPED_BESIDE))
