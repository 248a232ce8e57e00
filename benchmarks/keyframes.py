"""What do keyframes instead of the sampled frames save, and what do they change?

    python -m benchmarks.keyframes VIDEO... --model random:tiny --max-tokens 64

Every video is planned and embedded twice, by `frames.precision=exact` and `keyframe`. CPU seconds of reading a header
and of decoding to patch rows are those of this process, the least of several turns; the cosine is between a clip's two
vectors. Seeded random weights say how far apart the inputs are, not what a trained tower would make of it; for
comparison stands the cosine between a clip and the next clip of the same video, both exact.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import torch

from benchmarks.measure import print_record, print_table
from benchmarks.reading import decode, requests_of
from benchmarks.rows import RowsBuffer
from pipeline.config import Config
from pipeline.flow.run import embed
from pipeline.media.location import open_binary
from pipeline.media.probe import probe_media
from pipeline.plan.schema import Clip

PRECISIONS = ("exact", "keyframe")


def main() -> None:
    """Measure every video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--max-tokens", type=int, help="bound on merged tokens a frame; default: official sizes")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(video, arguments) for video in arguments.videos]
    print_table(
        [
            "video",
            "clips",
            "frames",
            "keyframes",
            "header, CPU-ms/s",
            "with keyframes",
            "decode exact, CPU-ms/s",
            "keyframes",
            "cosine, mean",
            "least",
            "next clip",
        ],
        [
            [
                result["video"],
                str(result["clips"]),
                *(str(count) for count in result["frames"]),
                *(f"{value:.2f}" for value in result["header"]),
                *(f"{value:.1f}" for value in result["decode"]),
                *("" if value is None else f"{value:.4f}" for value in result["cosines"]),
            ]
            for result in results
        ],
    )
    print_record("keyframes", vars(arguments), results)


def measure(video: str, arguments: argparse.Namespace) -> dict[str, list[int] | list[float] | str | int]:
    """One video's costs a second and cosines."""
    configs = [config_of(precision, arguments) for precision in PRECISIONS]
    requests = [requests_of(video, config) for config in configs]
    clips = [[clip for request in runs for clip in request] for runs in requests]
    rows, seconds = RowsBuffer(clips[0] + clips[1]), sum(clip.video_seconds for clip in clips[0])
    turns = [
        [
            *(probe_seconds(video, config) for config in configs),
            *(decode(runs, configs[0], rows) for runs in requests),
        ]
        for _ in range(1 + arguments.repeats)
    ]
    per_second = (1e3 * np.min(turns[1:], axis=0) / seconds).tolist()
    vectors = [vectors_of(video, config, arguments.model) for config in configs]
    return {
        "video": Path(video).name,
        "clips": len(clips[0]),
        "frames": [num_frames(of_one) for of_one in clips],
        "header": per_second[:2],
        "decode": per_second[2:],
        "cosines": cosines(*vectors),
    }


def config_of(precision: str, arguments: argparse.Namespace) -> Config:
    """The same run at one of two precisions."""
    return Config.from_values(
        {
            "clips": {"mode": "stride", "seconds": arguments.seconds},
            "frames": {"precision": precision},
            "sizes": {"max_tokens_per_frame": arguments.max_tokens},
            "decode": {"video": "pyav"},
            "encode": {"device": "cpu"},
        }
    )


def num_frames(clips: list[Clip]) -> int:
    """Frames that are decoded."""
    return sum(len(clip.frame_indices) for clip in clips)


def probe_seconds(video: str, config: Config) -> float:
    """CPU seconds of reading a header as a run does."""
    started = time.process_time()
    with open_binary(video) as file:
        wanted = config.frames.precision == "keyframe"
        probe_media(file, video, config.images, config.limits, with_keyframes=wanted)
    return time.process_time() - started


def vectors_of(video: str, config: Config, model: str) -> np.ndarray:
    """The vectors of a video's clips, in the order of time: float32 (clips, dim), each of length 1."""
    with tempfile.TemporaryDirectory() as folder:
        embed([video], folder, model=model, config=config, runner="local")
        table = ds.dataset(Path(folder) / "embeddings", format="parquet").to_table().sort_by("clip_index")
    return np.stack(table["embedding"].to_numpy())


def cosines(exact: np.ndarray, moved: np.ndarray) -> list[float | None]:
    """Mean and least cosine between the two vectors of a clip, and the mean one between neighbours."""
    between = (exact * moved).sum(axis=1)
    neighbours = [float(before @ after) for before, after in itertools.pairwise(exact)]
    return [float(between.mean()), float(between.min()), float(np.mean(neighbours)) if neighbours else None]


if __name__ == "__main__":
    main()
