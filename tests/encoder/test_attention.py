import pytest
import torch

from pipeline.encoder.attention import FrameRun, attend, frame_runs, rotate

from .factories import MIXED_GRIDS


def heads(num_patches: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num_patches, 2, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def naive_attention(query, key, value, lengths):
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        scores = torch.einsum("qae,kae->aqk", q, k) * q.shape[-1] ** -0.5
        outputs.append(torch.einsum("aqk,kae->qae", scores.softmax(-1), v))
    return torch.cat(outputs).flatten(1)


def test_neighbours_of_equal_area_share_a_run():
    assert frame_runs([(1, 4, 4), (3, 4, 6), (2, 6, 4), (1, 4, 4)]) == (
        FrameRun(num_frames=1, num_patches=16),
        FrameRun(num_frames=5, num_patches=24),
        FrameRun(num_frames=1, num_patches=16),
    )


@pytest.mark.parametrize("grids", [[(3, 4, 6)], MIXED_GRIDS], ids=["uniform", "mixed"])
def test_attention_stays_inside_each_temporal_patch(grids):
    lengths = [h * w for t, h, w in grids for _ in range(t)]
    query, key, value = (heads(sum(lengths), seed) for seed in range(3))
    output = attend(torch.stack([query, key, value], dim=1), frame_runs(grids))
    assert torch.allclose(output, naive_attention(query, key, value, lengths), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_has_the_official_values(dtype):
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    query, key = heads(24, 0, dtype), heads(24, 1, dtype)
    angles = torch.randn(24, 8, generator=torch.Generator().manual_seed(2)) * 30
    expected = apply_rotary_pos_emb_vision(query, key, angles.cos().repeat(1, 2), angles.sin().repeat(1, 2))
    turned = rotate(torch.stack([query, key], dim=1), angles.cos(), angles.sin())
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert turned.dtype == dtype
    assert torch.allclose(turned.float(), torch.stack(expected, dim=1).float(), rtol=tolerance, atol=1e-6)
