"""Requests of random patch rows: what an encode actor receives, without decoding anything."""

import numpy as np
import pyarrow as pa

from pipeline.media.container import MediaType
from pipeline.plan.schema import Clip
from pipeline.request.layout import RequestLayout
from pipeline.request.table import RequestMeta, wrap_request


def random_request(grid_thw: tuple[int, int, int], media_type: MediaType = MediaType.VIDEO, seed: int = 0) -> pa.Table:
    """One clip of random pixels as a one-row request table."""
    layout = RequestLayout.of(media_type, [grid_thw])
    buffer = np.random.default_rng(seed).integers(0, 256, layout.num_bytes, dtype=np.uint8)
    buffer[: layout.rows_start] = layout.header().view(np.uint8)
    meta = RequestMeta(
        request_id=f"random-{seed}",
        media_type=media_type,
        clips=(_clip(grid_thw, media_type),),
        decoders=("random",),
        failures=(),
        decode_seconds=0.0,
    )
    return wrap_request(meta, buffer)


def _clip(grid_thw: tuple[int, int, int], media_type: MediaType) -> Clip:
    t, h, w = grid_thw
    return Clip(
        clip_ids=("random",),
        source_uris=("/random",),
        source_id="random",
        source_bytes=0,
        modified_ns=0,
        media_type=media_type,
        clip_index=0,
        start_seconds=0.0,
        end_seconds=float(t),
        width=w * 16,
        height=h * 16,
        fps=2.0,
        num_frames=2 * t,
        frame_indices=tuple(range(2 * t)),
        timestamps_seconds=tuple(float(second) for second in range(t)),
        resized_height=h * 16,
        resized_width=w * 16,
        grid_thw=grid_thw,
    )
