"""Answers of the decoders' process, read as a stranger's: a file that it decoded may have taken it over.

Answers are short, so a long one is refused before it is kept, and one that trickles in has the deadline of the whole.
"""

import json
import socket
import struct
import time
from typing import Any

from pipeline.media.colour import PLANAR_FORMATS, ColourSpace

MOST_BYTES = 1 << 16  # an error's text with a long name in it, several times
_LENGTH = struct.Struct("<I")  # as media/protocol.py sends it
_MOST_NUMBER = 255  # of a matrix and a range in H.264 and HEVC


def receive_reply(channel: socket.socket, allowed_seconds: float) -> dict[str, Any]:
    """Wait for one message.

    Raises: EOFError and OSError when the other side is gone, TimeoutError when the message is not there in time,
        ValueError when it is too long or not a JSON object.
    """
    deadline = time.monotonic() + allowed_seconds
    (num_bytes,) = _LENGTH.unpack(_receive(channel, _LENGTH.size, deadline))
    if num_bytes > MOST_BYTES:
        raise ValueError(f"an answer of {num_bytes} bytes, at most {MOST_BYTES}")
    try:
        reply = json.loads(_receive(channel, num_bytes, deadline))
    except RecursionError as error:
        raise ValueError("an answer that is nested too deeply") from error
    if not isinstance(reply, dict):
        raise ValueError(f"an answer that is a {type(reply).__name__}, expected an object")
    return reply


def colours_or_refusal(reply: dict[str, Any]) -> ColourSpace | str:
    """What the frames' colours mean, or why the clip was refused. Raises: ValueError where it is neither."""
    if reply.keys() == {"refused"} and isinstance(reply["refused"], str):
        return reply["refused"]
    numbers = [reply.get(name) for name in ("matrix", "colour_range")]
    is_known = reply.get("pixel_format") in PLANAR_FORMATS and len(reply) == 1 + len(numbers)
    if not is_known or not all(type(number) is int and 0 <= number <= _MOST_NUMBER for number in numbers):
        raise ValueError("an answer without colours")
    return ColourSpace(**reply)


def _receive(channel: socket.socket, num_bytes: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError("the answer is not complete")
        channel.settimeout(left_seconds)
        chunk = channel.recv(num_bytes - len(received))
        if not chunk:
            raise EOFError("the other side closed the channel")
        received += chunk
    return bytes(received)
