import functools

import pytest
import torch
from torch.nn import functional

from pipeline.config import Config
from pipeline.encoder.encode import Encoder
from pipeline.encoder.float8 import Float8Block, Float8Linear, to_float8
from pipeline.encoder.kernels import FLOAT8, FLOAT8_MAX, TorchKernels
from pipeline.errors import ModelError
from pipeline.stages.encode import encode_dtype
from tests.encoder.factories import CPU, MIXED_GRIDS, make_checkpoint, make_output, make_rows, make_spec, relative_error

KERNELS = TorchKernels()


@functools.cache
def make_encoder(dtype: torch.dtype, head_dim: int = 64) -> Encoder:
    """Judged on small pictures: on a CPU the usual ones take seconds."""
    checkpoint = make_checkpoint(make_spec(head_dim))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.encoder.calibration._SIDE", 64)
        return Encoder(checkpoint, device=CPU, dtype=dtype, float8_least_cosine=0.9)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_a_row_errs_by_a_sixteenth_of_a_value_whatever_the_other_rows_hold():
    values = noise(5, 64) * torch.tensor([1e-30, 1e-3, 1.0, 1e4, 1e30])[:, None]
    rows = KERNELS.to_float8(values)
    back = rows.values.to(torch.float32) * rows.scales
    assert rows.values.dtype == FLOAT8
    # Half a step of three bits, or of the smallest step where a value is far below the row's largest.
    largest = values.abs().amax(1, keepdim=True)
    assert torch.all((back - values).abs() <= torch.maximum(values.abs() / 16, largest * 2**-17))


def test_rows_of_zeros_stay_zeros():
    rows = KERNELS.to_float8(torch.zeros(3, 16))
    assert torch.all(rows.values.to(torch.float32) == 0)
    assert torch.all(torch.isfinite(rows.scales))


def test_what_is_late_is_added_to_the_stream_before_it_is_normalised():
    hidden, late, offset = noise(6, 32).bfloat16(), noise(6, 32, seed=1).bfloat16(), noise(32, seed=2)
    norm = torch.nn.LayerNorm(32).requires_grad_(False)
    expected = functional.layer_norm(hidden.float() + late.float() + offset, (32,))
    stream = hidden.clone()
    normed = KERNELS.layer_norm_float8(stream, late, offset, norm)
    assert torch.equal(stream, hidden + late)
    assert relative_error(normed.values.to(torch.float32) * normed.scales, expected) < 0.04


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_product_of_rounded_rows_is_that_of_what_they_stand_for(with_bias):
    rows, weight = KERNELS.to_float8(noise(9, 32)), KERNELS.to_float8(noise(16, 32, seed=1))
    bias = noise(16, seed=2) if with_bias else None
    exact = functional.linear(rows.values.float() * rows.scales, weight.values.float() * weight.scales, bias)
    assert relative_error(KERNELS.float8_product(rows, weight, bias), exact) < 4e-3


@pytest.mark.parametrize(("head_dim", "level"), [(64, "clip"), (64, "frame"), (72, "token")])
def test_a_tower_in_eight_bits_says_what_it_says_in_sixteen(head_dim, level):
    rows, output = make_rows(MIXED_GRIDS), make_output(level, normalize=True, deepstack=True)
    exact = make_encoder(torch.bfloat16, head_dim).encode(rows, MIXED_GRIDS, output)
    quick = make_encoder(FLOAT8, head_dim).encode(rows, MIXED_GRIDS, output)
    assert functional.cosine_similarity(quick.vectors.float(), exact.vectors.float()).min() > 0.98
    assert not torch.equal(quick.vectors, exact.vectors)
    if level == "token":
        assert functional.cosine_similarity(quick.deepstack, exact.deepstack, dim=-1).min() > 0.98


def test_a_clip_in_eight_bits_does_not_depend_on_its_neighbours():
    encoder, output = make_encoder(FLOAT8), make_output("clip")
    rows = make_rows(MIXED_GRIDS)
    together = encoder.encode(rows, MIXED_GRIDS, output).vectors
    t, h, w = MIXED_GRIDS[0]
    alone = encoder.encode(rows[: t * h * w], MIXED_GRIDS[:1], output).vectors
    assert relative_error(alone, together[:1]) < 1e-2


