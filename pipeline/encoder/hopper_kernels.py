# mypy: ignore-errors
# quack-kernels comes with the `hopper` extra alone, so its types are not there to be checked.
"""The tower's products on Hopper, with everything that can be done to a product's sums done before they are rounded.

cuBLAS computes products and little else: queries and keys are turned by a kernel of their own, which reads and writes
them once more, and its GELU makes a product slower by a quarter. quack's products (Apache-2.0, from FlashAttention's
author, and what FlashAttention 4 depends on anyway) take an epilogue as a Python function, and their warp groups take
turns, so that one multiplies while the other finishes: rotation and GELU cost next to nothing. The narrowing product
behind the GELU stays cuBLAS's, which is faster there. In 8 bits more is gained, because there a product is short and
passes over its result are long: the residual is added in place, and the GELU's result is written in 8 bits at once.

That last one wants a scale before the values are known. It is a bound, the same for all patches (`float8` derives it):
some eight times the largest value, which costs 8-bit floating point nothing, because its steps follow each value's own
size over a range of 2**15.

Turned pairs must be neighbours in a product's result, so `arrange_` reorders the channels of queries and keys alike.
Which tiles serve which shape was measured (docs/gpu.md). A kernel is compiled for a kind of product, for no number of
patches: two to seven seconds each, once a machine (`kernel_cache`).

Shapes: P = patches, D = hidden, A = heads, E = head_dim.
"""

import warnings
from typing import NamedTuple

import torch
from quack.gemm_runtime.host import run_gemm_epi_plan
from torch import Tensor, nn

from pipeline.encoder import hopper_epilogues as epilogues
from pipeline.encoder.attention import Place
from pipeline.encoder.hopper_attention import HopperAttention
from pipeline.encoder.kernels import FLOAT8, Float8Layer, Float8Rows
from pipeline.encoder.pairs import neighbour_order, turns_a_step
from pipeline.encoder.triton_kernels import TritonKernels


class Tiles(NamedTuple):
    """How a product is cut: rows and columns of a tile, and tiles of a cluster, which share what they read."""

    rows: int
    columns: int
    cluster_rows: int
    cluster_columns: int


_TALL = Tiles(192, 128, 1, 2)
_WIDE = Tiles(128, 192, 2, 1)
_SQUARE = Tiles(128, 128, 2, 1)


