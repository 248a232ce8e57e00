"""Kernels and products in 8 bits on a CUDA device, against the same in plain torch."""

import pytest
import torch

from pipeline.encoder.encode import Encoder
from pipeline.encoder.kernels import FLOAT8, Float8Rows, TorchKernels, make_kernels
from tests.cuda import CUDA, cuda_noise
from tests.encoder.factories import (
    CPU,
    MIXED_GRIDS,
    make_checkpoint,
    make_output,
    make_rows,
    make_spec,
    relative_error,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPES = [(1, 1024), (77, 1152), (33, 4304), (500, 4096)]


def assert_same_rows(ours: Float8Rows, torchs: Float8Rows) -> None:
    assert torch.allclose(ours.scales, torchs.scales, rtol=1e-5)
    actual, expected = (rows.values.to(torch.float32) for rows in (ours, torchs))
    # A value between two steps may go to either where its last float32 bit differs: a sixteenth of values to an eighth.
    assert torch.allclose(actual, expected, rtol=0.13, atol=2**-8)
    assert (actual != expected).float().mean() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_rounded_as_by_torch(shape):
    values = cuda_noise(*shape)
    assert_same_rows(make_kernels(CUDA).to_float8(values), TorchKernels().to_float8(values))


def test_rows_of_zeros_stay_zeros():
    rows = make_kernels(CUDA).to_float8(torch.zeros(3, 1024, device=CUDA, dtype=torch.bfloat16))
    assert torch.all(rows.values.to(torch.float32) == 0)
    assert torch.all(torch.isfinite(rows.scales))


@pytest.mark.parametrize("shape", SHAPES)
def test_gelu_is_torchs_even_far_from_zero(shape):
    values, bias = cuda_noise(*shape) * 6, cuda_noise(shape[1], seed=1)
    assert_same_rows(make_kernels(CUDA).gelu_to_float8(values, bias), TorchKernels().gelu_to_float8(values, bias))


@pytest.mark.parametrize("has_late", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_what_is_late_is_added_before_the_normalisation(shape, has_late):
    hidden, late = cuda_noise(*shape), cuda_noise(*shape, seed=1) if has_late else None
    offset = cuda_noise(shape[1], seed=2, dtype=torch.float32)
    norm = torch.nn.LayerNorm(shape[1], eps=1e-6).to(CUDA, torch.bfloat16).requires_grad_(False)
    streams = hidden.clone(), hidden.clone()
    ours = make_kernels(CUDA).layer_norm_float8(streams[0], late, offset, norm)
    torchs = TorchKernels().layer_norm_float8(streams[1], late, offset, norm)
    assert torch.equal(*streams)
    assert_same_rows(ours, torchs)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 7, 196, 1000])
def test_a_product_is_torchs_for_any_number_of_rows(num_rows, with_bias):
    kernels = TorchKernels()
    rows, weight = kernels.to_float8(cuda_noise(num_rows, 1152)), kernels.to_float8(cuda_noise(3456, 1152, seed=1))
    bias = cuda_noise(3456, seed=2) if with_bias else None
    ours = make_kernels(CUDA).float8_product(rows, weight, bias)
    assert relative_error(ours.float(), kernels.float8_product(rows, weight, bias).float()) <= 1e-2


@pytest.mark.parametrize("level", ["clip", "token"])
@pytest.mark.parametrize("head_dim", [64, 72])
def test_a_tower_in_eight_bits_is_no_further_from_float32_than_on_the_cpu(head_dim, level):
    checkpoint, rows, output = make_checkpoint(make_spec(head_dim)), make_rows(MIXED_GRIDS), make_output(level)
    exact, on_cpu, on_cuda = (
        Encoder(checkpoint, device=device, dtype=dtype, float8_least_cosine=0.9)
        .encode(rows.to(device), MIXED_GRIDS, output)
        .vectors.cpu()
        for device, dtype in ((CPU, torch.float32), (CPU, FLOAT8), (CUDA, FLOAT8))
    )
    assert (on_cuda - exact).square().mean() <= 1.1 * (on_cpu - exact).square().mean()