def test_the_widened_mlp_computes_what_the_narrow_one_did():
    (block, *_) = make_encoder(torch.bfloat16, head_dim=72)._tower.typed_blocks
    quick = Float8Block(block, KERNELS)
    width, rows = block.mlp.linear_fc1.out_features, KERNELS.to_float8(noise(9, block.mlp.linear_fc1.in_features))
    assert quick.linear_fc1.values.shape[0] % 128 == 0 != width % 128
    widened = KERNELS.linear_gelu_float8(rows, quick.linear_fc1.layer)
    assert not widened.values[:, width:].any()
    narrow = KERNELS.float8_product(rows, KERNELS.to_float8(block.mlp.linear_fc1.weight), None)
    narrow = KERNELS.gelu_to_float8(narrow, block.mlp.linear_fc1.bias)
    expected = KERNELS.float8_product(narrow, KERNELS.to_float8(block.mlp.linear_fc2.weight), None)
    assert relative_error(KERNELS.float8_product(widened, quick.linear_fc2.weight, None), expected) < 1e-6


def test_the_tower_in_sixteen_bits_is_not_touched():
    encoder = make_encoder(torch.bfloat16)
    before = {name: weight.clone() for name, weight in encoder._tower.state_dict().items()}
    to_float8(encoder._tower, KERNELS)
    assert encoder._tower.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in encoder._tower.state_dict().items())


def test_a_model_that_suffers_from_eight_bits_is_refused_with_its_cosine():
    with pytest.raises(ModelError, match=r"cosine 0\.\d+ to bfloat16, expected at least 0\.99999 .*dtype=bfloat16"):
        Encoder(make_checkpoint(make_spec(64)), device=CPU, dtype=FLOAT8, float8_least_cosine=0.99999)


def test_the_setting_is_part_of_what_an_output_is_bound_to():
    config = Config.from_values({"encode": {"dtype": "float8"}})
    assert config.result_values["encode"]["dtype"] == "float8"
    assert encode_dtype(config, CPU) == FLOAT8


@pytest.mark.parametrize("spread", [0.0, 2.0], ids=["even", "a few large channels"])
def test_the_scale_that_is_known_beforehand_is_reached_by_no_row(spread):
    linear, norm = torch.nn.Linear(64, 96).requires_grad_(False), torch.nn.LayerNorm(64, eps=1e-6).requires_grad_(False)
    norm.weight.data, norm.bias.data = (noise(64) * spread).exp(), noise(64, seed=1)
    reach = float(Float8Linear(linear, KERNELS, norm=norm).reach) * FLOAT8_MAX
    # The rows that reach furthest: those that point where a row of the weight points.
    worst = torch.cat([linear.weight * norm.weight, -linear.weight * norm.weight]) * 100
    largest = float(linear(norm(torch.cat([worst, noise(500, 64, seed=2)]))).abs().max())
    assert largest < reach < 3 * largest


def test_rounded_factors_of_a_sum_that_cancels_do_not_pass_the_scale_either():
    linear, norm = (
        torch.nn.Linear(256, 96).requires_grad_(False),
        torch.nn.LayerNorm(256, eps=1e-6).requires_grad_(False),
    )
    shift = 5 * noise(256, seed=1)
    linear.weight.data -= (
        (linear.weight @ shift)[:, None] * shift / shift.square().sum()
    )  # of the shift nothing is left
    norm.weight.data, norm.bias.data = torch.full((256,), 0.02), shift
    layer = Float8Linear(linear, KERNELS, norm=norm).layer
    rows = KERNELS.layer_norm_float8(noise(500, 256, seed=2), None, torch.zeros(256), norm)
    largest = KERNELS.float8_product(rows, layer.weight, layer.bias).float().abs().max()
    exact = linear(norm(noise(500, 256, seed=2))).abs().max()
    assert 1.2 * exact < largest < float(layer.reach) * FLOAT8_MAX
