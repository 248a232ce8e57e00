"""Turning a decoded picture the way its container says it is displayed.

Cameras store the picture as the sensor saw it and a matrix that says how to show it. All eight
quarter turns and mirrorings are exact index permutations; any other angle is rounded to the nearest.
Source: FFmpeg libavutil/display.h (x' = a x + c y, y' = b x + d y).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """Swap the axes first, then mirror."""

    swaps_axes: bool = False
    mirrors_rows: bool = False
    mirrors_columns: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Displayed (width, height) of a stored picture."""
        return (height, width) if self.swaps_axes else (width, height)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Displayed picture of a stored one, uint8 (H, W, 3), contiguous. Cost: a copy if anything turns."""
        if self.swaps_axes:
            image = image.transpose(1, 0, 2)
        if self.mirrors_rows:
            image = image[::-1]
        if self.mirrors_columns:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the frame's display matrix asks for; nothing if it has none.

    `frame.side_data` is the same container, kept in the frame that it refers to: a ring that holds the picture until
    Python collects garbage, which a process that makes few objects does after hundreds of frames (PyAV 18.1).
    """
    side_data: Any = SideDataContainer(frame).get(Type.DISPLAYMATRIX.name)  # type: ignore[call-arg]  # PyAV's stub
    if side_data is None:
        return Orientation()
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(side_data, np.int32))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(swaps_axes=True, mirrors_rows=b < 0, mirrors_columns=c < 0)
    return Orientation(mirrors_rows=d < 0, mirrors_columns=a < 0)
