"""What is taken for an answer of the decoders."""

import pytest

from pipeline.device.nvdec.reply import colours_or_refusal
from pipeline.media.colour import ColourSpace

COLOURS = {"pixel_format": "yuv420p", "matrix": 1, "colour_range": 2}


def test_an_answer_is_colours_or_a_reason():
    assert colours_or_refusal(COLOURS) == ColourSpace(**COLOURS)
    assert colours_or_refusal({"refused": "interlaced"}) == "interlaced"


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"refused": None},
        {"refused": "interlaced", **COLOURS},
        {**COLOURS, "pixel_format": "rgb24"},
        {**COLOURS, "pixel_format": ["yuv420p"]},
        {**COLOURS, "matrix": "1"},
        {**COLOURS, "matrix": True},
        {**COLOURS, "matrix": [1]},
        {**COLOURS, "colour_range": 1 << 40},
        {**COLOURS, "colour_range": -1},
        {**COLOURS, "more": 1},
        {"pixel_format": "yuv420p", "matrix": 1},
    ],
    ids=str,
)
def test_anything_else_is_not(reply):
    with pytest.raises(ValueError, match="without colours"):
        colours_or_refusal(reply)
