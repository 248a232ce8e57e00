import pytest
import torch
from torch import Tensor

from pipeline.encoder.pooling import clip_means, finish, frame_means

from .factories import MIXED_GRIDS, make_output


def naive_frames(tokens: Tensor, grids) -> Tensor:
    lengths = [h * w // 4 for t, h, w in grids for _ in range(t)]
    return torch.stack([frame.double().mean(0) for frame in tokens.split(lengths)])


def make_tokens(grids, dtype: torch.dtype = torch.float32) -> Tensor:
    num_tokens = sum(t * h * w // 4 for t, h, w in grids)
    return torch.randn(num_tokens, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frame_is_the_float32_mean_of_its_tokens(dtype):
    tokens = make_tokens(MIXED_GRIDS, dtype)
    means = frame_means(tokens, MIXED_GRIDS, 4)
    assert means.dtype == torch.float32
    assert torch.allclose(means.double(), naive_frames(tokens, MIXED_GRIDS), atol=1e-6)


def test_a_clip_is_the_mean_of_its_frames():
    frames = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([clip.double().mean(0) for clip in frames.split([1, 3, 2, 2, 1, 1])])
    assert torch.allclose(clip_means(frames, MIXED_GRIDS).double(), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("float32", torch.float32)])
def test_normalised_vectors_have_length_one_in_the_output_dtype(name, dtype):
    vectors = finish(torch.randn(5, 3, 8).bfloat16() * 50, make_output(normalize=True, dtype=name))
    assert vectors.dtype == dtype
    assert torch.allclose(vectors.float().norm(dim=-1), torch.ones(5, 3), atol=1e-3)


def test_a_zero_vector_stays_zero_when_normalised():
    assert torch.equal(finish(torch.zeros(2, 8), make_output(normalize=True)), torch.zeros(2, 8))


def test_vectors_keep_their_length_when_normalising_is_off():
    vectors = torch.randn(5, 8) * 50
    assert torch.equal(finish(vectors, make_output(normalize=False)), vectors)
