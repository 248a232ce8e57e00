"""Rotary pairs as neighbours, for products that turn queries and keys in their epilogue.

A thread of such a product holds neighbouring channels of its tile, and a turn mixes channels i and i + E / 2 of a head.
Queries and keys meet in a dot product alone, which does not know the order of channels: the rows of the projection's
weight are put into an order in which pairs are neighbours, once, and nothing else changes.

Shapes: A = heads, E = head_dim. `heads` is (3, A, E): queries, keys, values.
"""

import math

import torch
from torch import Tensor

from pipeline.encoder.positions import inverse_frequencies


def neighbour_order(heads: tuple[int, int, int]) -> Tensor:
    """Which of the projection's channels stands where, when pairs are neighbours: int64 (3 * A * E,), on the CPU."""
    _, num_heads, head_dim = heads
    order = torch.arange(math.prod(heads)).view(heads)
    pairs = order[:2].view(2, num_heads, 2, head_dim // 2)
    order[:2] = pairs.transpose(2, 3).reshape(2, num_heads, head_dim)
    return order.flatten()


def turns_a_step(heads: tuple[int, int, int]) -> Tensor:
    """Whole turns of each pair a row, and a column, side by side: float32 (3 * A * E,), on the CPU; 0 for values."""
    _, num_heads, head_dim = heads
    turns = inverse_frequencies(head_dim) / (2 * math.pi)
    none = torch.zeros_like(turns)
    head = torch.stack([torch.cat([turns, none]), torch.cat([none, turns])], dim=1).flatten()
    frequencies = head.repeat(3, num_heads)
    frequencies[2] = 0
    return frequencies.flatten()
