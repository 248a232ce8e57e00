"""What only a CUDA device can show, against the same code on the CPU, which other files hold to transformers."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.startup import start_once
from pipeline.checkpoint import Preprocessing
from pipeline.encoder.attention import attend, frame_runs, rotate
from pipeline.encoder.counts import num_patches
from pipeline.encoder.encode import ARITHMETIC, Encoder
from pipeline.encoder.kernels import FLOAT8, TorchKernels, make_kernels
from pipeline.encoder.memory import peak_bytes, request_bytes
from pipeline.encoder.pixels import PixelNormalizer
from pipeline.encoder.positions import PositionTables
from tests.cuda import CUDA, cuda_noise, syncs_forbidden
from tests.encoder.factories import (
    CPU,
    MIXED_GRIDS,
    make_checkpoint,
    make_output,
    make_rows,
    make_spec,
    official,
    relative_error,
    tower_like,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LARGE_GRIDS = [(1, 28, 28), (2, 40, 40), (1, 4, 4)]
LEVELS = ["clip", "frame", "token"]
RECIPES = [Preprocessing(), Preprocessing(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))]


def make_cuda_encoder(dtype: torch.dtype, head_dim: int = 64, max_patches: int = 100_000, device=CUDA) -> Encoder:
    checkpoint = make_checkpoint(make_spec(head_dim))
    return Encoder(checkpoint, device=device, dtype=dtype, max_patches=max_patches, float8_least_cosine=0.9)


@pytest.mark.parametrize("recipe", RECIPES, ids=["half", "uneven"])
@pytest.mark.parametrize("num_frames", [1, 2], ids=["image", "video"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_value_becomes_the_bits_it_becomes_on_the_cpu(dtype, num_frames, recipe):
    rows = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 3 * num_frames * 256).contiguous()
    expected = PixelNormalizer(make_spec(), recipe)(rows, dtype)
    for kernels in (TorchKernels(), make_kernels(CUDA)):
        normaliser = PixelNormalizer(make_spec(), recipe, kernels).to(CUDA)
        assert torch.equal(normaliser(rows.to(CUDA), dtype).cpu(), expected)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT8])
@pytest.mark.parametrize("row_bytes", [768, 1536], ids=["image", "video"])
@pytest.mark.parametrize("level", LEVELS)
def test_encoding_never_waits_for_the_device_even_for_a_new_grid(level, row_bytes, dtype):
    encoder = make_cuda_encoder(dtype, max_patches=150)
    output = make_output(level, normalize=True, deepstack=True, dtype="float16")
    encoder.encode(make_rows([(1, 2, 2)], row_bytes).to(CUDA), [(1, 2, 2)], output)
    rows = make_rows(MIXED_GRIDS, row_bytes).to(CUDA)
    with syncs_forbidden():
        encoder.encode(rows, MIXED_GRIDS, output)


def test_without_memory_for_a_recording_the_pass_is_done_without_and_none_is_kept(monkeypatch, caplog):
    encoder, output = make_cuda_encoder(torch.bfloat16), make_output("clip")
    small, large = ([(3, 4, 6)], [(3, 8, 8)])
    vectors = {}
    for grids in (small, small, large):
        vectors[len(vectors)] = encoder.encode(make_rows(grids).to(CUDA), grids, output).vectors
    run = encoder._graphs._run

    def run_short_of_memory(patch_rows, shape):
        result = run(patch_rows, shape)
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("as CUDA would")
        return result

    monkeypatch.setattr(encoder._graphs, "_run", run_short_of_memory)
    for grids, expected in ((large, vectors[2]), (small, vectors[1]), (large, vectors[2])):
        assert torch.equal(encoder.encode(make_rows(grids).to(CUDA), grids, output).vectors, expected)
    assert encoder._graphs.num_graphs == 0
    assert caplog.text.count("no_memory_for_a_graph") == 1


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


@pytest.mark.parametrize("num_frames", [1, 2], ids=["image", "video"])
@pytest.mark.parametrize("num_rows", [1, 3, 1000])
def test_pixels_of_unaligned_rows_are_those_of_torch(num_rows, num_frames):
    width = 768 * num_frames
    buffer = torch.randint(0, 256, (7 + num_rows * width,), dtype=torch.uint8).to(CUDA)
    rows = buffer[7:].view(num_rows, width)
    ours, torchs = (
        PixelNormalizer(make_spec(), RECIPES[1], kernels).to(CUDA) for kernels in (make_kernels(CUDA), TorchKernels())
    )
    assert torch.equal(ours(rows, torch.bfloat16), torchs(rows, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "dim", "times"), [(1, 1024, 1), (77, 1152, 1), (33, 768, 1), (5, 1152, 4)])
def test_layer_norm_with_an_offset_is_rounded_once(rows, dim, times, dtype):
    hidden, offset = cuda_noise(rows, dim * times, dtype=dtype), cuda_noise(dim, seed=1, dtype=torch.float32)
    norm = torch.nn.LayerNorm(dim * times, eps=1e-6).to(CUDA, dtype)
    norm.weight.data, norm.bias.data = (
        1 + cuda_noise(dim * times, seed=2, dtype=dtype),
        cuda_noise(dim * times, seed=3, dtype=dtype),
    )
    exact = torch.nn.functional.layer_norm(
        hidden.double() + offset.double().repeat(times), (dim * times,), norm.weight.double(), norm.bias.double(), 1e-6
    )
    normed = make_kernels(CUDA).layer_norm(hidden, offset, norm.requires_grad_(False))
    half_a_step = 2**-8 if dtype == torch.bfloat16 else 2**-21
    assert torch.allclose(normed.double(), exact, rtol=1.01 * half_a_step, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize(("num_heads", "period", "times"), [(16, 24, 5), (2, 20, 1), (12, 7, 3)])
def test_rotation_in_place_has_torchs_values(num_heads, period, times, head_dim, dtype):
    qkv = cuda_noise(period * times, 3, num_heads, head_dim, dtype=dtype)
    angles = cuda_noise(period, head_dim // 2, seed=1, dtype=torch.float32) * 30
    turned, expected = qkv.clone(), qkv.clone()
    make_kernels(CUDA).rotate_(turned, angles.cos(), angles.sin())
    TorchKernels().rotate_(expected, angles.cos(), angles.sin())
    # Products may be fused with the sum or not, which can turn the last bit.
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(turned.float(), expected.float(), rtol=tolerance, atol=tolerance / 8)
    assert torch.equal(turned[:, 2], qkv[:, 2])


@pytest.mark.parametrize("head_dim", [16, 32, 64, 72, 80, 128])
@pytest.mark.parametrize("grids", [[(3, 28, 28)], [(2, 30, 52)], [(300, 2, 2)], [(5, 8, 8)], MIXED_GRIDS, LARGE_GRIDS])
def test_attention_is_no_further_from_float64_than_torchs(grids, head_dim):
    qkv = cuda_noise(num_patches(grids), 3, 4, head_dim)
    runs = frame_runs(grids)
    exact = attend(qkv.double(), runs)
    ours, torchs = make_kernels(CUDA).attend(qkv, runs), attend(qkv, runs)
    errors = [float((result.double() - exact).norm() / exact.norm()) for result in (ours, torchs)]
    assert errors[0] <= 1.05 * errors[1]


def test_gelu_of_a_product_is_no_further_from_float64_than_torchs():
    linear = torch.nn.Linear(1152, 4304).to(CUDA, torch.bfloat16).requires_grad_(False)
    hidden = cuda_noise(500, 1152)
    exact = torch.nn.functional.gelu(
        hidden.double() @ linear.weight.double().t() + linear.bias.double(), approximate="tanh"
    )
    ours, torchs = make_kernels(CUDA).linear_gelu(hidden, linear), TorchKernels().linear_gelu(hidden, linear)
    assert (ours.double() - exact).norm() <= (torchs.double() - exact).norm()


def test_kernels_are_not_compiled_again_for_another_number_of_patches():
    from pipeline.encoder import triton_kernels

    encoder = make_cuda_encoder(torch.bfloat16, 72)
    kernels = [getattr(triton_kernels, name) for name in ("_layer_norm", "_rotate", "_normalise", "_attend")]

    def num_compiled() -> int:
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    for grids in ([(1, 2, 2)], [(3, 4, 6)], [(2, 4, 4)]):
        encoder.encode(make_rows(grids).to(CUDA), grids, make_output("clip"))
    before = num_compiled()
    for frames, height, width in [(1, 10, 10), (7, 4, 14), (16, 16, 16), (5, 2, 22), (33, 6, 6)]:
        grids = [(frames, height, width)]
        encoder.encode(make_rows(grids).to(CUDA), grids, make_output("clip"))
    assert num_compiled() == before > 0


@pytest.mark.parametrize("row_bytes", [768, 1536], ids=["image", "video"])
@pytest.mark.parametrize("level", ["clip", "frame"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT8])
def test_graphs_give_the_same_bits_as_no_graphs(dtype, level, row_bytes):
    checkpoint, output = make_checkpoint(make_spec(72)), make_output(level, normalize=True)
    with_graphs, without = (
        Encoder(checkpoint, device=CUDA, dtype=dtype, max_graphs=max_graphs, float8_least_cosine=0.9)
        for max_graphs in (8, 0)
    )
    for seed, frames in enumerate([9, 9, 10, 9, 3, 3, 10]):
        grids = [(frames - 1, 4, 6), (1, 4, 6)]
        rows = make_rows(grids, row_bytes, seed=seed).to(CUDA)
        vectors = [encoder.encode(rows, grids, output).vectors for encoder in (with_graphs, without)]
        assert torch.equal(*vectors)
    assert with_graphs._graphs.num_graphs == 2
    assert without._graphs.num_graphs == 0


@pytest.mark.parametrize("head_dim", [64, 72])
def test_graphs_of_large_frames_give_the_same_bits_too(head_dim):
    checkpoint, output = make_checkpoint(make_spec(head_dim)), make_output("clip")
    with_graphs, without = (
        Encoder(checkpoint, device=CUDA, dtype=torch.bfloat16, max_graphs=max_graphs) for max_graphs in (8, 0)
    )
    for seed in range(3):
        rows = make_rows([(3, 40, 40)], seed=seed).to(CUDA)
        vectors = [encoder.encode(rows, [(3, 40, 40)], output).vectors for encoder in (with_graphs, without)]
        assert torch.equal(*vectors)
    assert with_graphs._graphs.num_graphs == 1


def test_dummy_frames_change_a_vector_by_rounding_at_most():
    output, rows = make_output("frame"), make_rows([(9, 4, 6)])
    exact = make_cuda_encoder(torch.float32, device=CPU).encode(rows, [(9, 4, 6)], output).vectors
    padded = make_cuda_encoder(torch.float32).encode(rows.to(CUDA), [(9, 4, 6)], output).vectors
    assert padded.shape == exact.shape
    assert relative_error(padded.cpu(), exact) <= 1e-5


def test_graphs_are_bounded_and_the_least_recent_goes():
    encoder = Encoder(make_checkpoint(), device=CUDA, dtype=torch.bfloat16, max_graphs=2)
    output = make_output("clip")
    expected = {}
    often = [(width, 3) for width in (4, 6, 8, 10, 4, 6, 8, 10, 4)]
    for width, times in [*often, *often, (6, 1), (8, 1), (8, 2), (6, 2)]:  # at the end no recording is left for a while
        rows = make_rows([(3, 4, width)]).to(CUDA)
        for _ in range(times):
            vectors = encoder.encode(rows, [(3, 4, width)], output).vectors
            assert torch.equal(vectors, expected.setdefault(width, vectors))
        assert encoder._graphs.num_graphs <= 2


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
def test_a_replayed_graph_is_one_launch_and_no_sync():
    encoder, output = make_cuda_encoder(torch.bfloat16), make_output("clip")
    rows = make_rows([(3, 4, 6)]).to(CUDA)
    for _ in range(2):
        encoder.encode(rows, [(3, 4, 6)], output)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded, syncs_forbidden():
        encoder.encode(rows, [(3, 4, 6)], output)
    counts = {event.key: event.count for event in recorded.key_averages()}
    assert counts["cudaGraphLaunch"] == 1
    assert sum(count for name, count in counts.items() if "LaunchKernel" in name) < 12


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("row_bytes", [768, 1536], ids=["image", "video"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT8])
def test_the_predicted_peak_is_the_allocators(dtype, row_bytes, head_dim):
    spec = make_spec(head_dim, hidden_size=16 * head_dim, num_heads=16, intermediate_size=62 * head_dim)
    encoder = Encoder(make_checkpoint(spec), device=CUDA, dtype=dtype, max_graphs=0, float8_least_cosine=0.9)
    grids, output = [(64, 28, 28)], make_output("clip")
    encoder.encode(make_rows(grids, row_bytes).to(CUDA), grids, output)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    encoder.encode(make_rows(grids, row_bytes).to(CUDA), grids, output)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak == pytest.approx(peak_bytes(spec, num_patches(grids), ARITHMETIC[dtype], row_bytes=row_bytes), rel=0.2)


@pytest.mark.parametrize("with_deepstack", [False, True])
def test_the_predicted_peak_of_tokens_is_the_allocators(with_deepstack):
    spec = make_spec(64, hidden_size=1024, num_heads=16, intermediate_size=4096, out_hidden_size=2048)
    encoder = Encoder(make_checkpoint(spec), device=CUDA, dtype=torch.bfloat16, max_graphs=0)
    grids, output = [(64, 28, 28)], make_output("token", deepstack=with_deepstack, normalize=True)
    encoder.encode(make_rows(grids).to(CUDA), grids, output)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    encoder.encode(make_rows(grids).to(CUDA), grids, output)
    peak = torch.cuda.max_memory_allocated() - before
    predicted = request_bytes(spec, num_patches(grids), "bfloat16", output, row_bytes=1536)
    assert peak == pytest.approx(predicted, rel=0.2)


@pytest.mark.parametrize("level", LEVELS)
def test_out_of_device_memory_halves_the_chunk_and_loses_nothing(level):
    spec = make_spec(hidden_size=1024, num_heads=16, intermediate_size=4096)
    encoder = Encoder(make_checkpoint(spec), device=CUDA, dtype=torch.bfloat16, max_patches=40_000)
    grids, output = [(32, 28, 28)], make_output(level, normalize=True)
    rows = make_rows(grids).to(CUDA)
    encoder.encode(rows[: 28 * 28], [(1, 28, 28)], output)  # what stays is not to lie within what goes
    whole = encoder.encode(rows, grids, output).vectors
    gc.collect()  # earlier encoders too: their memory would serve this one beyond its limit
    torch.cuda.empty_cache()
    # From what is in use: reserved memory of earlier tests that is free within a kept segment serves the pass, too.
    allowed = torch.cuda.memory_allocated() + int(0.6 * peak_bytes(spec, num_patches(grids), "bfloat16"))
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        halved = encoder.encode(rows, grids, output).vectors
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoder._max_patches < 40_000
    assert relative_error(halved, whole) <= 1e-2


@pytest.mark.parametrize("head_dim", [64, 72])
def test_bfloat16_is_no_further_from_float32_than_transformers(head_dim):
    spec = make_spec(head_dim, depth=8, hidden_size=8 * head_dim, num_heads=8, intermediate_size=32 * head_dim)
    model = official(spec)
    rows, grid = make_rows([(4, 16, 16)]), [(4, 16, 16)]
    pixels = (rows.float() - 127.5) / 127.5
    thw = torch.tensor(grid)
    with torch.inference_mode():
        exact = model(pixels, grid_thw=thw).pooler_output
        theirs = official(spec, torch.bfloat16).to(CUDA)(pixels.to(CUDA, torch.bfloat16), grid_thw=thw.to(CUDA))
    tower = tower_like(official(spec, torch.bfloat16), spec, make_kernels(CUDA)).to(CUDA)
    ours = tower(pixels.to(CUDA, torch.bfloat16), grid).tokens
    errors = [float((tokens.cpu().double() - exact).norm() / exact.norm()) for tokens in (ours, theirs.pooler_output)]
    assert errors[0] <= errors[1]


def test_the_next_process_finds_its_kernels_in_the_cache_for_every_size(tmp_path):
    assert start_once("random:tiny", [], "2x8x8", tmp_path)["kernels"] > 0
    assert start_once("random:tiny", [], "3x2x34", tmp_path)["kernels"] == 0
