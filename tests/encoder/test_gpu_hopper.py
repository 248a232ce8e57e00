"""Products that finish their sums themselves, on a Hopper GPU, against the same steps in float64 and in plain torch."""

import pytest
import torch
from torch.nn import functional

from pipeline.encoder.attention import Place
from pipeline.encoder.float8 import Float8Linear
from pipeline.encoder.kernels import TorchKernels, make_kernels
from pipeline.encoder.pairs import neighbour_order
from pipeline.encoder.positions import PositionTables
from tests.cuda import CUDA, cuda_noise
from tests.encoder.factories import make_spec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPES = [(1024, 16, 64), (1152, 16, 72), (128, 2, 64)]  # hidden, heads, head_dim
FRAMES = [1, 9]


@pytest.fixture(scope="module")
def kernels():
    found = make_kernels(CUDA)
    if type(found).__name__ != "HopperKernels":
        pytest.skip("needs a Hopper GPU and the `hopper` extra")
    return found


def make_linear(inputs: int, outputs: int) -> torch.nn.Linear:
    linear = torch.nn.Linear(inputs, outputs).to(CUDA, torch.bfloat16).requires_grad_(False)
    linear.weight.data, linear.bias.data = (
        cuda_noise(outputs, inputs, seed=1) * inputs**-0.5,
        cuda_noise(outputs, seed=2),
    )
    return linear


def make_place(head_dim: int, num_frames: int, height: int = 30, width: int = 52) -> Place:
    found = PositionTables(make_spec(head_dim)).to(CUDA)(torch.zeros(64, 2 * head_dim, device=CUDA), height, width)
    return Place(cos=found.cos, sin=found.sin, coordinates=found.coordinates.repeat(1, num_frames), runs=())


def error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("num_frames", FRAMES)
@pytest.mark.parametrize(("hidden", "num_heads", "head_dim"), SHAPES)
def test_a_turned_projection_is_no_further_from_float64_than_torchs(kernels, hidden, num_heads, head_dim, num_frames):
    heads, place = (3, num_heads, head_dim), make_place(head_dim, num_frames)
    rows, linear = cuda_noise(place.coordinates.shape[1], hidden), make_linear(hidden, 3 * hidden)
    exact = TorchKernels().project(rows.double(), make_linear(hidden, 3 * hidden).double(), heads, place)
    torchs = TorchKernels().project(rows, linear, heads, place)
    kernels.arrange_(linear, heads)
    order = neighbour_order(heads).to(CUDA)
    ours = kernels.project(rows, linear, heads, place).flatten(1)
    exact = exact.flatten(1)[:, order]
    assert error(ours, exact) <= error(torchs.flatten(1)[:, order], exact)
    one_frame = Place(cos=place.cos, sin=place.sin, coordinates=place.coordinates[:, :1560].contiguous(), runs=())
    assert torch.equal(kernels.project(rows[:1560], linear, heads, one_frame).flatten(1), ours[:1560])


@pytest.mark.parametrize("num_rows", [4, 196, 5000])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 1024), (1152, 1152), (4304, 1152), (128, 128)])
def test_a_product_is_added_in_place_no_worse_than_by_torch(kernels, inputs, outputs, num_rows):
    rows, linear, stream = (
        cuda_noise(num_rows, inputs),
        make_linear(inputs, outputs),
        cuda_noise(num_rows, outputs, seed=3),
    )
    exact = stream.double() + rows.double() @ linear.weight.double().t()
    ours, torchs = stream.clone(), stream.clone()
    kernels.add_product_(ours, rows, linear.weight)
    TorchKernels().add_product_(torchs, rows, linear.weight)
    assert error(ours, exact) <= 1.01 * error(torchs, exact)


@pytest.mark.parametrize("num_rows", [4, 196, 5000])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 4096), (1152, 4304), (128, 192)])
def test_gelu_of_a_product_of_any_size_is_no_further_from_float64_than_torchs(kernels, inputs, outputs, num_rows):
    rows, linear = cuda_noise(num_rows, inputs) * 3, make_linear(inputs, outputs)
    exact = functional.gelu(
        functional.linear(rows.double(), linear.weight.double(), linear.bias.double()), approximate="tanh"
    )
    assert error(kernels.linear_gelu(rows, linear), exact) <= error(TorchKernels().linear_gelu(rows, linear), exact)


@pytest.mark.parametrize("num_rows", [4, 196, 5000])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 4096), (1152, 4304), (128, 192)])
def test_gelu_to_8_bits_by_a_bound_is_as_near_as_by_the_largest_value(kernels, inputs, outputs, num_rows):
    linear, norm = (
        make_linear(inputs, outputs),
        torch.nn.LayerNorm(inputs).to(CUDA, torch.bfloat16).requires_grad_(False),
    )
    stream, offset = cuda_noise(num_rows, inputs) * 5, torch.zeros(inputs, device=CUDA)
    normed = kernels.layer_norm_float8(stream, None, offset, norm)
    layer = Float8Linear(linear, kernels, norm=norm, more_outputs=-outputs % 128).layer
    ours, torchs = kernels.linear_gelu_float8(normed, layer), TorchKernels().linear_gelu_float8(normed, layer)
    exact = normed.values.double() * normed.scales @ (layer.weight.values.double() * layer.weight.scales).t()
    exact = functional.gelu(exact + layer.bias.double(), approximate="tanh")
    errors = [error(rows.values.double() * rows.scales.double(), exact) for rows in (ours, torchs)]
    assert torch.all(ours.values.double().abs() < 448)
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize("num_rows", [4, 196, 5000])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 1024), (4352, 1152), (128, 128)])
def test_a_product_of_8_bits_is_added_in_place(kernels, inputs, outputs, num_rows):
    rows, weight = (
        kernels.to_float8(cuda_noise(num_rows, inputs)),
        kernels.to_float8(cuda_noise(outputs, inputs, seed=1)),
    )
    stream = cuda_noise(num_rows, outputs, seed=3) * 30
    exact = stream.double() + rows.values.double() * rows.scales @ (weight.values.double() * weight.scales).t()
    assert kernels.add_float8_(stream, rows, weight) is None
    assert error(stream, exact) <= 3e-3  # sums are kept to some 14 bits, as in torch's


@pytest.mark.parametrize(("hidden", "num_heads", "head_dim"), SHAPES)
def test_a_turned_projection_of_8_bits_is_torchs(kernels, hidden, num_heads, head_dim):
    heads, place = (3, num_heads, head_dim), make_place(head_dim, 2)
    rows, linear = kernels.to_float8(cuda_noise(place.coordinates.shape[1], hidden)), make_linear(hidden, 3 * hidden)
    expected = TorchKernels().project_float8(rows, Float8Linear(linear, kernels).layer, heads, place)
    kernels.arrange_(linear, heads)
    ours = kernels.project_float8(rows, Float8Linear(linear, kernels).layer, heads, place)
    expected = expected.flatten(1)[:, neighbour_order(heads).to(CUDA)]
    assert error(ours.flatten(1), expected.double()) <= 4e-3
