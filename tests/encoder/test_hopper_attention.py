import pytest
import torch

from pipeline.encoder.attention import FrameRun, attend
from pipeline.encoder.hopper_attention import HopperAttention, find_flash_attention, key_tile
from tests.cuda import CUDA, cuda_noise

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def by_torch(query, key, value, *, tile_mn):
    """FlashAttention's contract, by torch: (F, S, A, E) three times to one of them, in a tuple."""
    assert tile_mn[0] == 192
    heads = [heads.transpose(1, 2) for heads in (query, key, value)]
    return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).contiguous(), None


def test_a_run_is_handed_over_frame_by_frame_and_comes_back_as_rows():
    qkv = torch.randn(3 * 20, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    run = FrameRun(num_frames=3, num_patches=20)
    for _ in range(2):
        assert torch.equal(HopperAttention(by_torch)(qkv, run), attend(qkv, (run,)))


@pytest.mark.parametrize(
    ("num_patches", "head_dim", "takes"),
    [(784, 72, True), (256, 72, False), (784, 64, False), (1560, 64, True), (4096, 60, False), (4096, 128, False)],
)
def test_it_takes_the_sizes_that_it_serves_better(num_patches, head_dim, takes):
    run = FrameRun(num_frames=5, num_patches=num_patches)
    assert HopperAttention.takes(run, head_dim) is takes


@pytest.mark.parametrize(
    ("head_dim", "num_patches", "tile"),
    [
        (72, 784, 112),
        (72, 576, 144),
        (72, 1560, 112),
        (72, 4176, 144),
        (64, 1560, 112),
        (64, 4096, 128),
        (64, 1280, 128),
    ],
)
def test_keys_are_cut_where_the_fewest_are_missing(head_dim, num_patches, tile):
    assert key_tile(head_dim, num_patches) == tile


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("num_patches", [1536, 1560])
@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_it_is_no_further_from_float32_than_torchs_and_a_frame_does_not_see_its_neighbours(
    num_frames, head_dim, num_patches
):
    flash = find_flash_attention(CUDA)
    if flash is None:
        pytest.skip("needs a Hopper GPU and the `hopper` extra")
    run = FrameRun(num_frames=num_frames, num_patches=num_patches)
    qkv = cuda_noise(num_frames * num_patches, 3, 16, head_dim)
    exact = attend(qkv.float(), (run,))
    found = flash(qkv, run)
    errors = [float((result - exact).norm() / exact.norm()) for result in (found, attend(qkv, (run,)))]
    assert errors[0] <= 1.05 * errors[1]
    alone = flash(qkv[:num_patches].clone(), FrameRun(num_frames=1, num_patches=num_patches))
    assert torch.equal(found[:num_patches], alone)
