"""How many patches, chunks and vectors a request's grids make: plain integers, no torch.

The stage that writes counts vectors too, and should not have to load the encoder for it.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

Grid = tuple[int, int, int]
Level = Literal["clip", "frame", "token"]


def num_patches(grid_thw: Sequence[Sequence[int]]) -> int:
    """Count the patches of all clips."""
    return sum(num_frames * height * width for num_frames, height, width in grid_thw)


def num_vectors(grid: Sequence[int], level: Level, *, merged_patches: int = 4) -> int:
    """Count the vectors that one clip of (t, h, w) patches gives at a level."""
    num_frames, height, width = grid
    return {"clip": 1, "frame": num_frames, "token": num_frames * height * width // merged_patches}[level]


def split_chunks(grid_thw: Sequence[Sequence[int]], max_patches: int) -> Iterator[list[Grid]]:
    """Cut a request into runs of whole temporal patches of at most `max_patches` patches each, in order.

    A single temporal patch above the bound is a chunk of its own.
    """
    chunk: list[Grid] = []
    room = max_patches
    for num_frames, height, width in grid_thw:
        left = num_frames
        while left:
            fitting = min(left, max(0, room // (height * width)))
            if not fitting and chunk:
                yield chunk
                chunk, room = [], max_patches
                continue
            taken = max(fitting, 1)
            chunk.append((taken, height, width))
            room -= taken * height * width
            left -= taken
    if chunk:
        yield chunk
