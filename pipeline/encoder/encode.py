"""A request's patch rows to its vectors.

Everything between the bytes that arrived on the device and the vectors that leave it. The grids stay Python integers
throughout, so nothing here waits for the device or copies to it: the caller can queue the next request at once.
A request above `max_patches` runs in chunks of whole temporal patches. Attention never crosses one, so the vectors
are the same, and memory is bounded by the chunk. A chunk that does not fit into the device's memory after all is
halved, and later ones are no larger than what fitted: the calls beside it that had the memory will have it again, and
each failure costs the allocator all that it kept. Where not even one temporal patch fitted, nothing is concluded.

Shapes: P = patches, F = temporal patches, O = out_hidden, K = deepstack taps.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.checkpoint import Checkpoint, VisionSpec
from pipeline.config import Arithmetic, OutputConfig
from pipeline.device.turns import IndivisibleError
from pipeline.encoder.calibration import check_float8
from pipeline.encoder.counts import Grid, num_patches, num_vectors, split_chunks
from pipeline.encoder.float8 import to_float8
from pipeline.encoder.graphs import FrameGraphs, FrameShape, bucket_of
from pipeline.encoder.kernels import FLOAT8, Kernels, make_kernels
from pipeline.encoder.memory import affordable_patches, peak_bytes
from pipeline.encoder.pixels import PixelNormalizer
from pipeline.encoder.pooling import OUTPUT_DTYPES, clip_means, finish, frame_means
from pipeline.encoder.tower import VisionTower
from pipeline.encoder.weights import load_tower
from pipeline.errors import ModelError, RequestError

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
# Below this the host queues a request in more time than an H100 computes it (2B tower); 24 shapes cover a corpus of
# a few frame sizes, and their shared memory is that of the largest.
SMALL_PATCHES = 8192
MAX_GRAPHS = 24
DTYPES: dict[Arithmetic, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": FLOAT8}
ARITHMETIC = {dtype: arithmetic for arithmetic, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """Vectors on the device, clip after clip: (N, O) with N clips, temporal patches or tokens by level.

    `deepstack` is (N, K, O) at level `token` if it was asked for, else None. The tensors belong to the caller; another
    stream than the one that was current may read them when `ready` has completed (None: on the CPU).
    """

    vectors: Tensor
    deepstack: Tensor | None
    ready: torch.cuda.Event | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """What is there of the two."""
        return [self.vectors] if self.deepstack is None else [self.vectors, self.deepstack]


def wants_deepstack(spec: VisionSpec, output: OutputConfig) -> bool:
    """Whether these settings give deepstack features: only level `token` has them.

    Raises: ModelError when they were asked for and the model has none.
    """
    if not output.deepstack or output.level != "token":
        return False
    if not spec.deepstack_visual_indexes:
        raise ModelError(f"a {spec.model_type} tower has no deepstack features; set output.deepstack=false")
    return True


class Encoder:
    """A tower with its pixel arithmetic on one device; threads may share it on one CUDA stream.

    Args:
        checkpoint: dimensions, recipe and where the weights are.
        device: where it runs; requests must already be there.
        dtype: arithmetic of the tower. With `FLOAT8` its blocks' products are in 8 bits, and all else in bfloat16.
        max_patches: patches of one forward pass; None: what fits into the device's free memory.
        max_graphs: CUDA graphs kept for small requests; 0 for none. The vectors are the same to the bit.
        float8_least_cosine: how far from bfloat16 the worst calibration picture may be in 8 bits.
    Raises: ModelError when the weights do not fit the checkpoint's config, or suffer too much from 8 bits.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_patches: int | None = None,
        max_graphs: int = MAX_GRAPHS,
        float8_least_cosine: float = 0.999,
    ) -> None:
        self.spec = checkpoint.vision
        kernels = make_kernels(device)
        self._arithmetic = ARITHMETIC[dtype]
        self._dtype = torch.bfloat16 if dtype == FLOAT8 else dtype
        self._pixels = PixelNormalizer(checkpoint.vision, checkpoint.preprocessing, kernels).to(device)
        _set_kernels(device, dtype)
        self._tower = load_tower(checkpoint, device=device, dtype=self._dtype, kernels=kernels)
        if dtype == FLOAT8:
            self._tower = self._checked_float8(kernels, float8_least_cosine)
        self._max_patches = max_patches or affordable_patches(self.spec, self._arithmetic, _free_bytes(device))
        self._graphs: FrameGraphs | None = None
        if device.type == "cuda":
            self._graphs = FrameGraphs(
                self._graph_means,
                self._tower.hold,
                device=device,
                max_patches=min(SMALL_PATCHES, self._max_patches),
                max_graphs=max_graphs,
            )
        # Queueing takes turns: recordings share their input, and may not see another thread's work begin.
        self._lock = Lock()

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of an image's patch row and of a video's."""
        return self._pixels.row_bytes

    @property
    def vector_dim(self) -> int:
        """Values of one vector, at every level."""
        return self.spec.out_hidden_size

    @torch.inference_mode()
    def encode(
        self,
        patch_rows: Tensor,
        grid_thw: Sequence[Sequence[int]],
        output: OutputConfig,
        *,
        ready: torch.cuda.Event | None = None,
    ) -> Encoded:
        """Encode one request.

        Args:
            patch_rows: uint8 (P, 768) of images or (P, 1536) of videos on the encoder's device, clip after clip, each
                in merge-block order. Read until the last kernel that was queued here has run.
            grid_thw: [[t, h, w], ...] in patches, one a clip, Python ints.
            output: level, dtype, normalisation, deepstack.
            ready: completes when the rows are there; None: the current stream need not wait for them.
        Raises: RequestError when rows and grids contradict each other; ModelError as `wants_deepstack`;
            IndivisibleError, or another torch.OutOfMemoryError, where the device has not the memory now.
        Cost: no copy from the host, no sync. Same vectors, up to rounding, whatever else is in the request.
        """
        self._check(patch_rows, grid_thw)
        with_deepstack = wants_deepstack(self.spec, output)
        with self._lock:
            if ready is not None:
                torch.cuda.current_stream(patch_rows.device).wait_event(ready)
            if output.level == "token":
                encoded = self._encode_tokens(patch_rows, grid_thw, output, with_deepstack)
            else:
                encoded = self._encode_means(patch_rows, grid_thw, output)
            return replace(encoded, ready=_event_of(patch_rows.device))

    def _encode_tokens(
        self, patch_rows: Tensor, grid_thw: Sequence[Sequence[int]], output: OutputConfig, with_deepstack: bool
    ) -> Encoded:
        # Filled chunk by chunk: joining chunks at the end would hold every token twice.
        num_tokens = sum(num_vectors(grid, "token", merged_patches=self.spec.merged_patches) for grid in grid_thw)
        num_taps = len(self.spec.deepstack_visual_indexes) if with_deepstack else 0
        dtype, device = OUTPUT_DTYPES[output.dtype], patch_rows.device
        vectors = torch.empty((num_tokens, self.vector_dim), dtype=dtype, device=device)
        deepstack = torch.empty((num_tokens, num_taps, self.vector_dim), dtype=dtype, device=device)
        start = 0
        work = partial(self._tokens, output=output, with_deepstack=with_deepstack)
        for tokens, *taps in self._chunks(work, patch_rows, grid_thw):
            stop = start + tokens.shape[0]
            vectors[start:stop] = tokens
            for tap, tap_tokens in enumerate(taps):
                deepstack[start:stop, tap] = tap_tokens
            start = stop
        return Encoded(vectors=vectors, deepstack=deepstack if with_deepstack else None)

    def _tokens(
        self, patch_rows: Tensor, grids: list[Grid], output: OutputConfig, with_deepstack: bool
    ) -> list[Tensor]:
        result = self._tower(self._pixels(patch_rows, self._dtype), grids, with_deepstack=with_deepstack)
        return [finish(tokens, output) for tokens in (result.tokens, *result.deepstack)]

    def _encode_means(self, patch_rows: Tensor, grid_thw: Sequence[Sequence[int]], output: OutputConfig) -> Encoded:
        frames_FO = torch.cat(list(self._chunks(self._means, patch_rows, grid_thw)))
        vectors = clip_means(frames_FO, grid_thw) if output.level == "clip" else frames_FO
        return Encoded(vectors=finish(vectors, output), deepstack=None)

    def _means(self, patch_rows: Tensor, grids: list[Grid]) -> Tensor:
        """Mean token of each temporal patch: float32 (F, O)."""
        if self._graphs is not None and len({grid[1:] for grid in grids}) == 1:
            num_frames, (_, height, width) = sum(grid[0] for grid in grids), grids[0]
            shape = FrameShape(
                row_bytes=patch_rows.shape[1], num_frames=bucket_of(num_frames), height=height, width=width
            )
            if self._graphs.fits(shape):
                return self._graphs(patch_rows, shape)[:num_frames]
        return self._plain_means(patch_rows, grids)

    def _graph_means(self, patch_rows: Tensor, shape: FrameShape) -> Tensor:
        return self._plain_means(patch_rows, [(shape.num_frames, shape.height, shape.width)])

    def _plain_means(self, patch_rows: Tensor, grids: list[Grid]) -> Tensor:
        tokens = self._tower(self._pixels(patch_rows, self._dtype), grids).tokens
        return frame_means(tokens, grids, self.spec.merged_patches)

    def _chunks(
        self,
        work: Callable[[Tensor, list[Grid]], _Result],
        patch_rows: Tensor,
        grid_thw: Sequence[Sequence[int]],
    ) -> Iterator[_Result]:
        """What `work` gives for each chunk of rows and the grids they fall into, in order."""
        start, most = 0, self._max_patches
        chunks = deque(split_chunks(grid_thw, most))
        while chunks:
            grids = chunks.popleft()
            stop = start + num_patches(grids)
            try:
                result = self._fitting(work, patch_rows[start:stop], grids)
            except IndivisibleError:
                self._max_patches = most
                raise
            if result is None:
                chunks.extendleft(reversed(self._halves(grids)))
                continue
            yield result
            start = stop

    def _fitting(
        self, work: Callable[[Tensor, list[Grid]], _Result], patch_rows: Tensor, grids: list[Grid]
    ) -> _Result | None:
        """`work`'s result, or None where the device has not the memory; nothing of the attempt is kept.

        Raises: IndivisibleError where smaller chunks would not help.
        """
        try:
            return work(patch_rows, grids)
        except torch.OutOfMemoryError as error:
            if sum(grid[0] for grid in grids) == 1:
                needed = peak_bytes(self.spec, num_patches(grids), self._arithmetic, row_bytes=patch_rows.shape[1])
                alone = ModelError(
                    f"one temporal patch of {grids[0][1]}x{grids[0][2]} patches does not fit into the device's memory: "
                    f"it needs about {needed} bytes beside the weights; set sizes.max_tokens_per_frame"
                )
                raise IndivisibleError(alone) from error
            return None

    def _halves(self, grids: list[Grid]) -> list[list[Grid]]:
        half = max(num_patches(grids) // 2, max(height * width for _, height, width in grids))
        self._max_patches = min(self._max_patches, half)
        _LOG.warning("out_of_device_memory patches=%d now_at_most=%d", num_patches(grids), self._max_patches)
        return list(split_chunks(grids, half))

    @torch.inference_mode()
    def _checked_float8(self, kernels: Kernels, least_cosine: float) -> VisionTower:
        quick = to_float8(self._tower, kernels)
        worst = check_float8(self._tower, quick, self._pixels, least_cosine=least_cosine)
        _LOG.info("float8_calibrated worst_cosine=%.6f", worst)
        return quick

    def _check(self, patch_rows: Tensor, grid_thw: Sequence[Sequence[int]]) -> None:
        widths = self.row_bytes
        if patch_rows.dtype != torch.uint8 or patch_rows.dim() != 2 or patch_rows.shape[1] not in widths:
            raise RequestError(
                f"patch_rows: expected uint8 (num_patches, {widths[0]} or {widths[1]}), "
                f"got {patch_rows.dtype} {tuple(patch_rows.shape)}"
            )
        merge = self.spec.spatial_merge_size
        for grid in grid_thw:
            if len(grid) != 3 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
                raise RequestError(
                    f"grid_thw: expected positive (t, h, w) with h and w multiples of {merge}, got {list(grid)}"
                )
        if not grid_thw or num_patches(grid_thw) != patch_rows.shape[0]:
            raise RequestError(
                f"patch_rows: {patch_rows.shape[0]} rows for {len(grid_thw)} clips of {num_patches(grid_thw)} patches "
                "together; a request has at least one clip and one row a patch"
            )


def _free_bytes(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _event_of(device: torch.device) -> torch.cuda.Event | None:
    """An event behind what is queued on the current stream by now."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _set_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Choose kernels for the whole process, once: torch has no such switch that threads could set each for itself."""
    if dtype == torch.float32:
        # TF32, where something else allowed it, keeps 10 of a factor's 23 bits.
        torch.set_float32_matmul_precision("highest")
    if device.type == "cuda":
        # Where attention is torch's (float32, or no Triton): cuDNN's, the default on Hopper, plans 78 ms for each
        # (frames, patches) it has not seen (torch 2.11, H100), and most requests are new.
        torch.backends.cuda.enable_cudnn_sdp(False)
