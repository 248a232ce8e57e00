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
from pipeline.encoder.hopper_attention import HopperAttention
from pipeline.encoder.kernels import FLOAT8, FLOAT8_MAX, Float8Rows, TorchKernels

_LOG2_E = math.log2(math.e)
_BLOCK = 64  # queries and keys of a tile
_LEAST_DOT = 16  # channels that tensor cores take at least
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
_FLOAT8_MAX = tl.constexpr(FLOAT8_MAX)
_GELU_INNER = tl.constexpr(2 * math.sqrt(2 / math.pi) * _LOG2_E)
_GELU_CUBIC = tl.constexpr(0.044715)


@triton.jit(do_not_specialize=["num_rows"])
def _layer_norm(
    hidden,
    late,
    offset,
    weight,
    bias,
    output,
    scales,
    num_rows,
    eps,
    HAS_LATE: tl.constexpr,
    TO_FLOAT8: tl.constexpr,
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
    if HAS_LATE:
        values += tl.load(late + places, mask=present, other=0.0).to(tl.float32)
        tl.store(hidden + places, values.to(hidden.dtype.element_ty), mask=present)
    values += tl.load(offset + columns % OFFSET_DIM, mask=inside, other=0.0)
    mean = tl.sum(values, axis=1, keep_dims=True) / DIM
    centred = tl.where(inside, values - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / DIM
    normed = centred * tl.rsqrt(variance + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    normed = normed * scale + shift
    if TO_FLOAT8:
        _store_float8(normed, rows, places, present, output, scales, num_rows)
    else:
        tl.store(output + places, normed.to(output.dtype.element_ty), mask=present)


@triton.jit
def _store_float8(values, rows, places, present, output, scales, num_rows):
    row_scales = tl.maximum(tl.max(tl.abs(values), axis=1, keep_dims=True), _TINY) / _FLOAT8_MAX
    tl.store(scales + rows, row_scales, mask=rows < num_rows)
    tl.store(output + places, (values / row_scales).to(output.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=["num_rows"])
def _to_float8(
    source,
    bias,
    output,
    scales,
    num_rows,
    GELU: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    present = (columns < DIM) & (rows < num_rows)
    places = rows * DIM + columns
    values = tl.load(source + places, mask=present, other=0.0).to(tl.float32)
    if GELU:
        values += tl.load(bias + columns, mask=columns < DIM, other=0.0).to(tl.float32)
        # x * sigmoid(2 u) is x * (1 + tanh(u)) / 2.
        values = values / (1.0 + tl.exp2(-_GELU_INNER * (values + _GELU_CUBIC * values * values * values)))
        values = tl.where(present, values, 0.0)
    _store_float8(values, rows, places, present, output, scales, num_rows)


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


class TritonKernels(TorchKernels):
    """`Kernels` for CUDA. Tile sizes are those that were fastest on an H100 (docs/gpu.md has the figures).

    Args:
        flash: serves the runs that it takes, if it is there.
    """

    def __init__(self, flash: HopperAttention | None = None) -> None:
        self._flash = flash

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
        output = torch.empty_like(hidden)
        _launch_layer_norm(hidden, None, offset, norm, output)
        return output

    def layer_norm_float8(self, hidden: Tensor, late: Tensor | None, offset: Tensor, norm: nn.LayerNorm) -> Float8Rows:
        """One kernel; sum and statistics in float32."""
        normed = _empty_float8(hidden)
        _launch_layer_norm(hidden, late, offset, norm, normed.values, normed.scales)
        return normed

    def to_float8(self, values: Tensor) -> Float8Rows:
        """One kernel."""
        return _launch_to_float8(values, None)

    def gelu_to_float8(self, values: Tensor, bias: Tensor) -> Float8Rows:
        """One kernel."""
        return _launch_to_float8(values, bias)

    def float8_product(self, rows: Float8Rows, weight: Float8Rows, bias: Tensor | None) -> Tensor:
        """One product on the tensor cores' fast accumulation, scaled in its epilogue."""
        return torch._scaled_mm(
            rows.values,
            weight.values.t(),
            scale_a=rows.scales,
            scale_b=weight.scales.t(),
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

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
        """One kernel a run of equal temporal patches, planned for none, or FlashAttention's; float32 is torch's."""
        num_patches, _, heads, head_dim = qkv.shape
        if qkv.dtype == torch.float32 or head_dim < _LEAST_DOT or head_dim % 8:
            return attend(qkv, runs)
        if len(runs) == 1 and self._is_flashs(runs[0], head_dim):
            return self._flash(qkv, runs[0])
        output = torch.empty((num_patches, heads * head_dim), dtype=qkv.dtype, device=qkv.device)
        start = 0
        for run in runs:
            stop = start + run.num_frames * run.num_patches
            if self._is_flashs(run, head_dim):
                output[start:stop] = self._flash(qkv[start:stop], run)
            else:
                _launch_attend(qkv[start:stop], output[start:stop], run)
            start = stop
        return output

    def _is_flashs(self, run: FrameRun, head_dim: int) -> bool:
        return self._flash is not None and self._flash.takes(run, head_dim)

    def linear_gelu(self, hidden: Tensor, linear: nn.Linear) -> Tensor:
        """One product with the GELU in its epilogue, taken of the float32 sum; cuBLAS has the tanh one."""
        if hidden.dtype == torch.float32:
            return functional.gelu(linear(hidden), approximate="tanh")
        return torch._addmm_activation(linear.bias, hidden, linear.weight.t(), use_gelu=True)


def _launch_attend(qkv: Tensor, output: Tensor, run: FrameRun) -> None:
    _, _, heads, head_dim = qkv.shape
    _attend[(triton.cdiv(run.num_patches, _BLOCK) * run.num_frames * heads,)](
        qkv,
        output,
        run.num_patches,
        head_dim**-0.5 * _LOG2_E,
        HEADS=heads,
        HEAD_DIM=head_dim,
        CHANNELS=triton.next_power_of_2(head_dim),
        BLOCK=_BLOCK,
        num_warps=4,
        num_stages=3,
    )


def _empty_float8(like: Tensor) -> Float8Rows:
    return Float8Rows(
        values=torch.empty(like.shape, dtype=FLOAT8, device=like.device),
        scales=torch.empty((like.shape[0], 1), dtype=torch.float32, device=like.device),
    )


def _launch_layer_norm(
    hidden: Tensor,
    late: Tensor | None,
    offset: Tensor,
    norm: nn.LayerNorm,
    output: Tensor,
    scales: Tensor | None = None,
) -> None:
    num_rows, dim = hidden.shape
    _layer_norm[(triton.cdiv(num_rows, 2),)](
        hidden,
        hidden if late is None else late,
        offset,
        norm.weight,
        norm.bias,
        output,
        offset if scales is None else scales,
        num_rows,
        norm.eps,
        HAS_LATE=late is not None,
        TO_FLOAT8=scales is not None,
        DIM=dim,
        OFFSET_DIM=offset.numel(),
        ROWS=2,
        BLOCK=triton.next_power_of_2(dim),
        # To 8 bits a row is summed up three times: within a warp that takes two thirds of the time.
        num_warps=1 if scales is not None and late is None else 4,
    )


def _launch_to_float8(values: Tensor, bias: Tensor | None) -> Float8Rows:
    """`values` in 8 bits; of their GELU where there is a bias."""
    num_rows, dim = values.shape
    output = _empty_float8(values)
    _to_float8[(num_rows,)](
        values,
        values if bias is None else bias,
        output.values,
        output.scales,
        num_rows,
        GELU=bias is not None,
        DIM=dim,
        ROWS=1,
        BLOCK=triton.next_power_of_2(dim),
        num_warps=4,
    )
    return output
