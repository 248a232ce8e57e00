import pytest
import torch

from pipeline.encoder.attention import rotate
from pipeline.encoder.pairs import neighbour_order, turns_a_step
from pipeline.encoder.positions import PositionTables
from tests.encoder.factories import make_spec

TURN = 2 * torch.pi


@pytest.mark.parametrize("head_dim", [64, 72])
def test_neighbours_turned_by_their_turns_are_the_pairs_turned_by_the_tables(head_dim):
    height, width, heads = 6, 14, (3, 2, head_dim)
    place = PositionTables(make_spec(head_dim))(torch.zeros(64, 2 * head_dim), height, width)
    qkv = torch.randn(height * width, *heads, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = qkv.clone()
    expected[:, :2] = rotate(qkv[:, :2], place.cos, place.sin)

    order = neighbour_order(heads)
    by_row, by_column = turns_a_step(heads).double().view(-1, 2).unbind(1)
    rows, columns = place.coordinates.double()[:, :, None]
    angles = (rows * by_row + columns * by_column) * TURN
    first, second = qkv.flatten(1)[:, order].view(height * width, -1, 2).unbind(2)
    turned = torch.stack(
        [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], 2
    )
    assert torch.allclose(turned.flatten(1), expected.flatten(1)[:, order], atol=1e-5)


@pytest.mark.parametrize("head_dim", [64, 72])
def test_every_channel_has_its_place_and_values_keep_theirs(head_dim):
    order = neighbour_order((3, 2, head_dim))
    assert torch.equal(order.sort().values, torch.arange(6 * head_dim))
    assert torch.equal(order[4 * head_dim :], torch.arange(4 * head_dim, 6 * head_dim))
    assert not turns_a_step((3, 2, head_dim))[4 * head_dim :].any()
