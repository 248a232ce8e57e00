import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.encoder.positions import PositionTables, merge_order

from .factories import CPU, make_spec

GRIDS = [(2, 2), (4, 6), (2, 14), (8, 8), (30, 52), (64, 2)]


def in_merge_order(values: torch.Tensor) -> torch.Tensor:
    """(h, w, ...) to (h * w, ...), by a plain loop over 2 x 2 blocks."""
    height, width = values.shape[:2]
    order = [
        (top + row, left + column)
        for top in range(0, height, 2)
        for left in range(0, width, 2)
        for row in (0, 1)
        for column in (0, 1)
    ]
    return torch.stack([values[row, column] for row, column in order])


def make_table(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_patches_follow_each_other_block_by_block(height, width):
    rows, columns = merge_order(height, width, 2, CPU)
    raster = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    assert torch.equal(torch.stack([rows, columns], dim=-1), in_merge_order(raster))


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_learned_positions_are_the_table_resized_with_aligned_corners(height, width):
    table = make_table()
    learned = PositionTables(make_spec())(table, height, width).learned
    square = table.view(8, 8, -1).permute(2, 0, 1)[None]
    resized = functional.interpolate(square, (height, width), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
    assert torch.allclose(learned, in_merge_order(resized), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_learned_positions_have_the_official_bits(height, width, dtype):
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    table = make_table(dtype)
    indices, weights = get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, height, width]]), 8, align_corners=True, spatial_merge_size=2
    )
    expected = (table[indices] * weights[:, :, None]).sum(1)
    learned = PositionTables(make_spec())(table, height, width).learned
    assert learned.dtype == dtype
    assert torch.equal(learned, expected.to(dtype))


@pytest.mark.parametrize("head_dim", [64, 72])
def test_rotary_tables_are_the_official_ones_to_the_last_bit(head_dim):
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionConfig, Qwen3VLVisionRotaryEmbedding
    from transformers.vision_utils import get_vision_position_ids

    config = Qwen3VLVisionConfig(hidden_size=2 * head_dim, num_heads=2)
    position_ids = get_vision_position_ids(torch.tensor([[1, 30, 52]]), 2)
    cos, sin = Qwen3VLVisionRotaryEmbedding(config)(make_table(), position_ids)
    tables = PositionTables(make_spec(head_dim))(make_table(), 30, 52)
    # Theirs is torch's float32 cosine, which is not always the nearest float.
    assert torch.allclose(tables.cos.repeat(1, 2), cos, rtol=2**-23, atol=2**-24)
    assert torch.allclose(tables.sin.repeat(1, 2), sin, rtol=2**-23, atol=2**-24)


def test_a_grid_seen_before_is_not_made_again():
    tables, table = PositionTables(make_spec()), make_table()
    assert tables(table, 4, 6) is tables(table, 4, 6)
    assert tables(table, 6, 4) is not tables(table, 4, 6)


def test_the_cache_drops_the_grid_not_used_for_longest_and_stays_bounded():
    tables, table = PositionTables(make_spec(), max_cached_patches=40), make_table()
    first, second = tables(table, 4, 4), tables(table, 2, 8)
    assert tables(table, 4, 4) is first
    tables(table, 2, 4)
    tables(table, 2, 2)
    assert tables(table, 4, 4) is first
    assert tables(table, 2, 8) is not second


def test_a_grid_above_the_cache_bound_is_made_each_time():
    tables, table = PositionTables(make_spec(), max_cached_patches=8), make_table()
    large = tables(table, 4, 4)
    assert tables(table, 4, 4) is not large
    assert tables(table, 2, 4) is tables(table, 2, 4)


def test_tables_are_the_same_bits_in_every_process():
    tables = PositionTables(make_spec(64))
    rows, columns = merge_order(20, 14, 2, CPU)
    angles = torch.cat([axis[:, None] * tables.inverse_frequencies for axis in (rows, columns)], dim=1).numpy()
    made = tables._make(torch.zeros(2304, 128), 20, 14)
    # Python's own functions, a value at a time: no vector library decides.
    for table, function in ((made.cos, math.cos), (made.sin, math.sin)):
        expected = np.array([function(float(angle)) for angle in angles.flat], dtype=np.float32).reshape(angles.shape)
        assert np.array_equal(table.numpy(), expected)
