"""How much device memory a request takes, from its grids alone.

Everything the encoder allocates is a multiple of the patches in one forward pass, so the peak is a sum of widths. It is
checked against the allocator by a test. Attention needs no memory of its own: its scores never leave the chip. Types go
by their names here, because a plan is predicted where torch is not loaded.
"""

from pipeline.checkpoint import VisionSpec
from pipeline.config import Arithmetic, OutputConfig

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 2}  # of a value; float8 is of the products only
_SHARE_OF_FREE = 0.4  # two requests may be under way, and another's bytes arriving
_MOST_PATCHES = 65_536  # beyond that a pass is no faster
_PLANES_AND_ROWS = 1.5 + 2  # bytes of rows: planes at most, resized frames of the largest clip, rows
_MAKING_BYTES = 3 * (100 << 20)  # frames that rows are being made of: RGB, and resized one way and the other


def bytes_per_patch(spec: VisionSpec, arithmetic: Arithmetic, *, row_bytes: int | None = None) -> int:
    """Device bytes of one patch at the peak of a forward pass, its row included; weights are apart.

    Args:
        spec: the tower's dimensions.
        arithmetic: its own.
        row_bytes: of the request's media; None means video, the larger.
    """
    hidden = spec.hidden_size
    if arithmetic == "float8":
        # The stream, then fc1's result in 16 bits and its GELU in 8, with what is still to be added to the stream.
        # Hopper's products leave neither behind, and need an eighth less.
        return (row_bytes or spec.patch_values) + 2 * spec.patch_values + 3 * hidden + 3 * spec.intermediate_size
    attention = (1 + 3 + 1) * hidden  # normalised, qkv, result
    mlp = hidden + spec.intermediate_size * (2 if arithmetic == "float32" else 1)
    values = spec.patch_values + hidden + max(attention, mlp)
    return (row_bytes or spec.patch_values) + values * _BYTES[arithmetic]


def peak_bytes(spec: VisionSpec, num_patches: int, arithmetic: Arithmetic, *, row_bytes: int | None = None) -> int:
    """Device bytes that one forward pass over `num_patches` patches needs beside the weights, on CUDA."""
    return num_patches * bytes_per_patch(spec, arithmetic, row_bytes=row_bytes)


def request_bytes(
    spec: VisionSpec,
    num_patches: int,
    arithmetic: Arithmetic,
    output: OutputConfig,
    *,
    row_bytes: int,
    max_patches: int | None = None,
    as_planes: bool = False,
) -> int:
    """Device bytes of a whole request at its peak, beside the weights: its rows, a pass, and the vectors that leave it.

    Args:
        spec: the tower's dimensions.
        num_patches: of the request.
        arithmetic: the tower's.
        output: at level `token` the vectors are what takes the memory; pooled ones count as nothing.
        row_bytes: of the request's media.
        max_patches: of one pass; None: as many as a large device takes.
        as_planes: it may come as planes, which are there beside what is made of them.
    """
    making = int(num_patches * row_bytes * _PLANES_AND_ROWS) + _MAKING_BYTES if as_planes else 0
    in_pass = min(num_patches, max_patches or _MOST_PATCHES)
    waiting = (num_patches - in_pass) * row_bytes
    passing = peak_bytes(spec, in_pass, arithmetic, row_bytes=row_bytes)
    if output.level != "token":
        return max(making, waiting + passing)
    num_kinds = 1 + (len(spec.deepstack_visual_indexes) if output.deepstack else 0)
    token_bytes = spec.out_hidden_size * _BYTES[arithmetic]
    vector_bytes = spec.out_hidden_size * _BYTES[output.dtype]
    in_float32 = spec.out_hidden_size * 2 * _BYTES["float32"]  # one kind at a time, and its scaled copy
    num_tokens = in_pass // spec.merged_patches
    # Deepstack tokens wait for the blocks behind them; at the end all kinds are finished, and then copied to the whole.
    passing += num_tokens * (num_kinds - 1) * token_bytes
    finishing = in_pass * row_bytes + num_tokens * (num_kinds * (token_bytes + vector_bytes) + in_float32)
    vectors = num_patches // spec.merged_patches * num_kinds * vector_bytes
    return max(making, waiting + max(passing, finishing) + vectors)


def affordable_patches(spec: VisionSpec, arithmetic: Arithmetic, free_bytes: int | None) -> int:
    """Patches of one forward pass that fit into what is free on a device, with room for a second request.

    Args:
        spec: the tower's dimensions.
        arithmetic: its own.
        free_bytes: of device memory, beside the weights; None: as much as a pass can use.
    """
    if free_bytes is None:
        return _MOST_PATCHES
    return max(1, min(_MOST_PATCHES, int(free_bytes * _SHARE_OF_FREE) // bytes_per_patch(spec, arithmetic)))
