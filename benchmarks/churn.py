"""What do decode workers that keep dying cost a run?

    python -m benchmarks.churn VIDEO... --copies 700 --every 5 --kills 20

The same videos through a Ray of their own: undisturbed, with one decode actor killed (SIGKILL) every few seconds from
the first fragment on, and undisturbed again, because a machine is not as fast at all times. Not killed for ever: the
actor that has the last request could be killed more often than it can start. Seconds are of the whole run without the
start of Ray, and from its first fragment on. Each video is copied under new bytes, because equal files are encoded
once. The rows of all runs are compared to the bit.
"""

import argparse
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import print_record, print_table
from benchmarks.recipe import copies_of
from pipeline import embed
from pipeline.config import Config, load_config
from pipeline.flow.cluster import RayRunner

_VICTIM = b"(DecodeActor)"


def descendants(words: bytes) -> list[int]:
    """Processes below this one whose command line holds the words."""
    parents: dict[int, int] = {}
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat, line = (path / "stat").read_text(), (path / "cmdline").read_bytes()
            parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
            if words in line:
                found.append(int(path.name))
    return [pid for pid in found if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


@dataclass(slots=True)
class Watch:
    """When a run's first fragment was there, and who has been killed."""

    first_fragment: float = math.nan
    killed: list[int] = field(default_factory=list)


@contextmanager
def killed_actors(out: Path, every_seconds: float, most: int) -> Iterator[Watch]:
    """Kill one decode actor every so often, from the first fragment on, `most` times."""
    watch, over = Watch(), threading.Event()

    def kill() -> None:
        rng = random.Random(0)
        while not any((out / "embeddings").glob("*.parquet")):
            if over.wait(0.05):
                return
        watch.first_fragment = time.perf_counter()
        while len(watch.killed) < most and not over.is_set():
            if victims := descendants(_VICTIM):
                watch.killed.append(rng.choice(victims))
                with suppress(ProcessLookupError):
                    os.kill(watch.killed[-1], signal.SIGKILL)
            over.wait(every_seconds)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield watch
    finally:
        over.set()
        killer.join()


def run(paths: Sequence[str], out: Path, config: Config, every_seconds: float, kills: int) -> dict[str, Any]:
    """One run in a Ray of its own, its length in seconds, and how many actors died."""
    with RayRunner(config), killed_actors(out, every_seconds, kills) as watch:
        summary = embed(list(paths), str(out), config=config, runner="ray")
        ended = time.perf_counter()
    return {
        "clips": summary.num_clips,
        "errors": summary.num_errors,
        "killed": len(watch.killed),
        "seconds": summary.elapsed_seconds,
        "seconds_at_work": ended - watch.first_fragment,
    }


def fragments(out: Path) -> dict[str, bytes]:
    """A run's rows as they lie in its files."""
    return {path.name: path.read_bytes() for path in (out / "embeddings").glob("*.parquet")}


def main() -> None:
    """Run both on the same files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="MP4 or MOV")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    config = load_config(None, arguments.settings, arguments.model)
    ways = {"undisturbed": 0, "killed": arguments.kills, "undisturbed again": 0}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = copies_of(arguments.videos, arguments.copies, Path(folder))
        for way, kills in ways.items():
            results.append({"way": way} | run(paths, Path(folder, way), config, arguments.every, kills))
            print(results[-1], file=sys.stderr, flush=True)
        rows = [fragments(Path(folder, way)) for way in ways]
    lengths = ("seconds", "seconds_at_work")
    usual = {length: statistics.mean(each[length] for each in results if not ways[each["way"]]) for length in lengths}
    for result, its_rows in zip(results, rows, strict=True):
        result |= {f"{length}_over_undisturbed": result[length] / usual[length] - 1 for length in lengths}
        result["same_bytes"] = its_rows == rows[0]
    print_table(
        ["run", "clips", "errors", "actors killed", "seconds", "slower", "from the first fragment", "slower", "same"],
        [
            [
                result["way"],
                result["clips"],
                result["errors"],
                result["killed"],
                f"{result['seconds']:.1f}",
                f"{result['seconds_over_undisturbed']:+.1%}",
                f"{result['seconds_at_work']:.1f}",
                f"{result['seconds_at_work_over_undisturbed']:+.1%}",
                result["same_bytes"],
            ]
            for result in results
        ],
    )
    print_record("churn", vars(arguments), results)


if __name__ == "__main__":
    main()
