"""How does the cost of a run grow with its work: time a clip and the driver's memory, from a hundred clips to many.

    python -m benchmarks.growth --counts 100 1000 10000 --workers 1 2
    python -m benchmarks.growth --media VIDEO --per-worker 80 --workers 1 2 4 8 15 --device cuda
    python -m benchmarks.growth --simulate-headers 10000 100000 1000000

Small media, so that what is measured is everything but decoding and encoding: every run embeds `--counts` distinct
images (or videos of eight frames) with a tiny random model, in a process of its own, whose peak memory is the driver's.
Linear is a flat `ms a clip`; bounded is a flat `driver MB`. `beside percent` is the share that is neither decoding nor
the encoder (or its start), which says something for `--runner local`, where they take turns.

With `--media` a clip costs what it costs in earnest: copies of those files, told apart by a box at their end, at
official sizes and with the default settings. `--per-worker` gives each decode worker as many clips, so that runs with
one and with many take as long. `speed up` is in clips a second over the first number of workers (of the same count): of
the whole run, and of its middle, which is from a tenth to nine tenths of the files written and leaves the start out.

With `--simulate-headers` only planning is measured, of that many images whose headers are made up: listing, shards,
clips, packing, and the plan written as an output keeps it. `listing MB` is there before planning begins.
"""

import argparse
import json
import math
import multiprocessing
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.measure import print_record, print_table
from benchmarks.recipe import copies_of
from pipeline.checkpoint import Preprocessing
from pipeline.config import Config, override_config
from pipeline.flow.plan_store import write_plan
from pipeline.flow.run import embed, plan_in_shards
from pipeline.media.container import MediaInfo, MediaType
from pipeline.plan.clips import Recipe
from pipeline.plan.probe import ProbeResult
from pipeline.sink.output import OutputFolder
from pipeline.sink.run_record import ModelIdentity
from pipeline.sink.schema import errors_schema
from pipeline.sources.listing import Listing, SourceItem

_MEGABYTE = 1 << 20
_FILES_PER_FOLDER = 1000
_REQUESTS_IN_STORE = 8
_SMALL_MAX_PATCHES = 8192


def make_images(folder: Path, count: int, side: int) -> None:
    """JPEG pictures with other bytes each; below 256 pixels a side, the encoder sees them at 256 x 256."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    picture = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    for number in range(count):
        picture.save(_path(folder, number, "jpg"), quality=85, comment=f"{number}")


def make_videos(folder: Path, count: int) -> None:
    """Videos of eight frames of 64 x 64 pixels, told apart by a box at their end that no decoder reads."""
    first = folder / "first.mp4"
    with av.open(str(first), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(8):
            pixels = np.full((64, 64, 3), 30 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    whole = first.read_bytes()
    first.unlink()
    for number in range(count):
        _path(folder, number, "mp4").write_bytes(whole + struct.pack(">I4sQ", 16, b"free", number))


def _path(folder: Path, number: int, suffix: str) -> Path:
    place = folder / f"{number // _FILES_PER_FOLDER:04}"
    place.mkdir(exist_ok=True)
    return place / f"{number:07}.{suffix}"


def peak_megabytes() -> float:
    """The most that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE


def run_config(workers: int, arguments: argparse.Namespace) -> Config:
    """Little but the pipeline itself for small media; what a run has by default for real ones."""
    max_patches = arguments.max_patches or (Config().request.max_patches if arguments.media else _SMALL_MAX_PATCHES)
    store_bytes = None if arguments.media else max(256 << 20, _REQUESTS_IN_STORE * max_patches * 1536)
    encode = {"device": arguments.device} | ({"threads": 1} if arguments.device == "cpu" else {})
    values = {
        "request": {"max_patches": max_patches},
        "sources": {"shard_sources": arguments.shard_sources},
        "encode": encode,
        "ray": {"decode_workers": workers, "object_store_bytes": store_bytes},
    }
    return override_config(Config.from_values({"model": arguments.model, **values}), arguments.settings)


