"""A request's buffer becomes one uint8 tensor on the encoder's device: ONE copy, asynchronous, from page-locked memory.

Where a tensor lies is part of the contract: what comes in is host memory, what goes out is on `device`; there
is no test of a class's name and no `.to()` of something that may already be there. On a CPU the tensor is a view
of the request's own bytes and nothing is copied.

Lifetimes on CUDA. Out of a registered object store (`store_mapping`) the copy engine reads the object itself: the
request is held until the copy's event has completed (in a run the object stays a little longer: it is the argument of
the call that encodes it). Else the bytes are first copied into a pinned slot by the calling
thread, and are not needed afterwards; the slot is handed out again only when its event has completed. Who uses the
device tensor lets its stream wait for the same event, as late as it can: what is queued before goes on meanwhile.
"""

import ctypes
import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from pipeline.device.store_mapping import RegisteredStore
from pipeline.request.table import Request

Way = Literal["view", "registered", "ring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A request on the device, or on its way there.

    `buffer` is uint8 (num_bytes,) on the device, for the stream that was current; its bytes are there when `ready` has
    completed (None: they are). `owner` keeps alive what the
    tensor is a view of; drop it when the tensor has been used. `num_copies` counts host-to-device copies, and
    `way` says how they were made: `view` is none, `registered` out of the object store, `ring` through a slot.
    """

    buffer: torch.Tensor
    ready: torch.cuda.Event | None
    owner: object
    num_copies: int
    way: Way

    def join(self) -> torch.Tensor:
        """The buffer, after letting the current stream wait for its bytes. Cost: no sync."""
        if self.ready is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.ready)
        return self.buffer


class Transfer(Protocol):
    """Moves requests to one device; safe to call from several threads."""

    def __call__(self, request: Request) -> Arrived:
        """Bring one request over."""
        ...

    def reap(self) -> None:
        """Let go of the requests whose copies have completed. Cost: no sync."""
        ...


def make_transfer(device: torch.device, num_slots: int, *, register_store: bool = False) -> Transfer:
    """The transfer for a device: a view on the CPU; on CUDA a ring of `num_slots`, before it the registered store."""
    if device.type == "cpu":
        return HostTransfer()
    ring = PinnedTransfer(device, num_slots)
    return StoreTransfer(device, RegisteredStore(device), ring) if register_store else ring


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
        return Arrived(buffer=host_tensor(request), ready=None, owner=request, num_copies=0, way="view")

    def reap(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class _Slot:
    """Pinned memory that the copy engine may be reading until `copied` has completed."""

    pinned: torch.Tensor
    copied: torch.cuda.Event | None = None


class PinnedTransfer:
    """One asynchronous copy a request, through a ring of pinned slots.

    Args:
        device: a CUDA device.
        num_slots: requests whose copies may be under way at once; two keep the copy engine busy.
    """

    def __init__(self, device: torch.device, num_slots: int) -> None:
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
            if slot.copied is not None and not slot.copied.query():
                slot.copied.synchronize()
            if slot.pinned.numel() < num_bytes:
                slot.pinned = _pinned(num_bytes)
            slot.pinned[:num_bytes].copy_(host_tensor(request))
            arrived, slot.copied = _send(slot.pinned[:num_bytes], self._stream)
        return Arrived(buffer=arrived, ready=slot.copied, owner=None, num_copies=1, way="ring")

    def reap(self) -> None:
        """Slots are this object's own: no request is held."""


class StoreTransfer:
    """One asynchronous copy a request, straight out of the registered object store.

    Args:
        device: a CUDA device.
        store: which buffers the copy engine can read where they lie.
        ring: takes over for all others.
    """

    def __init__(self, device: torch.device, store: RegisteredStore, ring: PinnedTransfer) -> None:
        self._stream = torch.cuda.Stream(device)
        self._store = store
        self._ring = ring
        self._under_way: deque[tuple[torch.cuda.Event, Request]] = deque()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Arrived:
        """Copy the request to the device, and hold it until that has been done.

        Cost: one `non_blocking` host-to-device copy, no memcpy, no device sync; for a buffer that lies elsewhere, what
        the ring costs.
        """
        self.reap()
        if not self._store.covers(request.address, request.buffer.size):
            return self._ring(request)
        with self._lock:
            arrived, copied = _send(host_tensor(request), self._stream)
            self._under_way.append((copied, request))
        return Arrived(buffer=arrived, ready=copied, owner=None, num_copies=1, way="registered")

    def reap(self) -> None:
        """Let go of requests whose copies have completed; they complete in the order in which they were queued."""
        with self._lock:
            while self._under_way and self._under_way[0][0].query():
                self._under_way.popleft()


def _send(source: torch.Tensor, stream: torch.cuda.Stream) -> tuple[torch.Tensor, torch.cuda.Event]:
    """Copy page-locked memory to the stream's device; the event completes when it has been read and has arrived."""
    compute = torch.cuda.current_stream(stream.device)
    copied = torch.cuda.Event(blocking=True)
    with torch.cuda.stream(stream):
        # Allocated on the copy stream, so no earlier use of the memory on another stream can overlap it.
        arrived = torch.empty(source.numel(), dtype=torch.uint8, device=stream.device)
        arrived.copy_(source, non_blocking=True)
        copied.record(stream)
    arrived.record_stream(compute)
    return arrived, copied


def _pinned(num_bytes: int) -> torch.Tensor:
    """Page-locked memory, rounded up so that requests of similar size do not each pay for a new slot."""
    rounded = 1 << (num_bytes - 1).bit_length()
    return torch.empty(rounded, dtype=torch.uint8, pin_memory=True)
