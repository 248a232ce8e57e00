"""Patch rows: a picture cut into 16 x 16 patches, in the order in which the encoder wants them.

A row is (C, T, 16, 16) flattened, 1,536 bytes for a pair of video frames (T = 2) and 768 for an image
(T = 1: the device repeats it). Rows are ordered by merge block: t, block-row, block-col, row in block,
column in block. The 16 bytes of a patch's line are moved as one element (7 GB/s, near a plain copy),
straight into the destination; a whole clip at once would leave the cache.
Source: transformers 5.23 Qwen3VLVideoProcessor.patchify, Qwen2VLImageProcessor.patchify.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.media.container import MediaType
from pipeline.media.grid import MERGE_SIZE, NUM_CHANNELS, PATCH_SIZE, temporal_size
from pipeline.media.resize import resize_to_planes

_LINE = np.dtype("c16")  # any 16-byte type: it is only moved


def write_frame(planes: NDArray[np.uint8], rows: NDArray[np.uint8], slot: int) -> None:
    """Write one frame into the rows of its temporal patch.

    Args:
        planes: uint8 (3, H, W), contiguous; H and W multiples of 32.
        rows: uint8 (H/16 * W/16, row bytes), contiguous and writable; written in place.
        slot: which of the row's frames this is.
    Cost: one copy.
    """
    channels, height, width = planes.shape
    blocks_down, blocks_across = height // (PATCH_SIZE * MERGE_SIZE), width // (PATCH_SIZE * MERGE_SIZE)
    lines = planes.view(_LINE).reshape(channels, blocks_down, MERGE_SIZE, PATCH_SIZE, blocks_across, MERGE_SIZE)
    target = rows.view(_LINE).reshape(blocks_down, blocks_across, MERGE_SIZE, MERGE_SIZE, channels, -1, PATCH_SIZE)
    target[..., slot, :] = lines.transpose(1, 4, 2, 5, 0, 3)


def write_clip(
    frames: Iterable[NDArray[np.uint8]], rows: NDArray[np.uint8], media_type: MediaType, height: int, width: int
) -> None:
    """Write a clip's frames into its rows, as `fill_patches` does.

    Args:
        frames: uint8 (H, W, 3) each.
        rows: uint8 (t * h * w, row bytes), contiguous and writable; filled completely.
        media_type: decides how many frames a row holds.
        height: of the resized frame, a multiple of 32.
        width: of the resized frame, a multiple of 32.
    """
    fill_patches(frames, rows.reshape(-1, patches_per_frame(height, width), rows.shape[1]), media_type, height, width)


def patches_per_frame(height: int, width: int) -> int:
    """Patches of one frame, and so rows of one temporal patch."""
    return (height // PATCH_SIZE) * (width // PATCH_SIZE)


def fill_patches(
    frames: Iterable[NDArray[np.uint8]],
    temporal_patches: Iterable[NDArray[np.uint8]],
    media_type: MediaType,
    height: int,
    width: int,
) -> None:
    """Resize frames as they come and write them into one temporal patch's rows after the other.

    An odd number of frames repeats the last one, after its resize; one frame of a video is used twice.

    Args:
        frames: uint8 (H, W, 3) each; the same array twice in a row is resized once.
        temporal_patches: uint8 (patches a frame, row bytes) each, contiguous and writable; filled completely, and let
            go of before the next one is asked for, so it may be the same memory again.
        media_type: decides how many frames a temporal patch holds.
        height: of the resized frame, a multiple of 32.
        width: of the resized frame, a multiple of 32.
    """
    waiting = iter(frames)
    last: NDArray[np.uint8] | None = None
    planes = np.empty((NUM_CHANNELS, 0, 0), np.uint8)
    for patch in temporal_patches:
        frame = next(waiting, None)
        assert frame is not None, "fewer frames than the rows are for"
        for slot in range(temporal_size(media_type)):
            if slot:
                frame = next(waiting, frame)
            if frame is not last:
                planes, last = resize_to_planes(frame, height, width), frame
            write_frame(planes, patch, slot)
    assert next(waiting, None) is None, "more frames than the rows are for"
