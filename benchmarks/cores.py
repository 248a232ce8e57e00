"""How does decoding alone grow with processes on a machine: what no pipeline around it can surpass.

    python -m benchmarks.cores VIDEO... --workers 1 2 4 8 15 [--planes]

Each process turns the same clips into requests, over and over, with a decoder process of its own, as a decode actor
does, but without Ray, an object store or anybody who takes the requests. All begin at once, and what was done within
`--seconds` counts. `of one` is what a process does beside the others, over what one does alone: threads of one core,
its clock, caches and memory are shared.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.measure import print_record, print_table
from benchmarks.plans import plan_clips
from pipeline.config import Config
from pipeline.plan.schema import RequestPlan
from pipeline.request.build import build_request
from pipeline.stages.decode import make_sandbox


def clips_within(
    plans: Sequence[RequestPlan], config: Config, with_planes: bool, barrier: Any, seconds: float
) -> float:
    """Clips that one process has decoded when the time is over, the last one in part; after one round to warm up."""
    torch.set_num_threads(1)
    with make_sandbox(config, None) as sandbox:
        for plan in plans:
            build_request(plan, sandbox, with_planes=with_planes)
        barrier.wait()
        started, num_clips = time.perf_counter(), 0.0
        while True:
            for plan in plans:
                begun = time.perf_counter()
                build_request(plan, sandbox, with_planes=with_planes)
                ended = time.perf_counter()
                if ended - started >= seconds:
                    return num_clips + (seconds - (begun - started)) / (ended - begun)
                num_clips += 1


def measure_together(
    plans: Sequence[RequestPlan], config: Config, with_planes: bool, num_workers: int, seconds: float
) -> dict[str, Any]:
    """What so many processes do side by side."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(num_workers, context) as pool:
        barrier = manager.Barrier(num_workers)
        calls = [pool.submit(clips_within, plans, config, with_planes, barrier, seconds) for _ in range(num_workers)]
        num_clips = sum(call.result() for call in calls)
    return {
        "workers": num_workers,
        "clips_per_second": num_clips / seconds,
        "ms_per_clip_and_worker": 1e3 * seconds * num_workers / num_clips,
    }


def main() -> None:
    """Measure each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--planes", action="store_true", help="decode into planes what may be")
    parser.add_argument("--max-tokens", type=int, help="bound on merged tokens a frame; default: official sizes")
    arguments = parser.parse_args()
    config = Config.from_values({"sizes": {"max_tokens_per_frame": arguments.max_tokens}})
    plans = [RequestPlan.of([clip]) for clip in plan_clips(arguments.videos, config)]
    results = [
        measure_together(plans, config, arguments.planes, num_workers, arguments.seconds)
        for num_workers in arguments.workers
    ]
    for result in results:
        result["of_one"] = results[0]["ms_per_clip_and_worker"] / result["ms_per_clip_and_worker"]
    print_table(
        ["processes", "clips a second", "ms a clip, each", "of one"],
        [
            [
                result["workers"],
                f"{result['clips_per_second']:.1f}",
                f"{result['ms_per_clip_and_worker']:.0f}",
                f"{result['of_one']:.0%}",
            ]
            for result in results
        ],
    )
    print_record("cores", vars(arguments), results)


if __name__ == "__main__":
    main()
