"""Requests of random patch rows: what an encode actor receives, without decoding anything."""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.encoder.counts import Grid
from pipeline.media.container import MediaType
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

    def request(self, *grids: Grid, media_type: MediaType = MediaType.VIDEO, seed: int = 0) -> pa.Table:
        """Overwrite what lies here with a new request."""
        return random_request(*grids, media_type=media_type, seed=seed, memory=self.memory)


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
) -> pa.Table:
    """Clips of random pixels as a one-row request table, in memory of its own or at the start of `memory`."""
    layout = RequestLayout.of(media_type, grids)
    buffer = np.random.default_rng(seed).integers(0, 256, layout.num_bytes, dtype=np.uint8)
    buffer[: layout.rows_start] = layout.header().view(np.uint8)
    if memory is not None:
        memory[: layout.num_bytes] = buffer
        buffer = memory[: layout.num_bytes]
    meta = RequestMeta(
        request_id=f"random-{seed}",
        media_type=media_type,
        clips=tuple(_clip(grid, media_type) for grid in grids),
        decoders=("random",) * len(grids),
        failures=(),
        decode_seconds=0.0,
    )
    return wrap_request(meta, buffer)


def _clip(grid_thw: Grid, media_type: MediaType) -> Clip:
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
