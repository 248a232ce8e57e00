import numpy as np
import pytest
import torch

from pipeline.checkpoint import Preprocessing
from pipeline.encoder.pixels import PixelNormalizer

from .factories import make_spec

ALL_BYTES = torch.arange(256, dtype=torch.uint8)
CLIP_RECIPE = Preprocessing(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


def all_values(num_frames: int) -> torch.Tensor:
    """One patch a byte value, each channel and frame shifted by one so that a mix-up would show."""
    shifts = torch.arange(3 * num_frames).view(1, 3, num_frames, 1)
    return ((torch.arange(256).view(-1, 1, 1, 1) + shifts) % 256).to(torch.uint8).expand(-1, -1, -1, 256).flatten(1)


def official_rows(patch_rows: torch.Tensor, num_frames: int, recipe: Preprocessing) -> torch.Tensor:
    """float32 (P, 1536) by transformers' own fused constants and torchvision's `normalize`: sub, then div."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    processor = Qwen3VLVideoProcessor.__new__(Qwen3VLVideoProcessor)
    mean, std, do_rescale = processor._fuse_mean_std_and_rescale_factor(
        do_normalize=True, image_mean=recipe.mean, image_std=recipe.std, do_rescale=True, rescale_factor=1 / 255
    )
    assert do_rescale is False
    frames = patch_rows.view(-1, 3, num_frames, 256).to(torch.float32)
    normalised = frames.sub(mean.view(3, 1, 1)).div(std.view(3, 1, 1))
    return normalised.repeat(1, 1, 2 // num_frames, 1).flatten(1)


@pytest.mark.parametrize("recipe", [Preprocessing(), CLIP_RECIPE], ids=["half", "clip"])
@pytest.mark.parametrize("num_frames", [1, 2], ids=["image", "video"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_value_becomes_the_official_bits(dtype, num_frames, recipe):
    rows = all_values(num_frames)
    pixels = PixelNormalizer(make_spec(), recipe)(rows, dtype)
    assert pixels.shape == (256, 1536)
    assert pixels.dtype == dtype
    assert torch.equal(pixels, official_rows(rows, num_frames, recipe).to(dtype))


def test_images_become_the_bits_of_the_whole_official_image_processor_in_bfloat16():
    from transformers import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    processor = Qwen2VLImageProcessorPil(patch_size=16, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    official = processor(images=image, return_tensors="pt")["pixel_values"].to(torch.bfloat16)
    blocks = torch.from_numpy(image).view(8, 2, 16, 8, 2, 16, 3).permute(0, 3, 1, 4, 6, 2, 5)
    rows = blocks.reshape(256, 768)
    assert torch.equal(PixelNormalizer(make_spec(), Preprocessing())(rows, torch.bfloat16), official)


def test_an_image_fills_both_frames_of_its_temporal_patch():
    rows = torch.randint(0, 256, (5, 768), dtype=torch.uint8)
    pixels = PixelNormalizer(make_spec(), Preprocessing())(rows, torch.float32).view(5, 3, 2, 256)
    assert torch.equal(pixels[:, :, 0], pixels[:, :, 1])


def test_rows_may_be_a_slice_at_any_offset_of_a_larger_buffer():
    buffer = torch.randint(0, 256, (7 + 4 * 1536,), dtype=torch.uint8)
    normaliser = PixelNormalizer(make_spec(), Preprocessing())
    rows = buffer[7:].view(4, 1536)
    assert torch.equal(normaliser(rows, torch.bfloat16), normaliser(rows.clone(), torch.bfloat16))
