"""Messages between a sandbox and its decoder process: JSON over a socket pair, buffers as handles.

Each message is a length and a JSON object. A stream socket, because frame times of a long video do not
fit one datagram. A handle travels with the length's bytes. JSON, because what the other side is after it
has read a stranger's file is not to be trusted with pickle.
"""

import json
import os
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 1 << 29  # twice what the times of limits.max_video_frames take


class ProtocolError(ValueError):
    """What came is no message: the other side is broken, or somebody else's."""


def send_message(channel: socket.socket, message: dict[str, Any], handle: int | None = None) -> None:
    """Send one message, with a file handle if given. Raises OSError when the other side is gone."""
    body = json.dumps(message).encode("ascii")
    data = _LENGTH.pack(len(body)) + body
    num_sent = socket.send_fds(channel, [data], [handle]) if handle is not None else 0
    if num_sent < len(data):
        channel.sendall(data[num_sent:])


def receive_message(
    channel: socket.socket, deadline: float | None = None, most_bytes: int = _MAX_BYTES
) -> tuple[dict[str, Any], int | None]:
    """Wait for one message; the caller closes the handle that came with it.

    Args:
        channel: to the other side.
        deadline: for the whole message, by `time.monotonic`; None: wait as long as it takes.
        most_bytes: of the message.
    Raises: EOFError and OSError when the other side is gone, TimeoutError at the deadline, ProtocolError.
    """
    _set_timeout(channel, deadline)
    header, handles, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    handle = handles[0] if handles else None
    try:
        if not header:
            raise EOFError("the other side closed the channel")
        header += _receive(channel, _LENGTH.size - len(header), deadline)
        (num_bytes,) = _LENGTH.unpack(header)
        if num_bytes > most_bytes:
            raise ProtocolError(f"expected a message of at most {most_bytes} bytes, found one of {num_bytes}")
        return _parse(_receive(channel, num_bytes, deadline)), handle
    except BaseException:
        if handle is not None:
            os.close(handle)
        raise


def receive_answer(channel: socket.socket, deadline: float, most_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """`receive_message` from a process that has read a stranger's file; a handle that comes along is closed."""
    message, handle = receive_message(channel, deadline, most_bytes)
    if handle is not None:
        os.close(handle)
    return message


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"expected JSON, found {body[:40]!r}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"expected a JSON object, found {body[:40]!r}")
    return message


def _receive(channel: socket.socket, num_bytes: int, deadline: float | None) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        _set_timeout(channel, deadline)
        chunk = channel.recv(min(num_bytes - len(received), 1 << 20))
        if not chunk:
            raise EOFError("the other side closed the channel in mid-message")
        received += chunk
    return bytes(received)


def _set_timeout(channel: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        return
    left_seconds = deadline - time.monotonic()
    if left_seconds <= 0:
        raise TimeoutError("the message is not complete")
    channel.settimeout(left_seconds)
