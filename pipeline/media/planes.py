"""Decoded planes in place of patch rows: what a video's frames are on the wire where a GPU makes the rows.

A decoder's 4:2:0 planes are 1.5 bytes a pixel, its rows 3 a resized one, so at the sizes at which short videos are
encoded planes are the smaller; and colours, resize and patch order, an eighth to a quarter of the CPU's time for such a
clip, are little work for a GPU. The rows are the same to the byte, because every step is integer arithmetic, to which
the decoder's own libraries are held here: the colours on the first frame of each kind, the resize once a process. What
planes cannot say (10 bits, 4:2:2, interlaced or turned pictures, a size that changes) is decoded into rows, as
everything is where the encoder runs on a CPU.

A clip's part of a request, t temporal patches of frames of H x W pixels:

    byte 0    int16 [5, 256]           colour tables, in the order of `ColourTables`
    2,560     uint8 [2t, H * W * 3/2]  frames: luma, U, V without gaps; of an odd number the last one twice
              anything up to the next multiple of 256 bytes
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.media.colour import ColourSpace, ColourTables, apply_tables, colour_tables, planar_problem
from pipeline.media.container import MediaType
from pipeline.media.grid import TABLE_BYTES, frame_bytes, planes_bytes, temporal_size
from pipeline.media.resize import resize_taps, resize_to_planes
from pipeline.media.shared_buffer import BufferWriter

_CHECKED_LINES = 32  # at the top and at the bottom of a frame
_MOST_KINDS = 1024
_CHECKED_SIZES = ((72, 48), (48, 72))  # both directions, larger and smaller


class NotPlanarError(Exception):
    """A frame is not of planes, or of others than those before it; says why."""


class PlaneWriter:
    """Writes clips' frames as planes, and keeps which kinds of frames have been found to be what their tables say."""

    def __init__(self) -> None:
        self._tables: dict[tuple[Any, ...], NDArray[np.uint8] | None] = {}

    def takes(self, frame: VideoFrame, height: int, width: int) -> bool:
        """Whether a clip that begins with this frame can be written, if all its frames are of that kind."""
        try:
            _require_planar(frame, height, width)
            self._table_of(frame, _kind_of(frame))
        except NotPlanarError:
            return False
        return True

    def write(
        self, frames: Iterable[VideoFrame], height: int, width: int, slots: Iterable[NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Write one clip.

        Args:
            frames: as decoded, one or more.
            height: of every frame in pixels, even.
            width: likewise.
            slots: uint8 (1, H * W * 3/2) each, as many as frames, or one more, which has the last frame again; each is
                filled before the next one is asked for.
        Returns: the colour tables, uint8 (TABLE_BYTES,).
        Raises: NotPlanarError as soon as a frame is none that planes can be of.
        Cost: one copy of the planes; for the first frame of a kind some milliseconds.
        """
        waiting = iter(frames)
        kind: tuple[Any, ...] | None = None
        table = np.empty(0, np.uint8)
        last: VideoFrame | None = None
        for slot in slots:
            frame = next(waiting, last)
            assert frame is not None, "a clip has a frame"
            if frame is not last:
                _require_planar(frame, height, width)
                if kind is None:
                    kind = _kind_of(frame)
                    table = self._table_of(frame, kind)
                elif kind != _kind_of(frame):
                    raise NotPlanarError("its colours change")
            copy_planes(frame, slot.reshape(-1))
            last = frame
        assert next(waiting, None) is None, "more frames than the slots are for"
        return table

    def write_into(
        self, buffers: BufferWriter, offset: int, frames: Iterable[VideoFrame], t: int, size: tuple[int, int]
    ) -> int:
        """`write` a clip of `t` temporal patches of frames of this height and width into a job's buffer.

        Returns: how many bytes of it are the clip's.
        """
        num_frames = t * temporal_size(MediaType.VIDEO)
        slots = buffers.patches(offset + TABLE_BYTES, num_frames, (1, frame_bytes(*size)))
        table = self.write(frames, *size, slots)
        for target in buffers.patches(offset, 1, (1, TABLE_BYTES)):
            target[:] = table
        return planes_bytes(t, *size)

    def _table_of(self, frame: VideoFrame, kind: tuple[Any, ...]) -> NDArray[np.uint8]:
        """The colour tables of a kind of frames. Raises: NotPlanarError where they are not what the library does."""
        if len(self._tables) >= _MOST_KINDS:
            self._tables.clear()
        if kind not in self._tables:
            self._tables[kind] = _checked_table(frame)
        table = self._tables[kind]
        if table is None:
            raise NotPlanarError(f"colours of no known kind: {kind}")
        return table


def copy_planes(frame: VideoFrame, target: NDArray[np.uint8]) -> None:
    """Copy a 4:2:0 frame's luma, U and V into uint8 (H * W * 3/2,), one after the other. Both sides are even."""
    start = 0
    for lines in plane_arrays(frame):
        target[start : start + lines.size].reshape(lines.shape)[:] = lines
        start += lines.size


def plane_arrays(frame: VideoFrame) -> list[NDArray[np.uint8]]:
    """Views of a 4:2:0 frame's planes: (H, W) and twice (H/2, W/2), valid as long as the frame is."""
    height, width = frame.height, frame.width
    sides = (height, width), (height // 2, width // 2), (height // 2, width // 2)
    return [
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:rows, :columns]  # type: ignore[call-overload]
        for plane, (rows, columns) in zip(frame.planes, sides, strict=True)
    ]


def _require_planar(frame: VideoFrame, height: int, width: int) -> None:
    problem = planar_problem(frame, height, width)
    if problem is not None:
        raise NotPlanarError(problem)


def _kind_of(frame: VideoFrame) -> tuple[Any, ...]:
    """What a conversion to RGB may depend on."""
    return ColourSpace.of(frame), int(frame.color_primaries), int(frame.color_trc), frame.height, frame.width


def _checked_table(frame: VideoFrame) -> NDArray[np.uint8] | None:
    """The frame's colour tables as bytes, or None where colours or sizes are not made here as a GPU will make them."""
    tables = colour_tables(ColourSpace.of(frame))
    if tables is None or not resizes_by_taps() or not _agrees(frame, tables):
        return None
    return tables.stacked().view(np.uint8).reshape(-1)


def _agrees(frame: VideoFrame, tables: ColourTables) -> bool:
    """Whether a frame's first and last lines become by the tables what the library makes of them.

    A conversion may depend on more than `ColourSpace` says.
    """
    found = VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()
    luma, u, v = plane_arrays(frame)
    for lines in (slice(None, _CHECKED_LINES), slice(-_CHECKED_LINES, None)):
        half = slice(lines.start and lines.start // 2, lines.stop and lines.stop // 2)
        wide_u, wide_v = (plane[half].repeat(2, 0).repeat(2, 1) for plane in (u, v))
        if not np.array_equal(apply_tables(luma[lines], wide_u, wide_v, tables), found[lines]):
            return False
    return True


@lru_cache(maxsize=1)
def resizes_by_taps() -> bool:
    """Whether torch's resize here is what `resize_taps` says, by a random picture made smaller and larger.

    Cost: a few milliseconds, once.
    """
    picture = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    for height, width in _CHECKED_SIZES:
        columns = _by_taps(picture.transpose(2, 0, 1), width)
        by_taps = _by_taps(columns.transpose(0, 2, 1), height).transpose(0, 2, 1)
        if not np.array_equal(by_taps, resize_to_planes(picture, height, width)):
            return False
    return True


def _by_taps(planes: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the last axis."""
    taps = resize_taps(planes.shape[-1], size)
    places = np.minimum(taps.starts[:, None] + np.arange(taps.weights.shape[1]), planes.shape[-1] - 1)
    total = (planes[..., places].astype(np.int64) * taps.weights).sum(-1) + (1 << (taps.precision - 1))
    resized: NDArray[np.uint8] = np.clip(total >> taps.precision, 0, 255).astype(np.uint8)
    return resized
