"""Small requests as CUDA graphs: one launch where there were two hundred.

A small request takes the host longer to queue than the device to compute. Its kernels are therefore recorded once for
each (row bytes, h, w, frames) and replayed. Frames are rounded up to a bucket, by whole dummy frames that no other
frame attends to, so that few recordings serve all lengths. A request is padded whether or not there is a recording
of its shape yet, and so has the same bits from its first time on: cuBLAS may choose by the number of rows.

Bounded: recordings are made for shapes that came before, `max_graphs` at most, least recently used out first; they
share one memory pool, because they run one after the other on one stream, and one input buffer. Where the device has no
memory for another recording, the ones there are go, and none is made again: without them the same pass needs less.

Shapes: P = patches, F = temporal patches, O = out_hidden.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
_STEPS = 4  # buckets between a power of two and the next


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameShape:
    """What a recording is made for: media by the bytes of their rows, a grid, and a bucket of temporal patches."""

    row_bytes: int
    num_frames: int
    height: int
    width: int

    @property
    def num_patches(self) -> int:
        """Patches, the dummy frames' included."""
        return self.num_frames * self.height * self.width


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Recording:
    """A graph, the tensor it writes, and the tables that it reads wherever they lay when it was made."""

    graph: torch.cuda.CUDAGraph
    means: Tensor
    tables: object


def bucket_of(num_frames: int) -> int:
    """Round up to 1 to 8, 10, 12, 14, 16, 20, ...: at most a quarter more."""
    step = 1
    while num_frames > 2 * _STEPS * step:
        step *= 2
    return -(-num_frames // step) * step


class FrameGraphs:
    """Runs small requests, replaying a recording where there is one. The caller lets one thread in at a time.

    Args:
        run: maps uint8 rows of a padded request to float32 (F, O), on the current stream, with no sync.
        hold: returns what must live as long as a recording for (h, w).
        device: a CUDA device.
        max_patches: the largest request, dummy frames included.
        max_graphs: recordings kept; none are made at 0.
    """

    def __init__(
        self,
        run: Callable[[Tensor, FrameShape], Tensor],
        hold: Callable[[int, int], object],
        *,
        device: torch.device,
        max_patches: int,
        max_graphs: int,
    ) -> None:
        self.max_patches = max_patches
        self._run = run
        self._hold = hold
        self._max_graphs = max_graphs
        self._known: OrderedDict[FrameShape, _Recording | None] = OrderedDict()
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._input = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def num_graphs(self) -> int:
        """Recordings made and kept."""
        return sum(recording is not None for recording in self._known.values())

    def fits(self, shape: FrameShape) -> bool:
        """Whether a request of this padded shape is small."""
        return shape.num_patches <= self.max_patches

    def __call__(self, patch_rows: Tensor, shape: FrameShape) -> Tensor:
        """Vectors of every frame of the shape, float32 (F, O); the caller cuts off those of dummy frames.

        Cost: one copy of the rows on the device, and a launch; the second time also the recording, some ten
        milliseconds without a sync.
        """
        padded = self._padded(patch_rows, shape)
        if self._max_graphs == 0:
            return self._run(padded, shape)
        if shape not in self._known:
            self._remember(shape, None)
            return self._run(padded, shape)
        recording = self._known[shape] or self._record_if_it_fits(padded, shape)
        if recording is None:
            return self._run(padded, shape)
        self._known.move_to_end(shape)
        recording.graph.replay()
        return recording.means.clone()

    def _padded(self, patch_rows: Tensor, shape: FrameShape) -> Tensor:
        """The rows at the start of the shared buffer; in the dummy frames is whatever was there."""
        num_bytes = shape.num_patches * shape.row_bytes
        if self._input.numel() == 0:
            most = self.max_patches * max(shape.row_bytes, 1536)
            self._input = torch.zeros(most, dtype=torch.uint8, device=patch_rows.device)
        padded = self._input[:num_bytes].view(shape.num_patches, shape.row_bytes)
        padded[: patch_rows.shape[0]].copy_(patch_rows)
        return padded

    def _record_if_it_fits(self, padded: Tensor, shape: FrameShape) -> _Recording | None:
        try:
            return self._record(padded, shape)
        except torch.OutOfMemoryError:
            _LOG.warning("no_memory_for_a_graph patches=%d graphs=%d", shape.num_patches, self.num_graphs)
            self._max_graphs = 0
            self._known.clear()
            return None

    def _record(self, padded: Tensor, shape: FrameShape) -> _Recording:
        if not self.num_graphs:
            self._pool = torch.cuda.graph_pool_handle()  # torch refuses one whose last graph is gone (2.11)
        current = torch.cuda.current_stream(padded.device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                # Once beforehand: what is allocated or compiled on first use must not be part of the recording.
                self._run(padded, shape)
                tables = self._hold(shape.height, shape.width)
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    means = self._run(padded, shape)
                finally:
                    graph.capture_end()
        finally:
            current.wait_stream(self._stream)  # also after a failure: tables made above stay in use
        recording = _Recording(graph=graph, means=means, tables=tables)
        self._remember(shape, recording)
        return recording

    def _remember(self, shape: FrameShape, recording: _Recording | None) -> None:
        self._known[shape] = recording
        self._known.move_to_end(shape)
        while len(self._known) > self._max_graphs:
            self._known.popitem(last=False)
