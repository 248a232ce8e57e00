"""What do decode workers that keep dying cost a run?

    python -m benchmarks.churn VIDEO... --copies 700 --every 5 --kills 20

The same videos twice through a Ray of their own: undisturbed, and with one decode actor killed (SIGKILL) every few
seconds from the first fragment on. Not for ever: the actor that has the last request could be killed more often than it
can start. Seconds are of the whole run without the start of Ray. Each video is copied under new bytes, because equal
files are encoded once. The rows of both runs are compared to the bit.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.measure import print_record, print_table
from benchmarks.recipe import copies_of
from pipeline import RunSummary, embed
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


@contextmanager
def killed_actors(out: Path, every_seconds: float, most: int) -> Iterator[list[int]]:
    """Kill one decode actor every so often, from the first fragment on, `most` times; the list grows with each."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        rng = random.Random(0)
        while len(killed) < most and not over.wait(0.05):
            if not any((out / "embeddings").glob("*.parquet")):
                continue
            if victims := descendants(_VICTIM):
                killed.append(rng.choice(victims))
                with suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)
            over.wait(every_seconds)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


def run(paths: Sequence[str], out: Path, config: Config, every_seconds: float, kills: int) -> tuple[RunSummary, int]:
    """One run in a Ray of its own, and how many actors died."""
    with RayRunner(config), killed_actors(out, every_seconds, kills) as killed:
        summary = embed(list(paths), str(out), config=config, runner="ray")
    return summary, len(killed)


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
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = copies_of(arguments.videos, arguments.copies, Path(folder))
        for way, kills in (("undisturbed", 0), ("killed", arguments.kills)):
            started = time.perf_counter()
            summary, num_killed = run(paths, Path(folder, way), config, arguments.every, kills)
            results.append(
                {
                    "way": way,
                    "clips": summary.num_clips,
                    "errors": summary.num_errors,
                    "killed": num_killed,
                    "seconds": summary.elapsed_seconds,
                    "seconds_with_ray": time.perf_counter() - started,
                }
            )
            print(f"{way}: {summary.elapsed_seconds:.1f} s, {num_killed} killed", file=sys.stderr, flush=True)
        same = fragments(Path(folder, "killed")) == fragments(Path(folder, "undisturbed"))
    for result in results:
        result["slower"] = result["seconds"] / results[0]["seconds"] - 1
        result["same_bytes"] = same
    print_table(
        ["run", "clips", "errors", "actors killed", "seconds", "slower", "same bytes"],
        [
            [
                result["way"],
                result["clips"],
                result["errors"],
                result["killed"],
                f"{result['seconds']:.1f}",
                f"{result['slower']:.1%}",
                result["same_bytes"],
            ]
            for result in results
        ],
    )
    print_record("churn", vars(arguments), results)


if __name__ == "__main__":
    main()
