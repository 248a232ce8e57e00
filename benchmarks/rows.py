"""Where benchmarks put patch rows: as the decoder process does, into shared pages that were used before."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.media.patchify import fill_patches
from pipeline.media.shared_buffer import SharedBuffer, file_patches
from pipeline.plan.schema import Clip
from pipeline.request.layout import RequestLayout


class RowsBuffer:
    """Shared memory for the rows of any clip up to the largest of some; its pages are there before it is used."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        layouts = [RequestLayout.of(clip.media_type, [clip.grid_thw]) for clip in clips]
        self._buffer = SharedBuffer(max(layout.num_patches * layout.row_bytes for layout in layouts))
        np.frombuffer(self._buffer.memory, np.uint8)[:] = 0

    def fill(self, clip: Clip, frames: Iterable[NDArray[np.uint8]]) -> None:
        """Resize frames and write them as a clip's patch rows."""
        t, h, w = clip.grid_thw
        shape = h * w, RequestLayout.of(clip.media_type, [clip.grid_thw]).row_bytes
        patches = file_patches(self._buffer.handle, 0, t, shape)
        fill_patches(frames, patches, clip.media_type, clip.resized_height, clip.resized_width)

    def content(self, clip: Clip) -> bytes:
        """A copy of the rows of the clip that was filled in last."""
        return bytes(
            self._buffer.memory[: clip.num_patches * RequestLayout.of(clip.media_type, [clip.grid_thw]).row_bytes]
        )
