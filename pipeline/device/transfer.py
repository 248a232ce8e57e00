"""A request's buffer becomes one uint8 tensor on the encoder's device: ONE copy, asynchronous, from pinned memory.

Where a tensor lies is part of the contract: what comes in is host memory, what goes out is on `device`; there
is no test of a class's name and no `.to()` of something that may already be there. On a CPU the tensor is a view
of the request's own bytes and nothing is copied.

Lifetimes on CUDA. The object-store bytes are copied into a pinned slot by the calling thread and are not needed
afterwards. The slot is read by the copy engine until its event has completed, and is handed out again only
then. The device tensor is used by the compute stream, which waits for the same event.
"""

import ctypes
import threading
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipeline.request.table import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A request on the device.

    `buffer` is uint8 (num_bytes,) on the device, ready for the current stream. `owner` keeps alive what the
    tensor is a view of; drop it when the tensor has been used. `num_copies` counts host-to-device copies.
    """

    buffer: torch.Tensor
    owner: object
    num_copies: int


class Transfer(Protocol):
    """Moves requests to one device; safe to call from several threads."""

    def __call__(self, request: Request) -> Arrived:
        """Bring one request over."""
        ...


def make_transfer(device: torch.device, num_slots: int) -> Transfer:
    """The transfer for a device: a view on the CPU, a ring of `num_slots` pinned slots on CUDA."""
    return HostTransfer() if device.type == "cpu" else PinnedTransfer(device, num_slots)


def host_tensor(request: Request) -> torch.Tensor:
    """The request's bytes as a CPU tensor, uint8 (num_bytes,), without a copy.

    Torch has no read-only tensors and warns when it wraps read-only memory; through ctypes it wraps the
    address. The caller keeps `request` alive and never writes.
    """
    memory = (ctypes.c_uint8 * request.buffer.size).from_address(request.address)
    return torch.frombuffer(memory, dtype=torch.uint8)


class HostTransfer:
    """Encoding on the CPU: the tensor is a view of the request."""

    def __call__(self, request: Request) -> Arrived:
        """Wrap the request's bytes. Cost: no copy."""
        return Arrived(buffer=host_tensor(request), owner=request, num_copies=0)


@dataclass(slots=True)
class _Slot:
    """Pinned memory that the copy engine may be reading until `copied` has completed."""

    pinned: torch.Tensor
    copied: torch.cuda.Event = field(default_factory=torch.cuda.Event)


class PinnedTransfer:
    """One asynchronous copy a request, through a ring of pinned slots.

    Args:
        device: a CUDA device.
        num_slots: requests whose copies may be under way at once; two keep the copy engine busy.
    """

    def __init__(self, device: torch.device, num_slots: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._slots = [_Slot(pinned=torch.empty(0, dtype=torch.uint8)) for _ in range(num_slots)]
        self._next = 0
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Arrived:
        """Copy the request into a slot, and the slot to the device.

        Cost: one host memcpy, one `non_blocking` host-to-device copy, no device sync. Blocks only while the slot
        that is due is still being read, that is, when all slots are under way.
        """
        num_bytes = request.buffer.size
        with self._lock:
            slot = self._slots[self._next]
            self._next = (self._next + 1) % len(self._slots)
            slot.copied.synchronize()
            if slot.pinned.numel() < num_bytes:
                slot.pinned = _pinned(num_bytes)
            slot.pinned[:num_bytes].copy_(host_tensor(request))
            arrived = self._send(slot, num_bytes)
        return Arrived(buffer=arrived, owner=None, num_copies=1)

    def _send(self, slot: _Slot, num_bytes: int) -> torch.Tensor:
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            # Allocated on the copy stream, so no earlier use of the memory on another stream can overlap it.
            arrived = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
            arrived.copy_(slot.pinned[:num_bytes], non_blocking=True)
            slot.copied.record(self._stream)
        compute.wait_event(slot.copied)
        arrived.record_stream(compute)
        return arrived


def _pinned(num_bytes: int) -> torch.Tensor:
    """Page-locked memory, rounded up so that requests of similar size do not each pay for a new slot."""
    rounded = 1 << (num_bytes - 1).bit_length()
    return torch.empty(rounded, dtype=torch.uint8, pin_memory=True)
