"""Where benchmarks put patch rows: as the decoder process does, into shared pages that were used before."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.media.patchify import fill_patches
from pipeline.media.shared_buffer import SharedBuffer, file_patches
from pipeline.plan.schema import Clip
from pipeline.request.layout import RequestLayout
from pipeline.request.table import RequestMeta, wrap_request


class RowsBuffer:
    """Shared memory for a request of any one clip up to the largest of some; its pages are there before it is used."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._buffer = SharedBuffer(max(_layout(clip).num_bytes for clip in clips))
        np.frombuffer(self._buffer.memory, np.uint8)[:] = 0

    def fill(self, clip: Clip, frames: Iterable[NDArray[np.uint8]]) -> None:
        """Resize frames and write them as a clip's patch rows."""
        t, h, w = clip.grid_thw
        layout = _layout(clip)
        patches = file_patches(self._buffer.handle, layout.rows_start, t, (h * w, layout.row_bytes))
        fill_patches(frames, patches, clip.media_type, clip.resized_height, clip.resized_width)

    def content(self, clip: Clip) -> bytes:
        """A copy of the rows of the clip that was filled in last."""
        layout = _layout(clip)
        return bytes(self._buffer.memory[layout.rows_start : layout.num_bytes])

    def wrap(self, clip: Clip) -> pa.Table:
        """What was written as a request in REQUEST_SCHEMA, header included; valid until it is filled again."""
        layout, memory = _layout(clip), self._buffer.memory
        meta = RequestMeta(
            request_id="benchmark",
            media_type=clip.media_type,
            clips=(clip,),
            decoders=("pyav",),
            failures=(),
            decode_seconds=0.0,
        )
        memory[: layout.rows_start] = layout.header().tobytes()
        return wrap_request(meta, memory[: layout.num_bytes])


def _layout(clip: Clip) -> RequestLayout:
    return RequestLayout.of(clip.media_type, [clip.grid_thw])
