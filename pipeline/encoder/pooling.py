"""Tokens to the vectors that were asked for, on the device.

A token-level result is several times the bytes that went in, so tokens are averaged before they leave the device. A
temporal patch is the mean of its tokens and a clip the mean of its temporal patches, both in float32: chunks of whole
temporal patches therefore give what one piece gives. Clips of equal shape share a reduction, and all lengths are
Python integers.

Shapes: N = tokens, F = temporal patches, B = clips, O = out_hidden.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import OutputConfig
from pipeline.encoder.attention import frame_runs

OUTPUT_DTYPES = {"float16": torch.float16, "float32": torch.float32}


def frame_means(tokens_NO: Tensor, grid_thw: Sequence[Sequence[int]], merged_patches: int) -> Tensor:
    """Mean of each temporal patch's tokens: float32 (F, O). One kernel for each run of equal temporal patches."""
    runs = frame_runs(grid_thw)
    splits = torch.split(tokens_NO, [run.num_frames * run.num_patches // merged_patches for run in runs])
    means = [
        tokens.view(run.num_frames, -1, tokens.shape[1]).mean(1, dtype=torch.float32)
        for run, tokens in zip(runs, splits, strict=True)
    ]
    return torch.cat(means)


def clip_means(frames_FO: Tensor, grid_thw: Sequence[Sequence[int]]) -> Tensor:
    """Mean of each clip's temporal patches: (B, O). One kernel for each run of clips of equal length."""
    runs = [(length, len(list(clips))) for length, clips in groupby(grid_thw, key=lambda grid: grid[0])]
    splits = torch.split(frames_FO, [length * num_clips for length, num_clips in runs])
    means = [
        frames.view(num_clips, length, -1).mean(1) for (length, num_clips), frames in zip(runs, splits, strict=True)
    ]
    return torch.cat(means)


def finish(vectors: Tensor, output: OutputConfig) -> Tensor:
    """Scale vectors (..., O) to length 1 if asked, in float32, then round to the output dtype."""
    vectors = vectors.to(torch.float32)
    if output.normalize:
        vectors = functional.normalize(vectors, dim=-1)
    return vectors.to(OUTPUT_DTYPES[output.dtype])
