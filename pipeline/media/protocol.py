"""Messages between a sandbox and its decoder process: JSON over a socket pair, buffers as handles.

Each message is a length and a JSON object. A stream socket, because frame times of a long video do not
fit one datagram. A handle travels with the length's bytes. JSON, because what the other side is after it
has read a stranger's file is not to be trusted with pickle.
"""

import json
import os
import socket
import struct
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


def receive_message(channel: socket.socket) -> tuple[dict[str, Any], int | None]:
    """Wait for one message; the caller closes the handle that came with it.

    Raises: EOFError when the other side is gone, TimeoutError as the channel's timeout says, ProtocolError.
    """
    header, handles, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    handle = handles[0] if handles else None
    try:
        header += _receive(channel, _LENGTH.size - len(header)) if header else b""
        if not header:
            raise EOFError("the other side closed the channel")
        return _parse(_receive(channel, _LENGTH.unpack(header)[0])), handle
    except BaseException:
        if handle is not None:
            os.close(handle)
        raise


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"expected JSON, found {body[:40]!r}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"expected a JSON object, found {body[:40]!r}")
    return message


def _receive(channel: socket.socket, num_bytes: int) -> bytes:
    if num_bytes > _MAX_BYTES:
        raise ProtocolError(f"expected a message of at most {_MAX_BYTES} bytes, found one of {num_bytes}")
    received = bytearray()
    while len(received) < num_bytes:
        chunk = channel.recv(min(num_bytes - len(received), 1 << 20))
        if not chunk:
            raise EOFError("the other side closed the channel in mid-message")
        received += chunk
    return bytes(received)
