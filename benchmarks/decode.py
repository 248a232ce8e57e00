"""What does a second of video cost one core, from the file to patch rows?

    python -m benchmarks.decode VIDEO... --repeats 5

Every way samples the official frames (two a second) of the whole video at the official size, on one thread, in
this process. CPU seconds count, not the clock, and the least of several turns, because other processes on a machine
only ever add time; `spread` is how far the median lies above it. The peers (decode_peers.py) do what their users run;
`pip install '.[peers]'` brings those that Patchwire itself does without, and what is not installed is left out by name.
`decode alone` is every frame decoded and nothing done with it: the floor that skipping frames can pass. `patchwire,
planes` is what a clip costs the CPU where the encoder runs on a GPU, and the clip travels as planes.

`--parts` says instead where Patchwire's own time goes, as far as a request in the object store of a Ray started for it
(this process's time: the copy is made here, the store's daemon only hands out room), with nanoseconds a pixel: what
`pipeline/plan/rates.py` holds. Then images may be named, too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.decode_parts import PARTS, seconds_by_part
from benchmarks.decode_peers import decoded, peer_ways, peers_left_out
from benchmarks.measure import print_record, print_table
from benchmarks.plans import plan_clips
from benchmarks.rows import RowsBuffer
from pipeline.config import Config, DecodeConfig
from pipeline.flow.cluster import RayRunner
from pipeline.media.frames import open_frames
from pipeline.media.location import open_binary
from pipeline.media.video_pyav import IndexCache
from pipeline.plan.schema import Clip
from pipeline.plan.work import ClipWork
from pipeline.request.build import clip_job


def cpu_seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of this process, children excluded, of each way: the ways take turns, after one to warm up.

    So a machine that is slow for a minute is slow for all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + repeats):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    return {name: of_way[1:] for name, of_way in seconds.items()}


def patchwire(clip: Clip, backend: str, config: Config, *, as_planes: bool = False) -> Callable[[], object]:
    """What the decoder process does for a clip, which has a `plane_size` if it is to travel as planes."""
    job = clip_job(clip, clip.sources[0], size=clip.plane_size if as_planes else None)
    rows = RowsBuffer([clip])
    decode = DecodeConfig(video=backend)  # type: ignore[arg-type]

    def run() -> None:
        with open_binary(job.uri) as file:
            opened = open_frames(job, file, decode, config.images, config.limits, IndexCache(), rows.planes)
            assert as_planes is (opened.pictures is not None), "the clip is not of planes"
            if opened.pictures is None:
                rows.fill(clip, opened.frames)
            else:
                rows.fill_planes(clip, opened.pictures)

    return run


def decode_alone(clip: Clip) -> Callable[[], object]:
    """The decoder's own work."""
    return lambda: sum(1 for _ in decoded(clip))


def main() -> None:
    """Measure every way, or every part of ours, on every video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, help="bound on merged tokens a frame; default: official sizes")
    parser.add_argument("--parts", action="store_true", help="take Patchwire's way apart; no peers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.from_values({"sizes": {"max_tokens_per_frame": arguments.max_tokens}})
    if arguments.parts:
        print_parts(arguments, config)
    else:
        print_ways(arguments, config)


def print_parts(arguments: argparse.Namespace, config: Config) -> None:
    """Take every medium apart: milliseconds a part, and nanoseconds a pixel of what the part goes over."""
    with RayRunner(config):
        clips = [plan_clips([path], config)[0] for path in arguments.videos]
        results = [
            parts_of(clip, config, arguments.repeats, as_planes=as_planes)
            for clip in clips
            for as_planes in (False, True)[: 1 if clip.plane_size is None else 2]
        ]
    print_table(
        [
            "medium",
            "codec",
            "size",
            "as",
            *(f"{part}, ms" for part in PARTS),
            "not decoding",
            "ns a read pixel",
            "sampled",
            "row",
            "plane",
        ],
        [
            [
                result["medium"],
                result["codec"],
                result["size"],
                result["as"],
                *(f"{1e3 * result['seconds'][part]:.1f}" for part in PARTS),
                f"{result['not_decoding']:.0%}",
                *(f"{result[f'ns_per_{name}_pixel']:.2f}" for name in ("read", "sampled", "row", "plane")),
            ]
            for result in results
        ],
    )
    print_record("decode-parts", vars(arguments), results)


def parts_of(clip: Clip, config: Config, repeats: int, *, as_planes: bool) -> dict[str, Any]:
    """One medium's parts; a pixel is read with every frame of the span, sampled with each that is wanted."""
    seconds = seconds_by_part(clip, config, repeats, ray.put, as_planes=as_planes)
    work = ClipWork.of(clip)
    decoding = seconds["container"] + seconds["decode"]
    return {
        "medium": Path(clip.source_uris[0]).name,
        "codec": clip.codec,
        "size": f"{clip.width}x{clip.height} to {clip.resized_width}x{clip.resized_height}",
        "as": "planes" if as_planes else "rows",
        "seconds": seconds,
        "not_decoding": 1 - decoding / sum(seconds.values()),
        "ns_per_read_pixel": 1e9 * decoding / work.read_pixels,
        "ns_per_sampled_pixel": 1e9 * (seconds["colour"] + seconds["resize"]) / work.sampled_pixels,
        "ns_per_row_pixel": 1e9 * seconds["patch rows"] / work.row_pixels,
        "ns_per_plane_pixel": 1e9 * seconds["planes"] / work.sampled_pixels,
    }


def print_ways(arguments: argparse.Namespace, config: Config) -> None:
    """Measure every way on every video."""
    results: list[dict[str, Any]] = []
    for video in arguments.videos:
        (clip,) = plan_clips([video], config)
        ways = {
            "patchwire, pyav": patchwire(clip, "pyav", config),
            "patchwire, decord": patchwire(clip, "decord", config),
            **peer_ways(clip),
            "decode alone": decode_alone(clip),
        }
        if clip.plane_size is not None:
            ways["patchwire, planes"] = patchwire(clip, "pyav", config, as_planes=True)
        for name, seconds in cpu_seconds(ways, arguments.repeats).items():
            least = min(seconds)
            results.append(
                {
                    "video": Path(video).name,
                    "size": f"{clip.width}x{clip.height} to {clip.resized_width}x{clip.resized_height}",
                    "way": name,
                    "cpu_ms_per_video_second": 1e3 * least / clip.video_seconds,
                    "spread": statistics.median(seconds) / least - 1,
                    "frames_per_core_second": len(clip.frame_indices) / least,
                }
            )
    print_table(
        ["video", "size", "way", "CPU-ms per second of video", "sampled frames per core-second", "spread"],
        [
            [
                result["video"],
                result["size"],
                result["way"],
                f"{result['cpu_ms_per_video_second']:.1f}",
                f"{result['frames_per_core_second']:.1f}",
                f"{result['spread']:.0%}",
            ]
            for result in results
        ],
    )
    left_out = peers_left_out()
    for name, lacking in left_out.items():
        print(f"left out: {name}; not installed: {', '.join(lacking)}")
    print_record("decode", vars(arguments) | {"left_out": left_out}, results)


if __name__ == "__main__":
    main()
