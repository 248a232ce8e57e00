# mypy: ignore-errors
# Triton comes with torch's CUDA wheels alone, so its types are not there to be checked on a CPU.
"""Element-wise work and attention of the tower as Triton kernels: each reads its input once and writes it once.

Import this on a machine with CUDA only; `kernels.py` does. What the kernels compute is defined by the torch code
there, which tests hold them to. All sizes that differ between requests are run-time numbers that Triton is told not
to specialise on: a kernel is compiled once for a tower and a dtype, never for a number of patches.

Shapes: P = patches, D = hidden, A = heads, E = head_dim, S = patches of one temporal patch.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoder.attention import FrameRun, attend

_LOG2_E = math.log2(math.e)
_BLOCK = 64  # queries and keys of a tile
_LEAST_DOT = 16  # channels that tensor cores take at least


@triton.jit(do_not_specialize=["num_rows"])
def _layer_norm(
    hidden,
    offset,
    weight,
    bias,
    output,
    num_rows,
    eps,
    DIM: tl.constexpr,
    OFFSET_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < DIM
    present = inside & (rows < num_rows)
    places = rows * DIM + columns
    values = tl.load(hidden + places, mask=present, other=0.0).to(tl.float32)
    values += tl.load(offset + columns % OFFSET_DIM, mask=inside, other=0.0)
    mean = tl.sum(values, axis=1, keep_dims=True) / DIM
    centred = tl.where(inside, values - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / DIM
    normed = centred * tl.rsqrt(variance + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + places, (normed * scale + shift).to(output.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=["num_patches", "period"])
def _rotate(
    qkv,
    cos,
    sin,
    num_patches,
    period,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PATCHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A tile of two dimensions keeps its divisions to one row. With one index over everything, and 64-bit divisions by
    # an element, this took twice the time of its memory.
    patches = tl.program_id(0) * PATCHES + tl.arange(0, PATCHES)[:, None]
    pairs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    # Queries and keys lie side by side, 2 * HEADS heads of a patch, and its values behind them.
    present = (patches < num_patches) & (pairs < 2 * HEADS * HALF)
    channels = pairs % HALF
    angles = (patches % period) * HALF + channels
    cosine = tl.load(cos + angles, mask=present, other=0.0)
    sine = tl.load(sin + angles, mask=present, other=0.0)
    first_places = qkv + patches.to(tl.int64) * (6 * HEADS * HALF) + (pairs // HALF) * (2 * HALF) + channels
    first = tl.load(first_places, mask=present, other=0.0).to(tl.float32)
    second = tl.load(first_places + HALF, mask=present, other=0.0).to(tl.float32)
    tl.store(first_places, (first * cosine - second * sine).to(qkv.dtype.element_ty), mask=present)
    tl.store(first_places + HALF, (second * cosine + first * sine).to(qkv.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=["num_lines"])
def _normalise(
    rows,
    mean,
    std,
    pixels,
    num_lines,
    VALUES: tl.constexpr,
    FRAMES_IN: tl.constexpr,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A line is one channel of a patch: its frames' values side by side.
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    present = (lines < num_lines) & (columns < FRAMES * VALUES)
    channel = lines % CHANNELS
    source = lines.to(tl.int64) * (FRAMES_IN * VALUES) + columns % (FRAMES_IN * VALUES)
    byte = tl.load(rows + source, mask=present, other=0).to(tl.float32)
    # Rounded to nearest: Triton's `/` is an approximation.
    normalised = tl.div_rn(byte - tl.load(mean + channel), tl.load(std + channel))
    places = lines.to(tl.int64) * (FRAMES * VALUES) + columns
    tl.store(pixels + places, normalised.to(pixels.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=["num_patches"])
def _attend(
    qkv,
    output,
    num_patches,
    scale_log2,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Blocks of one head run side by side and share its keys and values in the cache.
    num_blocks = tl.cdiv(num_patches, BLOCK)
    block = tl.program_id(0) % num_blocks
    head = (tl.program_id(0) // num_blocks) % HEADS
    frame = tl.program_id(0) // (num_blocks * HEADS)
    hidden: tl.constexpr = HEADS * HEAD_DIM
    row_size: tl.constexpr = 3 * hidden
    base = qkv + frame.to(tl.int64) * num_patches * row_size + head * HEAD_DIM
    # Tensor cores take powers of two: the channels that a head has not are zeros.
    channels = tl.arange(0, CHANNELS)
    in_head = channels[None, :] < HEAD_DIM
    queries = block * BLOCK + tl.arange(0, BLOCK)
    is_query = (queries[:, None] < num_patches) & in_head
    query = tl.load(base + queries[:, None] * row_size + channels[None, :], mask=is_query, other=0.0)
    keys = tl.arange(0, BLOCK)
    key_places = base + hidden + keys[:, None] * row_size + channels[None, :]
    value_places = key_places + hidden
    accumulated = tl.zeros([BLOCK, CHANNELS], dtype=tl.float32)
    highest = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    num_whole = num_patches // BLOCK * BLOCK
    for start in tl.range(0, num_whole, BLOCK):
        skipped = start * row_size
        scores = tl.dot(query, tl.trans(tl.load(key_places + skipped, mask=in_head, other=0.0)))
        new_highest = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, 1)
        value = tl.load(value_places + skipped, mask=in_head, other=0.0)
        accumulated = tl.dot(weights.to(qkv.dtype.element_ty), value, accumulated * decay[:, None])
        highest = new_highest
    if num_whole < num_patches:
        skipped = num_whole * row_size
        is_key = num_whole + keys < num_patches
        is_present = is_key[:, None] & in_head
        scores = tl.dot(query, tl.trans(tl.load(key_places + skipped, mask=is_present, other=0.0)))
        scores = tl.where(is_key[None, :], scores * scale_log2, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, 1)
        value = tl.load(value_places + skipped, mask=is_present, other=0.0)
        accumulated = tl.dot(weights.to(qkv.dtype.element_ty), value, accumulated * decay[:, None])
    places = output + (frame.to(tl.int64) * num_patches + queries[:, None]) * hidden + head * HEAD_DIM
    tl.store(places + channels[None, :], (accumulated / total[:, None]).to(output.dtype.element_ty), mask=is_query)


class TritonKernels:
    """`Kernels` for CUDA. Tile sizes are those that were fastest on an H100 (docs/gpu.md has the figures)."""

    def normalise(
        self, patch_rows: Tensor, mean: Tensor, std: Tensor, shape: tuple[int, int, int], dtype: torch.dtype
    ) -> Tensor:
        """One kernel, from bytes to the first product's input."""
        channels, num_frames, values = shape
        num_lines = patch_rows.shape[0] * channels
        pixels = torch.empty((patch_rows.shape[0], channels * num_frames * values), dtype=dtype, device=mean.device)
        _normalise[(triton.cdiv(num_lines, 4),)](
            patch_rows,
            mean,
            std,
            pixels,
            num_lines,
            VALUES=values,
            FRAMES_IN=patch_rows.shape[1] // (channels * values),
            FRAMES=num_frames,
            CHANNELS=channels,
            LINES=4,
            BLOCK=triton.next_power_of_2(num_frames * values),
            num_warps=4,
        )
        return pixels

    def layer_norm(self, hidden: Tensor, offset: Tensor, norm: nn.LayerNorm) -> Tensor:
        """One kernel; statistics in float32."""
        num_rows, dim = hidden.shape
        output = torch.empty_like(hidden)
        _layer_norm[(triton.cdiv(num_rows, 2),)](
            hidden,
            offset,
            norm.weight,
            norm.bias,
            output,
            num_rows,
            norm.eps,
            DIM=dim,
            OFFSET_DIM=offset.numel(),
            ROWS=2,
            BLOCK=triton.next_power_of_2(dim),
            num_warps=4,
        )
        return output

    def rotate_(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """One kernel, in place: each channel is read once and written once."""
        num_patches, _, heads, head_dim = qkv.shape
        _rotate[(triton.cdiv(num_patches, 2), triton.cdiv(heads * head_dim, 256))](
            qkv,
            cos,
            sin,
            num_patches,
            cos.shape[0],
            HEADS=heads,
            HALF=head_dim // 2,
            PATCHES=2,
            BLOCK=256,
            num_warps=4,
        )

    def attend(self, qkv: Tensor, runs: Sequence[FrameRun]) -> Tensor:
        """One kernel a run of equal temporal patches, planned for none; float32 is torch's."""
        num_patches, _, heads, head_dim = qkv.shape
        if qkv.dtype == torch.float32 or head_dim < _LEAST_DOT or head_dim % 8:
            return attend(qkv, runs)
        output = torch.empty((num_patches, heads * head_dim), dtype=qkv.dtype, device=qkv.device)
        start = 0
        for run in runs:
            stop = start + run.num_frames * run.num_patches
            _attend[(triton.cdiv(run.num_patches, _BLOCK) * run.num_frames * heads,)](
                qkv[start:stop],
                output[start:stop],
                run.num_patches,
                head_dim**-0.5 * _LOG2_E,
                HEADS=heads,
                HEAD_DIM=head_dim,
                CHANNELS=triton.next_power_of_2(head_dim),
                BLOCK=_BLOCK,
                num_warps=4,
                num_stages=3,
            )
            start = stop
        return output

    def linear_gelu(self, hidden: Tensor, linear: nn.Linear) -> Tensor:
        """One product with the GELU in its epilogue, taken of the float32 sum; cuBLAS has the tanh one."""
        if hidden.dtype == torch.float32:
            return functional.gelu(linear(hidden), approximate="tanh")
        return torch._addmm_activation(linear.bias, hidden, linear.weight.t(), use_gelu=True)
