"""The tables that are read off swscale give swscale's bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.media.colour import PLANAR_FORMATS, ColourSpace, apply_tables, colour_tables, to_rgb

MATRICES = {"bt709": 1, "unspecified": 2, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "bt2020": 9}
RESERVED = 3


@pytest.mark.parametrize("colour_range", [0, 1, 2], ids=["unspecified", "limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("pixel_format", PLANAR_FORMATS)
def test_every_pixel_comes_out_as_swscale_has_it(pixel_format, matrix, colour_range):
    space = ColourSpace(pixel_format=pixel_format, matrix=matrix, colour_range=colour_range)
    tables = colour_tables(space)
    luma = np.arange(256, dtype=np.uint8).repeat(2)[:, None].repeat(128, 1)
    random = np.random.default_rng(matrix)
    u, v = (random.integers(0, 256, (256, 64), dtype=np.uint8) for _ in range(2))
    wide_u, wide_v = (plane.repeat(2, 0).repeat(2, 1) for plane in (u, v))
    assert np.array_equal(apply_tables(luma, wide_u, wide_v, tables), to_rgb(luma, u, v, space))


@given(width=st.integers(16, 80), height=st.integers(8, 40), seed=st.integers(0, 99))
def test_tables_hold_for_every_even_size(width, height, seed):
    space = ColourSpace(pixel_format="yuv420p", matrix=1, colour_range=1)
    random = np.random.default_rng(seed)
    luma = random.integers(0, 256, (2 * height, 2 * width), dtype=np.uint8)
    u, v = (random.integers(0, 256, (height, width), dtype=np.uint8) for _ in range(2))
    wide_u, wide_v = (plane.repeat(2, 0).repeat(2, 1) for plane in (u, v))
    assert np.array_equal(apply_tables(luma, wide_u, wide_v, colour_tables(space)), to_rgb(luma, u, v, space))


def test_colours_that_swscale_does_not_know_have_no_tables():
    assert colour_tables(ColourSpace(pixel_format="yuv420p", matrix=RESERVED, colour_range=1)) is None
