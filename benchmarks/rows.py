"""Where benchmarks put patch rows or planes: as the decoder process does, into shared pages that were used before."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipeline.media.patchify import fill_patches
from pipeline.media.planes import PlaneWriter
from pipeline.media.shared_buffer import BufferWriter, SharedBuffer
from pipeline.plan.schema import Clip
from pipeline.request.layout import RequestLayout
from pipeline.request.table import RequestMeta, wrap_request


class RowsBuffer:
    """Shared memory for a request of any one clip up to the largest of some; its pages are there before it is used."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        layouts = [_layout(clip, is_planar=is_planar) for clip in clips for is_planar in (False, True)]
        self._buffer = SharedBuffer(max(layout.num_bytes for layout in layouts))
        self.planes = PlaneWriter()
        self._writer = BufferWriter()
        for _ in range(2):  # a buffer that comes again is what the decoder process mostly has
            self._writer.begin(self._buffer.handle)
        np.frombuffer(self._buffer.memory, np.uint8)[:] = 0

    def fill(self, clip: Clip, frames: Iterable[NDArray[np.uint8]]) -> None:
        """Resize frames and write them as a clip's patch rows."""
        t, h, w = clip.grid_thw
        layout = _layout(clip)
        patches = self._writer.patches(layout.rows_start, t, (h * w, layout.row_bytes))
        fill_patches(frames, patches, clip.media_type, clip.resized_height, clip.resized_width)

    def fill_planes(self, clip: Clip, pictures: Iterable[VideoFrame]) -> None:
        """Write decoded frames as a clip's planes; the clip has a `plane_size`."""
        start = _layout(clip, is_planar=True).rows_start
        self.planes.write_into(self._writer, start, pictures, clip.grid_thw[0], (clip.height, clip.width))

    def content(self, clip: Clip) -> bytes:
        """A copy of the rows of the clip that was filled in last."""
        layout = _layout(clip)
        return bytes(self._buffer.memory[layout.rows_start : layout.num_bytes])

    def wrap(self, clip: Clip, *, is_planar: bool = False) -> pa.Table:
        """What was written as a request in REQUEST_SCHEMA, header included; valid until it is filled again."""
        layout, memory = _layout(clip, is_planar=is_planar), self._buffer.memory
        meta = RequestMeta(
            request_id="benchmark",
            media_type=clip.media_type,
            clips=(clip,),
            decoders=("pyav",),
            failures=(),
            decode_seconds=0.0,
            planar=(True,) if is_planar else None,
        )
        memory[: layout.rows_start] = layout.header().tobytes()
        return wrap_request(meta, memory[: layout.num_bytes])


def _layout(clip: Clip, *, is_planar: bool = False) -> RequestLayout:
    size = clip.plane_size if is_planar else None
    return RequestLayout.of(clip.media_type, [clip.grid_thw], [size])
