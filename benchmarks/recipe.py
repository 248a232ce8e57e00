"""Patchwire against the way that Ray Data's documentation suggests, on the same videos, machine and weights.

    python -m benchmarks.recipe VIDEO... --copies 100 --model random:2b

The recipe: `map` reads a video's sampled frames with decord and makes float32 patches with transformers' operations,
`map_batches` runs transformers' tower (bf16 and sdpa on CUDA) on a GPU actor and averages its tokens. It is given its
frame numbers and sizes; Patchwire plans, decodes, encodes and writes its table. Each video is copied under new bytes
(an empty box at its end), because Patchwire encodes equal files once. Both start a Ray of their own; the seconds
are of the whole run without the start of that Ray, and include loading the weights. `least cosine` is that of the two
vectors of the video on which the ways differ most.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from benchmarks.decode_peers import decord_patches
from benchmarks.encoder import peer_tower, peer_vectors
from benchmarks.measure import print_record, print_table
from benchmarks.plans import plan_clips
from pipeline import embed
from pipeline.checkpoint import resolve_model
from pipeline.config import Config, load_config
from pipeline.encoder.weights import load_tower
from pipeline.flow.cluster import RayRunner
from pipeline.plan.schema import Clip
from pipeline.stages.encode import encode_device, encode_dtype


def copies_of(videos: Sequence[str], num_copies: int, folder: Path) -> list[str]:
    """ISO media files with the same content and other bytes."""
    paths = []
    for number in range(num_copies):
        for video in map(Path, videos):
            path = folder / f"{video.stem}-{number:04}{video.suffix}"
            path.write_bytes(video.read_bytes() + b"\0\0\0\x10free" + number.to_bytes(8))
            paths.append(str(path))
    return paths


class PeerTower:
    """Transformers' tower in a Ray Data actor."""

    def __init__(self, model: str, config: Config) -> None:
        checkpoint = resolve_model(model)
        self._device = encode_device(config)
        dtype = encode_dtype(config, self._device)
        weights = load_tower(checkpoint, device=torch.device("cpu"), dtype=dtype).state_dict()
        self._tower = peer_tower(checkpoint.vision, weights, self._device, dtype)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One video in, its vector out."""
        pixels = torch.from_numpy(batch["pixel_values"][0])
        t, h, w = (int(size) for size in batch["grid"][0])
        return {"id": batch["id"], "vector": peer_vectors(self._tower, pixels, [(t, h, w)], self._device)}


def recipe(clips: Sequence[Clip], model: str, config: Config) -> tuple[float, dict[str, np.ndarray]]:
    """Map the official preprocessing, then the official tower: the seconds, and each clip's vector by its id."""

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        clip = clips[row["id"]]
        patches = decord_patches(clip).numpy()
        return {"id": row["id"], "pixel_values": patches, "grid": np.array(clip.grid_thw)}

    on_gpu = {"num_gpus": 1} if encode_device(config).type == "cuda" else {"num_cpus": 0.5}
    started = time.perf_counter()
    dataset = (
        ray.data.range(len(clips), override_num_blocks=len(clips))
        .map(preprocess)
        .map_batches(
            PeerTower,
            fn_constructor_args=(model, config),
            batch_size=1,
            compute=ActorPoolStrategy(size=1),
            **on_gpu,
        )
    )
    vectors = {clips[row["id"]].clip_ids[0]: row["vector"] for row in dataset.iter_rows()}
    assert len(vectors) == len(clips), "videos were lost"
    return time.perf_counter() - started, vectors


def cosines(out: str, theirs: dict[str, np.ndarray]) -> list[float]:
    """How close an output's vectors are to other ones of the same clips, one number a clip."""
    table = ds.dataset(Path(out) / "embeddings", format="parquet").to_table(["clip_id", "embedding"])
    ours = dict(zip(table["clip_id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    pairs = [(np.asarray(ours[clip_id]), vector) for clip_id, vector in theirs.items()]
    return [float(left @ right / np.linalg.norm(left) / np.linalg.norm(right)) for left, right in pairs]


def main() -> None:
    """Run both on the same files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="MP4 or MOV")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--model", default="random:2b")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    config = load_config(None, arguments.settings, arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        paths = copies_of(arguments.videos, arguments.copies, Path(folder))
        clips = plan_clips(paths, config)
        with RayRunner(config):
            ours = embed(paths, f"{folder}/OUT", config=config, runner="ray")
            theirs, vectors = recipe(clips, arguments.model, config)
        close = cosines(f"{folder}/OUT", vectors)
    assert ours.num_clips == len(clips), "videos were lost"
    video_seconds = sum(clip.video_seconds for clip in clips)
    results: list[dict[str, Any]] = [
        {
            "way": name,
            "videos": len(clips),
            "video_seconds": video_seconds,
            "seconds": seconds,
            "least_cosine": min(close),
        }
        for name, seconds in (("patchwire", ours.elapsed_seconds), ("ray.data recipe", theirs))
    ]
    print_table(
        ["way", "videos", "seconds", "video seconds a second", "times", "least cosine"],
        [
            [
                result["way"],
                result["videos"],
                f"{result['seconds']:.1f}",
                f"{video_seconds / result['seconds']:.1f}",
                f"{theirs / result['seconds']:.2f}",
                f"{result['least_cosine']:.5f}",
            ]
            for result in results
        ],
    )
    print_record("recipe", vars(arguments), results)


if __name__ == "__main__":
    main()
