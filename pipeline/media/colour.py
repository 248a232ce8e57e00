"""How 4:2:0 frames become RGB: swscale's own conversion, read off it as five small tables.

FFmpeg's direct conversion of planar 4:2:0 to RGB uses each chroma sample for the four pixels around it, and adds:
red is luma[Y] + red_v[V], green luma[Y] + green_u[U] + green_v[V], blue luma[Y] + blue_u[U], each clipped to a byte.
Its integer arithmetic differs between versions and processors, so the tables are asked of the library that decodes
here, once for each kind of colours, and then checked on random pixels. Whoever applies them gets its bytes exactly.
Measured with FFmpeg 8 (PyAV 18.1) on x86: exact for all matrices and both ranges, even heights.
"""

from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.media.orientation import Orientation, orientation_of

PLANAR_FORMATS = ("yuv420p", "yuvj420p")
_LEVELS = 256
_GREY = 128
_CHECK_SIDE = 512

Plane = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourSpace:
    """What decides the conversion, in FFmpeg's numbers."""

    pixel_format: str
    matrix: int
    colour_range: int

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """As a decoded frame says."""
        return cls(pixel_format=frame.format.name, matrix=int(frame.colorspace), colour_range=int(frame.color_range))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColourTables:
    """Int16 (256,) each, indexed by a byte of the plane that the name ends with; `luma` goes into all three colours."""

    luma: NDArray[np.int16]
    red_v: NDArray[np.int16]
    green_u: NDArray[np.int16]
    green_v: NDArray[np.int16]
    blue_u: NDArray[np.int16]

    def stacked(self) -> NDArray[np.int16]:
        """All five as they are handed to a device: int16 (5, 256), in this order."""
        return np.stack(astuple(self))


def planar_problem(frame: VideoFrame, height: int, width: int) -> str | None:
    """Why a frame is not stored as the 4:2:0 planes of the picture that is shown, of this size; None if it is."""
    if frame.format.name not in PLANAR_FORMATS or (frame.height, frame.width) != (height, width):
        return f"{frame.width}x{frame.height} {frame.format.name}, expected 4:2:0 of {width}x{height}"
    if frame.interlaced_frame or orientation_of(frame) != Orientation():
        return "interlaced or turned"
    if any(plane.line_size < plane.width for plane in frame.planes):
        return "stored from the bottom to the top"
    return None


@lru_cache(maxsize=32)
def colour_tables(space: ColourSpace) -> ColourTables | None:
    """The tables of a conversion, or None where the library here does not convert by addition.

    Cost: some 10 ms, once.
    """
    levels = np.arange(_LEVELS, dtype=np.uint8)
    luma = levels.repeat(2)[:, None].repeat(2 * _LEVELS, 1)
    across, grey = levels[None].repeat(_LEVELS, 0), np.full((_LEVELS, _LEVELS), _GREY, np.uint8)
    try:
        # By luma down and chroma across: int64 (256, 256, 3).
        by_u = to_rgb(luma, across, grey, space)[::2, ::2].astype(np.int64)
        by_v = to_rgb(luma, grey, across, space)[::2, ::2].astype(np.int64)
    except OSError:  # a matrix that swscale does not know
        return None
    tables = _solve(by_u, by_v)
    return tables if tables is not None and _holds(tables, space) else None


def to_rgb(luma: Plane, u: Plane, v: Plane, space: ColourSpace) -> Plane:
    """Convert planes as decoded frames are: uint8 (H, W) and twice (H/2, W/2) to (H, W, 3)."""
    height, width = luma.shape
    frame = VideoFrame(width, height, space.pixel_format)
    for plane, values in zip(frame.planes, (luma, u, v), strict=True):
        padded = np.zeros((values.shape[0], plane.line_size), np.uint8)
        padded[:, : values.shape[1]] = values
        plane.update(padded.tobytes())
    frame.colorspace, frame.color_range = space.matrix, space.colour_range
    return np.asarray(VideoReformatter().reformat(frame, format="rgb24").to_ndarray(), np.uint8)


def apply_tables(luma: Plane, u: Plane, v: Plane, tables: ColourTables) -> Plane:
    """What `to_rgb` gives, by the tables; u and v as large as luma."""
    base = tables.luma[luma]
    red = base + tables.red_v[v]
    green = base + tables.green_u[u] + tables.green_v[v]
    blue = base + tables.blue_u[u]
    return np.stack([red, green, blue], axis=-1).clip(0, _LEVELS - 1).astype(np.uint8)


def _solve(by_u: NDArray[np.int64], by_v: NDArray[np.int64]) -> ColourTables | None:
    """Undo the clipping: a sum is known wherever any other summand leaves it inside a byte."""
    luma = _unclipped(by_v[:, :, 0], by_u[:, :, 2])
    if luma is None:
        return None
    shifts = [_shifts(luma, table) for table in (by_v[:, :, 0], by_u[:, :, 1], by_v[:, :, 1], by_u[:, :, 2])]
    return ColourTables(**dict(zip(("luma", "red_v", "green_u", "green_v", "blue_u"), (luma, *shifts), strict=True)))


def _unclipped(red_by_v: NDArray[np.int64], blue_by_u: NDArray[np.int64]) -> NDArray[np.int16] | None:
    """Luma's own contribution, also where it is below 0 or above 255: steps between neighbours, seen in any column."""
    columns = np.concatenate([red_by_v, blue_by_u], axis=1)
    inside = (columns > 0) & (columns < _LEVELS - 1)
    both = inside[1:] & inside[:-1]
    if not both.any(axis=1).all():
        return None
    steps = np.diff(columns, axis=0)[np.arange(_LEVELS - 1), both.argmax(axis=1)]
    middle = _LEVELS // 2
    luma = np.concatenate([[0], np.cumsum(steps)])
    luma += red_by_v[middle, _GREY] - luma[middle]
    return luma.astype(np.int16)


def _shifts(luma: NDArray[np.int16], table: NDArray[np.int64]) -> NDArray[np.int16]:
    """What each value of a chroma plane adds, read off the middle-most luma where nothing is clipped."""
    inside = (table > 0) & (table < _LEVELS - 1)
    rows = inside.argmax(axis=0)
    shifts: NDArray[np.int16] = (table[rows, np.arange(_LEVELS)] - luma[rows]).astype(np.int16)
    return shifts


def _holds(tables: ColourTables, space: ColourSpace) -> bool:
    """Whether random pixels come out as the library's."""
    random = np.random.default_rng(0)
    half = _CHECK_SIDE // 2
    luma = random.integers(0, _LEVELS, (_CHECK_SIDE, _CHECK_SIDE), dtype=np.uint8)
    u, v = (random.integers(0, _LEVELS, (half, half), dtype=np.uint8) for _ in range(2))
    wide_u, wide_v = (plane.repeat(2, 0).repeat(2, 1) for plane in (u, v))
    return np.array_equal(apply_tables(luma, wide_u, wide_v, tables), to_rgb(luma, u, v, space))
