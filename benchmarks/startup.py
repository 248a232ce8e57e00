"""How long until an encode actor's first vectors, and what of it does the next process find in a cache?

    python -m benchmarks.startup --model random:2b --model random:8b

Each model is started in a process of its own, first with an empty cache folder for its kernels (Triton's, and on Hopper
quack's and FlashAttention's) and then again with what the first one left there. `kernels` counts the compiled kernels
that a process added to the folder. Seconds:
`imports` from the process's start until torch and Patchwire are loaded, `weights` read or drawn and brought to the
device, `warm-up` (the kernels of a small and a large picture and video compiled or loaded), `first` and `second`
request of `--grid`, from host memory to vectors on the host. On a CPU nothing is compiled and nothing warmed up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import print_record, print_table
from benchmarks.requests import parse_grid, random_request
from pipeline.config import load_config
from pipeline.stages.encode import Encode

_MODELS = ("random:2b", "random:8b")
_CACHES = ("TRITON_CACHE_DIR", "QUACK_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR")
_SECONDS = ("imports", "weights", "warm_up", "first", "second")


def start_once(model: str, settings: Sequence[str], grid: str, cache: Path) -> dict[str, Any]:
    """Start an encode stage in a new process whose kernels are kept in `cache`; seconds by phase.

    Raises: CalledProcessError when it does not start.
    """
    before = num_kernels(cache)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", "--model", model, "--grid", grid]
        + ["--inside-since", str(time.monotonic())]
        + [text for setting in settings for text in ("--set", setting)],
        env={**os.environ, **{name: str(cache / name) for name in _CACHES}},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"model": model, "kernels": num_kernels(cache) - before, **seconds}


def num_kernels(cache: Path) -> int:
    """Compiled kernels in a folder: Triton's, and those of the CuTe compiler."""
    return sum(1 for pattern in ("*.cubin", "*.o") for _ in cache.rglob(pattern))


class TimedEncode(Encode):
    """The stage, with the seconds of its warm-up."""

    warm_up_seconds = 0.0

    def _warm_up(self, device: torch.device) -> None:
        torch.cuda.synchronize()
        started = time.perf_counter()
        super()._warm_up(device)
        self.warm_up_seconds = time.perf_counter() - started


def start_here(model: str, settings: Sequence[str], grid: str, since: float) -> dict[str, float]:
    """Start an encode stage in this process, which began at `since` (`time.monotonic`); seconds by phase."""
    imports = time.monotonic() - since
    started = time.perf_counter()
    stage = TimedEncode(load_config(None, settings, model), model)
    ready = time.perf_counter()
    table = random_request(parse_grid(grid))
    requests = []
    for _ in range(2):
        sent = time.perf_counter()
        stage(table)
        requests.append(time.perf_counter() - sent)
    return {
        "imports": imports,
        "weights": ready - started - stage.warm_up_seconds,
        "warm_up": stage.warm_up_seconds,
        "first": requests[0],
        "second": requests[1],
    }


def main() -> None:
    """Start every model twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--grid", default="64x28x28", help="TxHxW in patches")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    parser.add_argument("--inside-since", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    models = arguments.model or _MODELS
    if arguments.inside_since is not None:
        seconds = start_here(models[0], arguments.settings, arguments.grid, arguments.inside_since)
        sys.stdout.write(json.dumps(seconds) + "\n")
        return
    results = []
    for model in models:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "filled"):
                started = start_once(model, arguments.settings, arguments.grid, Path(cache))
                results.append({"cache": state, **started})
    print_table(
        ["model", "cache", "kernels", *(f"{name.replace('_', '-')}, s" for name in _SECONDS)],
        [
            [result["model"], result["cache"], result["kernels"], *(f"{result[name]:.2f}" for name in _SECONDS)]
            for result in results
        ],
    )
    print_record("startup", {name: value for name, value in vars(arguments).items() if name != "inside_since"}, results)


if __name__ == "__main__":
    main()
