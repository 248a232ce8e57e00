# mypy: ignore-errors
# quack-kernels and the CUTLASS DSL come with the `hopper` extra alone, so their types are not there to be checked.
"""What the tower's products do with their sums before they are rounded, as epilogues of quack's matrix products.

Each function is traced once into the CuTe kernel of a product: `acc` is a float32 sum, or two neighbours in `acc_pair`
mode, and what is returned under `D` is stored. Import this on Hopper; `hopper_kernels` does. What each computes is
defined by the torch code of `kernels`, to which tests hold it. Source: quack 0.6.5 epilogue/frontend.py (the contract
of these functions) and epilogue/rotary.py (why angles are counted in turns).

Operands, float32 but for the bias: `rows` and `columns` (1, P), where each patch is; `frequencies` (1, 3 * D), turns a
step along either axis, of pairs of channels side by side; `bias` (1, N); `scale` (1, P) and `weight_scale` (1, N) of
8-bit factors.
"""

import math
from pathlib import Path

import quack.cache
from cutlass import cute
from quack.activation import gelu_tanh_approx
from quack.epilogue import gemm_epilogue, pack, unpack
from quack.epilogue.ops import ColVecLoad, RowVecLoad, Scalar

# Compiled kernels are kept between processes under a digest of quack's own sources, and of those in this folder.
quack.cache.EXTRA_SOURCE_DIRS.append(Path(__file__).parent)

_RADIANS = 2 * math.pi
_ROUNDING = 1.5 * 2**23  # added and taken away, it rounds a float32 to an integer

_PLACES = {"rows": ColVecLoad("rows"), "columns": ColVecLoad("columns"), "frequencies": RowVecLoad("frequencies")}
_BIAS = {"bias": RowVecLoad("bias")}
_SCALES = {"scale": ColVecLoad("scale"), "weight_scale": RowVecLoad("weight_scale")}


def _turn(pair, rows, columns, frequencies):
    """Turn a pair of channels by the patch's angle; values have a frequency of 0, and come out as they are.

    Whole turns are taken off before the fast sine, which is exact to 2**-20 only near zero.
    """
    first, second = unpack(pair)
    row_frequency, column_frequency = unpack(frequencies)
    turns = cute.math.fma(rows, row_frequency, columns * column_frequency)
    whole = cute.math.fma(turns, 1.0, _ROUNDING) - _ROUNDING
    angle = (turns - whole) * _RADIANS
    sine, cosine = cute.math.sin(angle, fastmath=True), cute.math.cos(angle, fastmath=True)
    return pack(first * cosine - second * sine, first * sine + second * cosine)


@gemm_epilogue(ops={**_BIAS, **_PLACES}, mode="acc_pair")
def rotated(acc, bias, rows, columns, frequencies):
    """Queries, keys and values, the first two turned."""
    return {"D": _turn(acc + bias, rows, columns, frequencies)}


@gemm_epilogue(ops=_BIAS)
def gelu(acc, bias):
    """The tanh-approximated GELU."""
    return {"D": gelu_tanh_approx(acc + bias)}


@gemm_epilogue()
def added(acc, c):
    """Added to what is there."""
    return {"D": acc + c}


@gemm_epilogue(ops={**_SCALES, **_BIAS, **_PLACES}, mode="acc_pair")
def rotated_float8(acc, scale, weight_scale, bias, rows, columns, frequencies):
    """`rotated`, of 8-bit factors."""
    return {"D": _turn(acc * scale * weight_scale + bias, rows, columns, frequencies)}


@gemm_epilogue(ops={**_SCALES, **_BIAS, "reach": Scalar("reach")})
def gelu_float8(acc, scale, weight_scale, bias, reach):
    """`gelu`, of 8-bit factors and to 8 bits, whose scale is `reach` (1, 1)."""
    return {"D": gelu_tanh_approx(acc * scale * weight_scale + bias) * (1.0 / reach)}


@gemm_epilogue(ops=_SCALES)
def added_float8(acc, c, scale, weight_scale):
    """`added`, of 8-bit factors."""
    return {"D": acc * scale * weight_scale + c}