def run_once(folder: str, out: str, workers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Embed a folder and say what it took; called in a fresh process, which is the driver."""
    summary = embed(folder, out, config=run_config(workers, arguments), runner=arguments.runner)
    timings = json.loads((Path(out) / "run.json").read_text())["timings_seconds"]
    middle = middle_seconds(Path(out))
    codecs = timings["decode"] + timings["encode"] + timings["encoder_start"]
    return {
        "clips": summary.num_clips,
        "workers": workers,
        "requests": summary.num_requests,
        "errors": summary.num_errors,
        "seconds": summary.elapsed_seconds,
        "plan_seconds": timings["plan"],
        "decode_seconds": timings["decode"],
        "encode_seconds": timings["encode"],
        "beside_percent": 100 * (1 - codecs / summary.elapsed_seconds),
        "ms_per_clip": 1e3 * summary.elapsed_seconds / summary.num_clips,
        "middle_ms_per_clip": None if middle is None else 1e3 * middle / summary.num_clips,
        "driver_cpu_seconds": time.process_time(),
        "driver_megabytes": peak_megabytes(),
        "files": sum(path.is_file() for path in Path(out).rglob("*")),
        "limited_by": summary.bottleneck,
    }


def middle_seconds(out: Path) -> float | None:
    """What the whole run would have taken at the pace of its middle; None for a handful of files."""
    times = sorted(path.stat().st_mtime for path in (out / "embeddings").glob("*.parquet"))
    tenth = len(times) // 10
    if not tenth:
        return None
    return (times[-1 - tenth] - times[tenth]) * len(times) / (len(times) - 1 - 2 * tenth)


def with_speed_up(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add how many times as many clips a second there were as in the first of them."""

    def times_faster(result: dict[str, Any], name: str) -> float | None:
        return results[0][name] / result[name] if results[0][name] and result[name] else None

    return [
        result
        | {
            "speed_up": times_faster(result, "ms_per_clip"),
            "middle_speed_up": times_faster(result, "middle_ms_per_clip"),
        }
        for result in results
    ]


def simulated_listing(count: int) -> Listing:
    """Images of a hundred thousand bytes, give or take, in folders of a thousand."""
    sizes = np.random.default_rng(0).integers(50_000, 150_000, count).tolist()
    items = (
        SourceItem(
            uri=f"/corpus/{number // _FILES_PER_FOLDER:05}/{number:09}.jpg", num_bytes=sizes[number], modified_ns=1
        )
        for number in range(count)
    )
    return Listing(items=tuple(items), failures=())


def simulated_headers(items: Sequence[SourceItem]) -> Iterator[ProbeResult]:
    """What headers of pictures in a few common sizes would say."""
    for item in items:
        number = int(item.uri[-13:-4])
        width, height = ((640, 480), (1024, 768), (800, 600), (480, 640))[number % 4]
        info = MediaInfo(
            media_type=MediaType.IMAGE,
            width=width,
            height=height,
            num_frames=1,
            fps=None,
            frame_times_seconds=None,
            codec="jpeg",
        )
        yield ProbeResult(item=item, source_id=f"b2-{number:032x}", info=info, error=None)


def plan_once(count: int, out: str, shard_sources: int) -> dict[str, Any]:
    """Plan simulated images into an output; called in a fresh process."""
    folder = OutputFolder(out)
    folder.create()
    model = ModelIdentity(model_id="simulated", model_revision="none", random_weights=True)
    schema = errors_schema(model=model, config_hash="none")
    config = Config.from_values({"sources": {"shard_sources": shard_sources}})
    listing = simulated_listing(count)
    listing_megabytes = peak_megabytes()
    started = time.perf_counter()
    first_seconds, num_shards, num_requests = 0.0, 0, 0
    recipe = Recipe(preprocessing=Preprocessing(), config=config)
    for number, plan in enumerate(plan_in_shards(listing, simulated_headers, recipe)):
        write_plan(folder, f"plan-{number:05d}", plan, schema)
        num_requests += len(plan.requests)
        num_shards = number + 1
        first_seconds = first_seconds or time.perf_counter() - started
        del plan
    seconds = time.perf_counter() - started
    return {
        "sources": count,
        "shards": num_shards,
        "requests": num_requests,
        "seconds": seconds,
        "first_shard_seconds": first_seconds,
        "us_per_source": 1e6 * seconds / count,
        "listing_megabytes": listing_megabytes,
        "peak_megabytes": peak_megabytes(),
        "plan_megabytes": sum(path.stat().st_size for path in Path(out).rglob("*.parquet")) / _MEGABYTE,
    }


def in_fresh_process(call: Any, *values: Any) -> dict[str, Any]:
    """Run one measurement where nothing has been allocated before it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found: dict[str, Any] = pool.submit(call, *values).result()
    return found


def make_media(folder: Path, count: int, arguments: argparse.Namespace) -> None:
    """So many files."""
    folder.mkdir()
    if arguments.media:
        copies_of(arguments.media, math.ceil(count / len(arguments.media)), folder)
    elif arguments.kind == "images":
        make_images(folder, count, arguments.side)
    else:
        make_videos(folder, count)


def measure_runs(arguments: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """Every count with every number of workers, each into an output of its own that is removed again."""
    each, all_workers = arguments.per_worker, arguments.workers
    counts = [{workers: each * workers for workers in all_workers}] if each else []
    counts = counts or [dict.fromkeys(all_workers, count) for count in arguments.counts]
    results = []
    for compared in counts:
        runs = []
        for workers, count in compared.items():
            folder, out = place / f"media-{count}", place / "OUT"
            if not folder.exists():
                make_media(folder, count, arguments)
            runs.append(in_fresh_process(run_once, str(folder), str(out), workers, arguments))
            seconds = runs[-1]["seconds"]
            print(f"{count} clips, {workers} workers: {seconds:.1f} s", file=sys.stderr, flush=True)
            shutil.rmtree(out)
        results += with_speed_up(runs)
        for count in set(compared.values()):
            shutil.rmtree(place / f"media-{count}")
    return results


def measure_planning(arguments: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """Every number of simulated headers."""
    results = []
    for count in arguments.simulate_headers:
        out = place / "OUT"
        results.append(in_fresh_process(plan_once, count, str(out), arguments.shard_sources))
        shutil.rmtree(out)
    return results


def main() -> None:
    """Measure runs, or planning alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="decode workers")
    parser.add_argument("--kind", choices=("images", "videos"), default="images")
    parser.add_argument("--side", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--runner", choices=("ray", "local"), default="ray")
    parser.add_argument("--media", nargs="+", help="copies of these MP4 or MOV files instead of small media")
    parser.add_argument("--per-worker", type=int, help="this many clips for each decode worker, instead of --counts")
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu", help="of the encoder")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    parser.add_argument(
        "--max-patches", type=int, help="of a request; an image here is 256; default 8192 for small media"
    )
    parser.add_argument("--shard-sources", type=int, default=Config().sources.shard_sources)
    parser.add_argument("--simulate-headers", type=int, nargs="+", help="plan this many made-up images, nothing else")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        measure_all = measure_planning if arguments.simulate_headers else measure_runs
        results = measure_all(arguments, Path(place))
    print_table(
        [name.replace("_", " ") for name in results[0]],
        [[f"{value:.1f}" if isinstance(value, float) else value for value in row.values()] for row in results],
    )
    print_record("growth", vars(arguments), results)


if __name__ == "__main__":
    main()
