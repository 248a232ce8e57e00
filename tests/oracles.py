"""transformers' own functions, called one by one: what Patchwire's numbers are compared with."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch


@cache
def video_processor() -> Any:
    """The official video processor with a checkpoint's numbers; it cannot be called whole without torchvision."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    processor = Qwen3VLVideoProcessor.__new__(Qwen3VLVideoProcessor)
    processor.fps, processor.min_frames, processor.max_frames, processor.num_frames = 2, 4, 768, None
    processor.max_video_tokens = 768
    return processor


def official_indices(num_frames: int, fps: float | None) -> list[int]:
    """Frames that transformers samples."""
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(total_num_frames=num_frames, fps=fps)
    return [int(index) for index in video_processor().sample_frames(metadata)]


def official_timestamps(indices: Sequence[int], fps: float) -> list[float]:
    """Seconds that transformers writes before each temporal patch."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    processor = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    return [float(time) for time in processor._calculate_timestamps(np.array(indices), fps, 2)]


def official_video_size(
    num_frames: int, height: int, width: int, *, capped: bool = False, least: int = 4096, most: int = 25_165_824
) -> tuple[int, int]:
    """(height, width) that transformers resizes a video's frames to. Raises ValueError as it does."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    if capped:
        # As Qwen3VLVideoProcessor.resize computes it when cap_pixels_per_frame is set.
        most = max(min(768 * 32 * 32, most // num_frames), int(least * 1.05)) * num_frames
    return smart_resize(num_frames, height, width, temporal_factor=2, factor=32, min_pixels=least, max_pixels=most)


def official_image_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) that transformers resizes an image to. Raises ValueError as it does."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    return smart_resize(height, width, factor=32, min_pixels=65_536, max_pixels=16_777_216)


def official_patch_rows(frames: torch.Tensor) -> torch.Tensor:
    """Patch rows (P, 1536) that transformers cuts from resized frames (T, 3, H, W)."""
    rows, *_ = video_processor().patchify(frames[None], patch_size=16, merge_size=2, temporal_patch_size=2)
    return rows[0]
