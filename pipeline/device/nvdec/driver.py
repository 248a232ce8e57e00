"""The few calls of CUDA's driver API that decoding takes, by ctypes: memory that two processes share, and 2D copies.

The decoder process has no torch: loading it takes seconds and a gigabyte, and it would do nothing there. Torch shares
its memory between processes only with torch. Source: CUDA driver API reference, cuda.h 13.0.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libcuda.so.1"
_HANDLE_BYTES = 64
_STREAM_NON_BLOCKING = 1
_IPC_LAZY_ENABLE_PEER_ACCESS = 1
_MEMORY_DEVICE = 2  # CU_MEMORYTYPE_DEVICE


class DriverError(Exception):
    """CUDA refused a call, or its library is not there; says which."""


class _Memcpy2D(ctypes.Structure):
    """CUDA_MEMCPY2D_v2."""

    _fields_ = (
        ("src_x_bytes", ctypes.c_size_t),
        ("src_y", ctypes.c_size_t),
        ("src_memory_type", ctypes.c_uint),
        ("src_host", ctypes.c_void_p),
        ("src_device", ctypes.c_ulonglong),
        ("src_array", ctypes.c_void_p),
        ("src_pitch", ctypes.c_size_t),
        ("dst_x_bytes", ctypes.c_size_t),
        ("dst_y", ctypes.c_size_t),
        ("dst_memory_type", ctypes.c_uint),
        ("dst_host", ctypes.c_void_p),
        ("dst_device", ctypes.c_ulonglong),
        ("dst_array", ctypes.c_void_p),
        ("dst_pitch", ctypes.c_size_t),
        ("width_bytes", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle: passed by value."""

    _fields_ = (("reserved", ctypes.c_char * _HANDLE_BYTES),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """Rows of bytes in device memory: `height` rows of `width_bytes`, `pitch_bytes` apart, from `address` on."""

    address: int
    pitch_bytes: int
    width_bytes: int
    height: int


def load_library(name: str) -> ctypes.CDLL:
    """Load one of the driver's libraries. Raises: DriverError where it is missing."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DriverError(f"{name}: {error}") from error


class Driver:
    """One device's primary context, which torch uses, too; every thread that makes calls enters it first.

    Args:
        ordinal: of the device, among those that CUDA_VISIBLE_DEVICES leaves.
    Raises: DriverError.
    """

    def __init__(self, ordinal: int) -> None:
        self._cuda = load_library(_LIBRARY)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.context = context

    def call(self, name: str, *arguments: Any) -> None:
        """Make one call, with ctypes' own types. Raises: DriverError unless it succeeds."""
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise DriverError(f"{name}: CUDA error {status}")

    def enter(self) -> None:
        """Make the context this thread's."""
        self.call("cuCtxSetCurrent", self.context)

    def new_stream(self) -> ctypes.c_void_p:
        """A stream that waits for no other."""
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_STREAM_NON_BLOCKING))
        return stream

    def wait(self, stream: ctypes.c_void_p) -> None:
        """Block until a stream's work is done; other threads run meanwhile."""
        self.call("cuStreamSynchronize", stream)

    def copy(self, source: Rectangle, target_address: int, stream: ctypes.c_void_p) -> None:
        """Copy rows of bytes on the device, asynchronously, to where they follow one another without gaps."""
        copy = _Memcpy2D(
            src_memory_type=_MEMORY_DEVICE,
            src_device=source.address,
            src_pitch=source.pitch_bytes,
            dst_memory_type=_MEMORY_DEVICE,
            dst_device=target_address,
            dst_pitch=source.width_bytes,
            width_bytes=source.width_bytes,
            height=source.height,
        )
        self.call("cuMemcpy2DAsync_v2", ctypes.byref(copy), stream)

    def allocate(self, num_bytes: int) -> int:
        """Device memory of its own, which another process may open; the address. Cost: may wait for the device."""
        address = ctypes.c_ulonglong()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give `allocate`'s memory back."""
        self.call("cuMemFree_v2", ctypes.c_ulonglong(address))

    def export(self, address: int) -> bytes:
        """The name under which another process opens allocated memory, 64 bytes."""
        handle = _IpcHandle()
        self.call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_ulonglong(address))
        return ctypes.string_at(ctypes.byref(handle), _HANDLE_BYTES)

    def open_exported(self, handle: bytes) -> int:
        """The address, in this process, of memory that another one exported."""
        copied, address = _IpcHandle.from_buffer_copy(handle), ctypes.c_ulonglong()
        flags = ctypes.c_uint(_IPC_LAZY_ENABLE_PEER_ACCESS)
        self.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), copied, flags)
        return int(address.value)

    def close_exported(self, address: int) -> None:
        """Let go of opened memory."""
        self.call("cuIpcCloseMemHandle", ctypes.c_ulonglong(address))