class HopperKernels(TritonKernels):
    """`Kernels` for Hopper; for one thread at a time, as the encoder's queueing is. float32 stays torch's.

    Args:
        flash: serves the runs that it takes.
        device: where the tables of frequencies lie.
    Raises: whatever the package does where a product cannot be compiled, for a driver that is too old, say.
    """

    def __init__(self, flash: HopperAttention, device: torch.device) -> None:
        super().__init__(flash)
        self._device = device
        self._frequencies: dict[tuple[int, int, int], Tensor] = {}
        self._plans: dict[tuple[object, ...], object] = {}
        # What stands in quack's or the compiler's way shows here, and not in the middle of a run.
        rows = torch.zeros((4, 128), dtype=torch.bfloat16, device=device)
        _plan(
            epilogues.gelu, rows, rows.new_zeros((128, 128)).t(), rows, None, _TALL, {"bias": rows.new_zeros((1, 128))}
        )

    def arrange_(self, qkv: nn.Linear, heads: tuple[int, int, int]) -> None:
        """Make neighbours of the channels i and i + E / 2 of queries and keys; not in float32."""
        if qkv.weight.dtype == torch.float32:
            return
        order = neighbour_order(heads).to(qkv.weight.device)
        qkv.weight.data, qkv.bias.data = qkv.weight.data[order], qkv.bias.data[order]
        if heads not in self._frequencies:
            self._frequencies[heads] = turns_a_step(heads).to(self._device)[None]

    def project(self, hidden: Tensor, qkv: nn.Linear, heads: tuple[int, int, int], place: Place) -> Tensor:
        """One product."""
        if hidden.dtype == torch.float32:
            return super().project(hidden, qkv, heads, place)
        projected = torch.empty((hidden.shape[0], qkv.out_features), dtype=hidden.dtype, device=hidden.device)
        operands = {"bias": qkv.bias[None], **self._places(heads, place)}
        self._multiply(epilogues.rotated, hidden, qkv.weight, projected, _TALL, operands)
        return projected.view(-1, *heads)

    def linear_gelu(self, hidden: Tensor, linear: nn.Linear) -> Tensor:
        """One product, with the GELU of its float32 sums."""
        if hidden.dtype == torch.float32:
            return super().linear_gelu(hidden, linear)
        widened = torch.empty((hidden.shape[0], linear.out_features), dtype=hidden.dtype, device=hidden.device)
        self._multiply(epilogues.gelu, hidden, linear.weight, widened, _TALL, {"bias": linear.bias[None]})
        return widened

    def add_product_(self, hidden: Tensor, values: Tensor, weight: Tensor) -> None:
        """One product; cuBLAS's where it narrows, because long sums are where it is the faster one."""
        if hidden.dtype == torch.float32 or weight.shape[1] > weight.shape[0]:
            super().add_product_(hidden, values, weight)
        else:
            self._multiply(epilogues.added, values, weight, hidden, _least_waste(weight.shape[0]), {}, add=True)

    def project_float8(self, rows: Float8Rows, qkv: Float8Layer, heads: tuple[int, int, int], place: Place) -> Tensor:
        """One product."""
        num_patches, width = rows.values.shape[0], qkv.weight.values.shape[0]
        projected = torch.empty((num_patches, width), dtype=torch.bfloat16, device=rows.values.device)
        operands = {**_scales(rows, qkv.weight), "bias": qkv.bias[None], **self._places(heads, place)}
        self._multiply(epilogues.rotated_float8, rows.values, qkv.weight.values, projected, _TALL, operands)
        return projected.view(-1, *heads)

    def linear_gelu_float8(self, rows: Float8Rows, layer: Float8Layer) -> Float8Rows:
        """One product, and a kernel that repeats the scale for each patch."""
        num_patches, width = rows.values.shape[0], layer.weight.values.shape[0]
        widened = torch.empty((num_patches, width), dtype=FLOAT8, device=rows.values.device)
        operands = {**_scales(rows, layer.weight), "bias": layer.bias[None], "reach": layer.reach}
        self._multiply(epilogues.gelu_float8, rows.values, layer.weight.values, widened, _SQUARE, operands)
        return Float8Rows(values=widened, scales=layer.reach.repeat(num_patches, 1))

    def add_float8_(self, hidden: Tensor, rows: Float8Rows, weight: Float8Rows) -> None:
        """One product, added in place."""
        tiles = _least_waste(hidden.shape[1])
        self._multiply(
            epilogues.added_float8, rows.values, weight.values, hidden, tiles, _scales(rows, weight), add=True
        )

    def _places(self, heads: tuple[int, int, int], place: Place) -> dict[str, Tensor]:
        rows, columns = place.coordinates[:1], place.coordinates[1:]
        return {"rows": rows, "columns": columns, "frequencies": self._frequencies[heads]}

    def _multiply(
        self,
        epilogue: object,
        values: Tensor,
        weight: Tensor,
        output: Tensor,
        tiles: Tiles,
        operands: dict[str, Tensor],
        *,
        add: bool = False,
    ) -> None:
        """Queue `values` (P, n) times the transpose of `weight` (m, n), through an epilogue, into `output` (P, m).

        quack's own call would look at every tensor's shape, 50 microseconds of each product. Here a product is planned
        once for each kind: its kernel takes all sizes as run-time numbers.
        """
        factor, addend = weight.t(), output if add else None
        kind = epilogue, tiles, values.dtype, output.dtype, weight.shape
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = _plan(epilogue, values, factor, output, addend, tiles, operands)
        run_gemm_epi_plan(plan, values, factor, output, addend, operands)


def _plan(
    epilogue: object,
    values: Tensor,
    factor: Tensor,
    output: Tensor,
    addend: Tensor | None,
    tiles: Tiles,
    operands: dict[str, Tensor],
) -> object:
    """Compile a product, or find it on the disk."""
    with warnings.catch_warnings():  # its compiler warns of its own calls
        warnings.simplefilter("ignore")
        return epilogue.gemm(
            values,
            factor,
            output,
            addend,
            epi_args=operands,
            tile_M=tiles.rows,
            tile_N=tiles.columns,
            cluster_M=tiles.cluster_rows,
            cluster_N=tiles.cluster_columns,
            pingpong=True,
            b_kn=True,
            # As torch's scaled products are called: sums are not moved to other registers every 128 channels.
            post_init_attrs=(("fp8_slow_accum", False),) if values.dtype == FLOAT8 else (),
            _launch=False,
        )


def _least_waste(width: int) -> Tiles:
    """Of the two good cuts the one that computes fewer columns beyond the last."""

    def computed(tiles: Tiles) -> int:
        columns = tiles.columns * tiles.cluster_columns
        return -(-width // columns) * columns

    return min(_TALL, _WIDE, key=computed)


def _scales(rows: Float8Rows, weight: Float8Rows) -> dict[str, Tensor]:
    return {"scale": rows.scales.view(1, -1), "weight_scale": weight.scales.view(1, -1)}
