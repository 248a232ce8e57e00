"""Answers of the decoders' process, read as a stranger's: a file that it decoded may have taken it over."""

from typing import Any

from pipeline.media.colour import PLANAR_FORMATS, ColourSpace

MOST_BYTES = 1 << 16  # an error's text with a long name in it, several times
_MOST_NUMBER = 255  # of a matrix and a range in H.264 and HEVC


def colours_or_refusal(reply: dict[str, Any]) -> ColourSpace | str:
    """What the frames' colours mean, or why the clip was refused. Raises: ValueError where it is neither."""
    if reply.keys() == {"refused"} and isinstance(reply["refused"], str):
        return reply["refused"]
    numbers = [reply.get(name) for name in ("matrix", "colour_range")]
    is_known = reply.get("pixel_format") in PLANAR_FORMATS and len(reply) == 1 + len(numbers)
    if not is_known or not all(type(number) is int and 0 <= number <= _MOST_NUMBER for number in numbers):
        raise ValueError("an answer without colours")
    return ColourSpace(**reply)
