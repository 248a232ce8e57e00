"""How others turn a video into the encoder's input: what decoding is compared with, each on one thread.

All sample the same frames at the same size and end in float32 patches. The readers differ: decord's get_batch,
a sequential PyAV decode and torchcodec are what transformers' video processor reads with; `vllm's loader` is OpenCV's
grab() for every frame and retrieve() for the wanted ones, out of bytes in memory, stated anew because vLLM itself
brings a GPU's stack; `qwen-vl-utils` is that package's own fetch_video. Behind the readers stand resize, normalisation
and patchify of transformers' processor, called one by one; behind qwen-vl-utils, and once behind decord for
comparison, the processor as a whole, which needs torchvision.

decord and PyAV come with Patchwire, the others with its extra `peers`; what is not installed is left out and named.
torchcodec wants FFmpeg's shared libraries on the machine.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.plan.schema import Clip

_NAMED: list[torch.library.Library] = []  # a name goes with its library


def peer_ways(clip: Clip) -> dict[str, Callable[[], object]]:
    """Every peer that is installed, ready to be called."""
    if find_spec("torchvision") is not None:
        name_torchvision_operators()
    return {name: partial(call, clip) for name, (call, needs) in _PEERS.items() if not _lacking(needs)}


def peers_left_out() -> dict[str, list[str]]:
    """The peers that are not installed, with what they lack."""
    return {name: _lacking(needs) for name, (_, needs) in _PEERS.items() if _lacking(needs)}


def _lacking(needs: tuple[str, ...]) -> list[str]:
    return [need for need in needs if find_spec(need) is None]


def official(frames: torch.Tensor, clip: Clip) -> torch.Tensor:
    """What transformers' video processor does with sampled frames (T, H, W, 3): float32 patches."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    size = (clip.resized_height, clip.resized_width)
    resized = functional.interpolate(frames.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
    pixels = (resized.float() - 127.5) / 127.5
    processor = Qwen3VLVideoProcessor.__new__(Qwen3VLVideoProcessor)
    rows, *_ = processor.patchify(pixels[None], patch_size=16, merge_size=2, temporal_patch_size=2)
    return rows


def decord_patches(clip: Clip) -> torch.Tensor:
    """Call decord's get_batch, as transformers and qwen-vl-utils call it, and the rest as `official`."""
    return official(_decord_frames(clip), clip)


def _decord_frames(clip: Clip) -> torch.Tensor:
    import decord

    reader = decord.VideoReader(clip.source_uris[0], num_threads=1)
    return torch.from_numpy(reader.get_batch(list(clip.frame_indices)).asnumpy())


def pyav_patches(clip: Clip) -> torch.Tensor:
    """Every frame decoded, the wanted ones kept: transformers' PyAV reader."""
    wanted = set(clip.frame_indices)
    frames = [frame.to_ndarray(format="rgb24") for place, frame in enumerate(decoded(clip)) if place in wanted]
    return official(torch.from_numpy(np.stack(frames)), clip)


def decoded(clip: Clip) -> Iterator[av.VideoFrame]:
    """All frames of a video, one thread."""
    with av.open(clip.source_uris[0], metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        yield from container.decode(stream)


def torchcodec_patches(clip: Clip) -> torch.Tensor:
    """What transformers' torchcodec reader does; its exact seeking scans the file first."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(clip.source_uris[0], dimension_order="NHWC", num_ffmpeg_threads=1)
    return official(decoder.get_frames_at(list(clip.frame_indices)).data, clip)


def opencv_patches(clip: Clip) -> torch.Tensor:
    """What vLLM's OpenCV loader does for a file."""
    return official(torch.from_numpy(_opencv_frames(clip)), clip)


def _opencv_frames(clip: Clip) -> NDArray[np.uint8]:
    import cv2
    from cv2 import videoio_registry

    cv2.setNumThreads(1)
    data = BytesIO(Path(clip.source_uris[0]).read_bytes())
    capture = cv2.VideoCapture(data, videoio_registry.getStreamBufferedBackends()[0], [cv2.CAP_PROP_N_THREADS, 1])
    wanted = set(clip.frame_indices)
    frames: NDArray[np.uint8] = np.empty((len(wanted), clip.height, clip.width, 3), np.uint8)
    found = 0
    for place in range(clip.frame_indices[-1] + 1):
        if not capture.grab():
            break
        if place in wanted:
            _, picture = capture.retrieve()
            cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=frames[found])
            found += 1
    capture.release()
    assert found == len(wanted), f"OpenCV found {found} of {len(wanted)} frames"
    return frames


def decord_processor_patches(clip: Clip) -> torch.Tensor:
    """Frames of decord through the whole processor, which resizes as its own arithmetic says."""
    return _processed(_decord_frames(clip).permute(0, 3, 1, 2), clip, do_resize=True)


def qwen_patches(clip: Clip) -> torch.Tensor:
    """qwen-vl-utils from its own sampling to its own resize, then the processor as its README calls it."""
    os.environ["TORCHCODEC_NUM_THREADS"] = "1"
    from qwen_vl_utils.vision_process import fetch_video

    wish = {"video": clip.source_uris[0], "resized_height": clip.resized_height, "resized_width": clip.resized_width}
    return _processed(fetch_video(wish, image_patch_size=16), clip, do_resize=False)


def _processed(frames: torch.Tensor, clip: Clip, *, do_resize: bool) -> torch.Tensor:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    processor = Qwen3VLVideoProcessor(
        size={"shortest_edge": 4096, "longest_edge": 25_165_824},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        cap_pixels_per_frame=False,
    )
    made: Any = processor([frames], do_resize=do_resize, do_sample_frames=False, return_tensors="pt")
    (grid,) = made["video_grid_thw"].tolist()
    assert grid[1:] == list(clip.grid_thw[1:]), f"expected frames of {clip.grid_thw[1:]} patches, got {grid[1:]}"
    rows: torch.Tensor = made["pixel_values_videos"]
    return rows


def name_torchvision_operators() -> None:
    """Let torchvision be imported, by transformers too, beside a torch without CUDA, where its operators do not load.

    Its transforms are plain torch and need none, but the import (0.28) fails over operators without a name.
    """
    if torch.version.cuda is None and not _NAMED:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _NAMED.append(library)


# By name: what to call, and what it imports beside Patchwire's own dependencies.
_PEERS: dict[str, tuple[Callable[[Clip], torch.Tensor], tuple[str, ...]]] = {
    "decord + transformers": (decord_patches, ()),
    "pyav sequential + transformers": (pyav_patches, ()),
    "torchcodec + transformers": (torchcodec_patches, ("torchcodec",)),
    "vllm's loader + transformers": (opencv_patches, ("cv2",)),
    "decord + transformers' whole processor": (decord_processor_patches, ("torchvision",)),
    "qwen-vl-utils + transformers' whole processor": (qwen_patches, ("qwen_vl_utils", "torchvision", "torchcodec")),
}
