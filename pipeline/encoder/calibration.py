"""Whether a tower in 8 bits still says what it says in 16, on pictures and clips that every machine can make.

The pictures are drawn, not read: a run that was taken up again on another machine must be refused or not as it was
before. They span what hurts 8 bits: noise with the spectrum of photographs at several contrasts, white noise,
gradients, hard edges, and flat pictures, whose activations are a few large channels over almost nothing. Each stands
as an image, and moves as a video of two frames. The worst one counts. A corpus of another kind can be judged with
`benchmarks.acceptance`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.encoder.counts import Grid
from pipeline.encoder.pixels import PixelNormalizer
from pipeline.encoder.pooling import frame_means
from pipeline.encoder.tower import VisionTower
from pipeline.errors import ModelError
from pipeline.media.container import MediaType
from pipeline.media.grid import row_bytes
from pipeline.media.patchify import write_clip

_SIDE = 256  # pixels: 256 patches a picture
_STEP = 5  # pixels that a picture moves between two frames
_SEED = 0


def check_float8(exact: VisionTower, quick: VisionTower, pixels: PixelNormalizer, *, least_cosine: float) -> float:
    """Compare two towers picture by picture, and clip by clip.

    Args:
        exact: in bfloat16.
        quick: the same in 8 bits, on the same device.
        pixels: what prepares their input.
        least_cosine: the worst one's mean token must be this close to the exact tower's.
    Returns: the worst cosine.
    Raises: ModelError with the cosine that was found.
    Cost: two passes over 2,816 patches of images and two over as many of videos, and a sync.
    """
    pictures, device = _pictures(np.random.default_rng(_SEED)), exact.pos_embed.weight.device
    cosines = []
    for media_type in MediaType:
        patch_rows, grid_thw = _calibration_request(pictures, media_type, exact.spec.patch_size)
        rows = pixels(patch_rows.to(device), torch.bfloat16)
        exact_means, quick_means = (
            frame_means(tower(rows, grid_thw).tokens, grid_thw, exact.spec.merged_patches) for tower in (exact, quick)
        )
        cosines.append(functional.cosine_similarity(exact_means, quick_means))
    worst = float(torch.cat(cosines).min())
    if not worst >= least_cosine:
        raise ModelError(
            f"encode.dtype=float8: the worst of {len(pictures)} calibration pictures, still and moving, has cosine "
            f"{worst:.5f} to bfloat16, expected at least {least_cosine} (encode.float8_least_cosine); "
            "use encode.dtype=bfloat16 for this model"
        )
    return worst


def _calibration_request(
    pictures: Sequence[NDArray[np.uint8]], media_type: MediaType, patch_size: int
) -> tuple[Tensor, list[Grid]]:
    """Uint8 patch rows (P, 768) of all pictures, or (P, 1536) of all clips, and their grids."""
    side = _SIDE // patch_size
    rows = np.empty((len(pictures), side * side, row_bytes(media_type)), np.uint8)
    for picture, own_rows in zip(pictures, rows, strict=True):
        moved = [np.roll(picture, _STEP, axis=(0, 1))] if media_type is MediaType.VIDEO else []
        write_clip([picture, *moved], own_rows, media_type, _SIDE, _SIDE)
    return torch.from_numpy(rows).flatten(0, 1), [(1, side, side)] * len(pictures)


def _pictures(random: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Eleven pictures, uint8 (256, 256, 3) each."""
    ramp = np.linspace(0, 255, _SIDE)
    checkers = (np.indices((_SIDE, _SIDE)) // 12).sum(0) % 2 * 255.0
    shades = [128 + contrast * _natural_noise(random) for contrast in (10, 30, 60, 90)]
    shades += [random.uniform(0, 255, (_SIDE, _SIDE, 3)), _gray(ramp[:, None] + 0 * ramp), _gray(checkers)]
    shades += [np.stack([ramp[:, None] + 0 * ramp, 0 * checkers + ramp, 255 - checkers], axis=2)]
    shades += [np.full((_SIDE, _SIDE, 3), value) for value in (0.0, 128.0, 255.0)]
    return [np.clip(shade, 0, 255).astype(np.uint8) for shade in shades]


def _gray(shade: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(shade[:, :, None], 3, axis=2)


def _natural_noise(random: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose amplitude falls with frequency as photographs' does: (256, 256, 3), unit deviation."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE))
    spectrum = np.fft.rfft2(random.standard_normal((3, _SIDE, _SIDE))) / np.maximum(frequency, 1 / _SIDE)
    noise = np.fft.irfft2(spectrum, s=(_SIDE, _SIDE)).transpose(1, 2, 0)
    return np.asarray((noise - noise.mean()) / noise.std())
