"""Requests of random patch rows or planes: what an encode actor receives, without decoding anything."""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.encoder.counts import Grid
from pipeline.media.colour import ColourSpace, colour_tables
from pipeline.media.container import MediaType
from pipeline.media.grid import TABLE_BYTES
from pipeline.plan.schema import Clip
from pipeline.request.layout import RequestLayout
from pipeline.request.table import RequestMeta, wrap_request


class StandInStore:
    """A shared mapping that looks like the one Ray keeps its objects in, with room for one request."""

    def __init__(self, num_bytes: int) -> None:
        path = Path("/dev/shm") / f"plasma-stand-in-{os.getpid()}"
        with path.open("wb+") as file:
            file.truncate(num_bytes)
            self.memory = np.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype=np.uint8)
        path.unlink()

    def request(
        self,
        *grids: Grid,
        media_type: MediaType = MediaType.VIDEO,
        seed: int = 0,
        plane_size: tuple[int, int] | None = None,
    ) -> pa.Table:
        """Overwrite what lies here with a new request."""
        return random_request(*grids, media_type=media_type, seed=seed, memory=self.memory, plane_size=plane_size)


def parse_grid(text: str) -> Grid:
    """A grid from TxHxW, in patches."""
    t, h, w = map(int, text.split("x"))
    return t, h, w


def parse_grids(text: str) -> list[Grid]:
    """The clips of one request, from TxHxW+TxHxW..."""
    return [parse_grid(grid) for grid in text.split("+")]


def make_store(requests: Sequence[Sequence[Grid]], device: torch.device) -> StandInStore | None:
    """Memory for the largest request; one for all, because a registered mapping must outlive its registration."""
    if device.type == "cpu":
        return None
    return StandInStore(max(RequestLayout.of(MediaType.VIDEO, grids).num_bytes for grids in requests))


def random_request(
    *grids: Grid,
    media_type: MediaType = MediaType.VIDEO,
    seed: int = 0,
    memory: np.ndarray | None = None,
    plane_size: tuple[int, int] | None = None,
) -> pa.Table:
    """Clips of random pixels as a one-row request table, in memory of its own or at the start of `memory`.

    They are patch rows, or planes of frames of `plane_size`, height and width.
    """
    layout = RequestLayout.of(media_type, grids, [plane_size] * len(grids))
    buffer = np.random.default_rng(seed).integers(0, 256, layout.num_bytes, dtype=np.uint8)
    buffer[: layout.rows_start] = layout.header().view(np.uint8)
    if plane_size is not None:
        tables = colour_tables(ColourSpace(pixel_format="yuv420p", matrix=1, colour_range=1))
        assert tables is not None, "every FFmpeg knows BT.709"
        for clip in range(len(grids)):
            start = layout.clip_offset(clip)
            buffer[start : start + TABLE_BYTES] = tables.stacked().view(np.uint8).ravel()
    if memory is not None:
        memory[: layout.num_bytes] = buffer
        buffer = memory[: layout.num_bytes]
    meta = RequestMeta(
        request_id=f"random-{seed}",
        media_type=media_type,
        clips=tuple(_clip(grid, media_type, plane_size) for grid in grids),
        decoders=("random",) * len(grids),
        failures=(),
        decode_seconds=0.0,
        planar=None if plane_size is None else (True,) * len(grids),
    )
    return wrap_request(meta, buffer)


def _clip(grid_thw: Grid, media_type: MediaType, plane_size: tuple[int, int] | None) -> Clip:
    t, h, w = grid_thw
    height, width = plane_size or (h * 16, w * 16)
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
        width=width,
        height=height,
        fps=2.0,
        num_frames=2 * t,
        frame_indices=tuple(range(2 * t)),
        timestamps_seconds=tuple(float(second) for second in range(t)),
        resized_height=h * 16,
        resized_width=w * 16,
        grid_thw=grid_thw,
    )
