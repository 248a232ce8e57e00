"""Do copies and kernels of neighbouring requests overlap? A trace of the encode stage, and what it says.

    python -m benchmarks.overlap --model random:2b --grid 64x28x28 --requests 12 --trace docs/overlap.json.gz

Two threads call the stage, as Ray Data's calls to one encode actor do, on a registered mapping that stands in for the
object store. The trace holds the device's copies and kernels alone, and opens in Perfetto (ui.perfetto.dev) or
chrome://tracing.
"""

import argparse
import gzip
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import print_record, print_table, synchronize
from benchmarks.requests import make_store, parse_grid, random_request
from pipeline.config import load_config
from pipeline.stages.encode import Encode, encode_device

_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One copy or kernel on the device, in microseconds from the first one's start."""

    name: str
    start: float
    end: float
    stream: int = 0

    @property
    def track(self) -> str:
        """Which engine did it."""
        return next((track for track in ("HtoD", "DtoH") if track in self.name), "compute")


def record(model: str, settings: Sequence[str], grid: tuple[int, int, int], num_requests: int) -> list[Work]:
    """What the device did for `num_requests` requests, after as many to warm up."""
    config = load_config(None, settings, model)
    device = encode_device(config)
    store = make_store([[grid]], device)
    table = random_request(grid) if store is None else store.request(grid)
    stage = Encode(config, model)
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(stage, [table] * num_requests))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities, acc_events=True) as profiled:
            list(threads.map(stage, [table] * num_requests))
            synchronize(device.type)
    events = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    first = min((event.time_range.start for event in events), default=0)
    return sorted(
        (
            Work(
                name=event.name,
                start=event.time_range.start - first,
                end=event.time_range.end - first,
                stream=event.device_resource_id,
            )
            for event in events
        ),
        key=lambda work: work.start,
    )


def joined(works: Sequence[Work]) -> list[tuple[float, float]]:
    """The union of their intervals."""
    union: list[tuple[float, float]] = []
    for work in works:
        if union and work.start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], work.end))
        else:
            union.append((work.start, work.end))
    return union


def common(left: Sequence[tuple[float, float]], right: Sequence[tuple[float, float]]) -> float:
    """Time that lies in both unions."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in left for b in right)


def summarise(works: Sequence[Work], num_requests: int) -> dict[str, Any]:
    """How busy the engines were, and how much of the copies kernels hid."""
    unions = {track: joined([work for work in works if work.track == track]) for track in ("HtoD", "compute")}
    times = {track: sum(end - start for start, end in union) for track, union in unions.items()}
    elapsed = max((work.end for work in works), default=0.0)
    return {
        "requests": num_requests,
        "copies": sum(work.track == "HtoD" for work in works),
        "copy_ms": times["HtoD"] / 1e3 / num_requests,
        "hidden": common(unions["HtoD"], unions["compute"]) / times["HtoD"] if times["HtoD"] else None,
        "compute_ms": times["compute"] / 1e3 / num_requests,
        "compute_share": times["compute"] / elapsed if elapsed else None,
    }


def write_trace(works: Sequence[Work], path: Path) -> None:
    """Chrome's trace format, compressed; the same bytes for the same events."""
    events = [
        {
            "name": work.name[:80],
            "ph": "X",
            "ts": round(work.start, 1),
            "dur": round(work.end - work.start, 1),
            "pid": "GPU",
            "tid": f"{work.track}, stream {work.stream}",
        }
        for work in works
    ]
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode(), mtime=0))


def main() -> None:
    """Record, summarise, and write the trace where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:2b")
    parser.add_argument("--grid", default="64x28x28", help="TxHxW in patches")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--trace", help="a file for the trace, *.json.gz")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    works = record(arguments.model, arguments.settings, parse_grid(arguments.grid), arguments.requests)
    if arguments.trace:
        write_trace(works, Path(arguments.trace))
    result = summarise(works, arguments.requests)
    print_table(
        ["requests", "copies", "copy, ms a request", "of it under kernels", "kernels, ms a request", "compute busy"],
        [
            [
                result["requests"],
                result["copies"],
                f"{result['copy_ms']:.2f}",
                _percent(result["hidden"]),
                f"{result['compute_ms']:.2f}",
                _percent(result["compute_share"]),
            ]
        ],
    )
    print_record("overlap", vars(arguments), [result])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    main()
