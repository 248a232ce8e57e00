"""Ray's object store, page-locked where it is mapped, so that the copy engine reads requests out of it.

A worker maps the whole store once, shared, and every object it gets lies there. `cudaHostRegister` locks these pages
and gives the device their addresses: the one copy of a request is then a DMA out of the object, at the rate of pinned
memory and without a memcpy. The price is paid once a process, about 0.8 s a GiB (H100 machine, CUDA 13), so a
store above `MAX_BYTES` is left alone. Objects that do not lie in the mapping (spilled, or overflowed to disk)
are not covered, and whoever asks must have another way for them.
"""

import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.device.store_size import MAX_BYTES

_LOG = logging.getLogger(__name__)
_MAPS = Path("/proc/self/maps")
_LINE = re.compile(r"(?P<start>[0-9a-f]+)-(?P<stop>[0-9a-f]+) (?P<mode>\S{4}) \S+ \S+ \S+\s*(?P<path>.*)")
# How Ray's store names its file. What overflows it has files of that name on a disk, which come and go.
_FILE = "/dev/shm/plasma"  # noqa: S108
_READ_ONLY = 0x08  # cudaHostRegisterReadOnly: the device never writes to requests
_ALREADY = 712  # cudaErrorHostMemoryAlreadyRegistered
# Registration is the process's, not an object's: of two at once the second fails.
_REGISTERING = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """Addresses [start, stop) of a shared mapping of the object store."""

    start: int
    stop: int

    def covers(self, address: int, num_bytes: int) -> bool:
        """Whether a buffer lies inside."""
        return self.start <= address and address + num_bytes <= self.stop


def find_mapping(address: int, num_bytes: int, maps: str | None = None) -> Mapping | None:
    """The object store's mapping that holds a buffer, or None where the buffer lies elsewhere.

    Args:
        address: of the buffer's first byte.
        num_bytes: its length.
        maps: text in the form of /proc/self/maps; None reads this process's.
    Cost: reads a file of some hundred lines.
    """
    if maps is None:
        maps = _MAPS.read_text(encoding="utf-8", errors="replace") if _MAPS.exists() else ""
    for line in maps.splitlines():
        found = _LINE.match(line)
        if found is None or found["mode"][3] != "s" or not found["path"].startswith(_FILE):
            continue
        mapping = Mapping(start=int(found["start"], 16), stop=int(found["stop"], 16))
        if mapping.covers(address, num_bytes):
            return mapping
    return None


class RegisteredStore:
    """The object store's mapping, registered with CUDA when the first buffer out of it is seen.

    Safe to call from several threads. A store that was refused, or is too large, is not tried again.

    Args:
        device: a CUDA device.
        max_bytes: the largest mapping to register.
    """

    def __init__(self, device: torch.device, max_bytes: int = MAX_BYTES) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._registered: Mapping | None = None
        self._tried: set[int] = set()

    def covers(self, address: int, num_bytes: int) -> bool:
        """Whether the copy engine may read this buffer where it lies, registering its mapping if that is new.

        Cost: nothing for a buffer in the registered mapping; reading /proc for any other; seconds, once.
        """
        known = self._registered
        if known is not None:
            return known.covers(address, num_bytes)
        mapping = find_mapping(address, num_bytes)
        if mapping is None:
            return False
        with _REGISTERING:
            if mapping.start not in self._tried:
                self._tried.add(mapping.start)
                if self._register(mapping):
                    self._registered = mapping
            return self._registered is not None and self._registered.covers(address, num_bytes)

    def close(self) -> None:
        """Unregister; no copy out of the store may be under way."""
        if self._registered is not None:
            torch.cuda.cudart().cudaHostUnregister(self._registered.start)
            self._registered = None

    def _register(self, mapping: Mapping) -> bool:
        num_bytes = mapping.stop - mapping.start
        if num_bytes > self._max_bytes:
            _LOG.warning("store_not_registered bytes=%d limit_bytes=%d", num_bytes, self._max_bytes)
            return False
        started = time.perf_counter()
        with torch.cuda.device(self._device):
            status = int(torch.cuda.cudart().cudaHostRegister(mapping.start, num_bytes, _READ_ONLY))
        if status:
            self._clear_error()
        if status not in (0, _ALREADY):
            _LOG.warning("store_not_registered bytes=%d cuda_error=%d", num_bytes, status)
            return False
        _LOG.info("store_registered bytes=%d seconds=%.2f", num_bytes, time.perf_counter() - started)
        return True

    def _clear_error(self) -> None:
        """Take CUDA's note of the refusal, which the next launch would raise, whatever it launched."""
        try:
            torch.zeros(1, device=self._device)
        except RuntimeError:
            return
