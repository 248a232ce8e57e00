"""What only a CUDA device can show, against the same code on the CPU, which other files hold to transformers."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.checkpoint import Preprocessing
from pipeline.encoder.attention import rotate
from pipeline.encoder.encode import Encoder
from pipeline.encoder.pixels import PixelNormalizer
from pipeline.encoder.positions import PositionTables
from tests.cuda import syncs_forbidden
from tests.encoder.factories import CPU, MIXED_GRIDS, make_checkpoint, make_output, make_rows, make_spec, relative_error

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda")
LEVELS = ["clip", "frame", "token"]
RECIPES = [Preprocessing(), Preprocessing(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))]


def make_cuda_encoder(dtype: torch.dtype, head_dim: int = 64, max_patches: int = 100_000, device=CUDA) -> Encoder:
    return Encoder(make_checkpoint(make_spec(head_dim)), device=device, dtype=dtype, max_patches=max_patches)


@pytest.mark.parametrize("recipe", RECIPES, ids=["half", "uneven"])
@pytest.mark.parametrize("num_frames", [1, 2], ids=["image", "video"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_value_becomes_the_bits_it_becomes_on_the_cpu(dtype, num_frames, recipe):
    rows = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 3 * num_frames * 256).contiguous()
    normaliser = PixelNormalizer(make_spec(), recipe)
    expected = normaliser(rows, dtype)
    assert torch.equal(normaliser.to(CUDA)(rows.to(CUDA), dtype).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (28, 28), (30, 52), (2, 64)])
def test_positions_are_those_of_the_cpu(height, width, dtype):
    table = torch.randn(2304, 144, generator=torch.Generator().manual_seed(0)).to(dtype)
    tables = PositionTables(make_spec(72))
    expected = tables._make(table, height, width)
    actual = tables.to(CUDA)._make(table.to(CUDA), height, width)
    assert torch.equal(actual.learned.cpu(), expected.learned)
    assert torch.allclose(actual.cos.cpu(), expected.cos, atol=1e-6)
    assert torch.allclose(actual.sin.cpu(), expected.sin, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_rounded_once(dtype):
    heads = torch.randn(24, 2, 2, 72, generator=torch.Generator().manual_seed(0)).to(dtype)
    angles = torch.randn(24, 36, generator=torch.Generator().manual_seed(1))
    exact = rotate(heads.double(), angles.cos().double(), angles.sin().double())
    turned = rotate(heads.to(CUDA), angles.cos().to(CUDA), angles.sin().to(CUDA)).cpu()
    half_a_step = 2**-8 if dtype == torch.bfloat16 else 2**-22
    assert torch.allclose(turned.double(), exact, rtol=1.01 * half_a_step, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("head_dim", [64, 72])
def test_float32_matches_the_cpu_even_where_tf32_was_allowed(head_dim, level):
    rows, output = make_rows(MIXED_GRIDS), make_output(level)
    expected = make_cuda_encoder(torch.float32, head_dim, device=CPU).encode(rows, MIXED_GRIDS, output).vectors
    torch.set_float32_matmul_precision("high")
    actual = make_cuda_encoder(torch.float32, head_dim).encode(rows.to(CUDA), MIXED_GRIDS, output).vectors
    assert relative_error(actual.cpu(), expected) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("head_dim", [64, 72])
def test_bfloat16_is_as_close_to_float32_as_bfloat16_on_the_cpu(head_dim, level):
    rows, output = make_rows(MIXED_GRIDS), make_output(level, normalize=True)
    exact, on_cpu = (
        make_cuda_encoder(dtype, head_dim, device=CPU).encode(rows, MIXED_GRIDS, output).vectors
        for dtype in (torch.float32, torch.bfloat16)
    )
    on_cuda = make_cuda_encoder(torch.bfloat16, head_dim).encode(rows.to(CUDA), MIXED_GRIDS, output).vectors.cpu()
    assert (on_cuda - exact).square().mean() <= 1.5 * (on_cpu - exact).square().mean()


@pytest.mark.parametrize("max_patches", [1, 50])
@pytest.mark.parametrize("level", LEVELS)
def test_encoded_in_chunks_equals_encoded_whole(level, max_patches):
    rows, output = make_rows(MIXED_GRIDS).to(CUDA), make_output(level, normalize=True)
    whole = make_cuda_encoder(torch.float32).encode(rows, MIXED_GRIDS, output).vectors
    chunked = make_cuda_encoder(torch.float32, max_patches=max_patches).encode(rows, MIXED_GRIDS, output).vectors
    assert torch.allclose(chunked, whole, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row_bytes", [768, 1536], ids=["image", "video"])
@pytest.mark.parametrize("level", LEVELS)
def test_encoding_never_waits_for_the_device_even_for_a_new_grid(level, row_bytes, dtype):
    encoder = make_cuda_encoder(dtype, max_patches=150)
    output = make_output(level, normalize=True, deepstack=True, dtype="float16")
    encoder.encode(make_rows([(1, 2, 2)], row_bytes).to(CUDA), [(1, 2, 2)], output)
    rows = make_rows(MIXED_GRIDS, row_bytes).to(CUDA)
    with syncs_forbidden():
        encoder.encode(rows, MIXED_GRIDS, output)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("level", LEVELS)
def test_encoding_copies_nothing_from_the_host_even_for_a_new_grid(level):
    encoder, output = make_cuda_encoder(torch.bfloat16, max_patches=150), make_output(level, deepstack=True)
    rows = make_rows(MIXED_GRIDS).to(CUDA)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        encoder.encode(rows, MIXED_GRIDS, output)
        torch.cuda.synchronize()
    names = [event.key for event in recorded.key_averages()]
    assert any("gemm" in name.lower() or "nvjet" in name.lower() for name in names), "the profiler saw no kernels"
    assert [name for name in names if "HtoD" in name or "DtoH" in name] == []


def test_attention_kernels_that_plan_for_each_new_shape_are_off():
    make_cuda_encoder(torch.bfloat16)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
