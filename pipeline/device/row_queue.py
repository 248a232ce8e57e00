"""Patch rows are made of planes beside what the encoder computes, on a stream of their own.

The GPU's decoders want their memory back, so whoever makes rows of theirs waits; of planes that came with a request
nothing is wanted back, and the encoder's stream is what waits. Rows are short work that whole requests wait for: they
go before the encoder's.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.device.rows import Frames, RowMaker, make_row_maker, patch_rows
from pipeline.device.transfer import Arrived
from pipeline.media.container import MediaType
from pipeline.media.grid import PATCH_SIZE, TABLE_BYTES, frame_bytes, grid_of, row_bytes, temporal_size
from pipeline.request.layout import RequestLayout

_FRAMES_PER_ROW = temporal_size(MediaType.VIDEO)


class RowQueue:
    """Makes rows for many threads.

    Args:
        device: where planes are and rows are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._maker: RowMaker | None = None
        self._queueing = threading.Lock()
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def prepare(self) -> None:
        """Compile the kernels now and not with the first rows."""
        with self._queueing:
            self._made()

    def make(self, frames: Frames, order: Sequence[int], height: int, width: int) -> Tensor:
        """Rows of a clip's distinct frames, complete on return: the frames' memory may then be written again.

        Args:
            frames: of the clip.
            order: for each sampled frame its place among them.
            height: of the resized frame, a multiple of 32.
            width: likewise.
        Returns: uint8 (t * h/16 * w/16, 1536).
        Raises: torch.OutOfMemoryError; by then, too, nothing reads the frames any more.
        Cost: waits for this work, not for the encoder's.
        """

        def work(maker: RowMaker) -> Tensor:
            t, h, w = grid_of(MediaType.VIDEO, len(order), height, width)
            rows = torch.empty((t * h * w, row_bytes(MediaType.VIDEO)), dtype=torch.uint8, device=self._device)
            patch_rows(frames, order, rows, height, width, maker)
            return rows

        done = self._new_event()
        try:
            return self._queue(work, done)
        finally:
            if done is not None:
                done.synchronize()

    def of_request(self, arrived: Arrived, layout: RequestLayout) -> tuple[Tensor, torch.cuda.Event | None]:
        """Patch rows of all clips of a request, whatever form each came in.

        Returns: uint8 (P, row bytes), and what completes when they are there (None: they are). Where all clips came as
            rows they are a view of what arrived.
        Raises: torch.OutOfMemoryError.
        Cost: of planes some kernels a clip, no copy from the host once a size is known, no sync.
        """
        if not layout.plane_sizes:
            return arrived.buffer[layout.rows_start :].view(layout.num_patches, layout.row_bytes), arrived.ready

        def work(maker: RowMaker) -> Tensor:
            if arrived.ready is not None:
                torch.cuda.current_stream(self._device).wait_event(arrived.ready)
            return self._rows_of(arrived.buffer, layout, maker)

        done = self._new_event()
        rows = self._queue(work, done)
        if self._stream is not None:
            arrived.buffer.record_stream(self._stream)
        return rows, done

    def _made(self) -> RowMaker:
        if self._maker is None:
            self._maker = make_row_maker(self._device)
        return self._maker

    def _rows_of(self, buffer: Tensor, layout: RequestLayout, maker: RowMaker) -> Tensor:
        shape = layout.num_patches, layout.row_bytes
        rows = torch.empty(shape, dtype=torch.uint8, device=self._device)
        start = 0
        for clip, (t, h, w) in enumerate(layout.grid_thw):
            target = rows[start : start + t * h * w]
            offset, size = layout.clip_offset(clip), layout.plane_sizes[clip]
            if size is None:
                target.copy_(buffer[offset : offset + layout.clip_bytes(clip)].view(target.shape))
            else:
                num_frames = t * _FRAMES_PER_ROW
                first = offset + TABLE_BYTES
                frames = Frames(
                    planes=buffer[first : first + num_frames * frame_bytes(*size)].view(num_frames, -1),
                    height=size[0],
                    width=size[1],
                    tables=buffer[offset:first].view(torch.int16).view(5, -1),
                    takes_turns=False,
                )
                patch_rows(frames, range(num_frames), target, h * PATCH_SIZE, w * PATCH_SIZE, maker)
            start += t * h * w
        return rows

    def _new_event(self) -> torch.cuda.Event | None:
        return None if self._stream is None else torch.cuda.Event()

    def _queue(self, work: Callable[[RowMaker], Tensor], done: torch.cuda.Event | None) -> Tensor:
        """Queue work that makes rows, for the stream that is current to use them; `done` is recorded behind it."""
        if self._stream is None or done is None:
            return work(self._made())
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                with self._queueing:
                    rows = work(self._made())
                rows.record_stream(compute)
            finally:
                done.record(self._stream)
        return rows
