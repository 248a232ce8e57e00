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


def send_message(channel: socket.socket, message: dict[str, Any], handle: int | None = None) -> None:
    """Send one message, with a file handle if given. Raises OSError when the other side is gone."""
    body = json.dumps(message).encode("ascii")
    data = _LENGTH.pack(len(body)) + body
    num_sent = socket.send_fds(channel, [data], [handle]) if handle is not None else 0
    if num_sent < len(data):
        channel.sendall(data[num_sent:])


def receive_message(channel: socket.socket) -> tuple[dict[str, Any], int | None]:
    """Wait for one message; the caller closes the handle that came with it.

    Raises: EOFError when the other side is gone, TimeoutError as the channel's timeout says.
    """
    header, handles, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    handle = handles[0] if handles else None
    try:
        header += _receive(channel, _LENGTH.size - len(header)) if header else b""
        if not header:
            raise EOFError("the other side closed the channel")
        return json.loads(_receive(channel, _LENGTH.unpack(header)[0])), handle
    except BaseException:
        if handle is not None:
            os.close(handle)
        raise


def _receive(channel: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        chunk = channel.recv(min(num_bytes - len(received), 1 << 20))
        if not chunk:
            raise EOFError("the other side closed the channel in mid-message")
        received += chunk
    return bytes(received)
