"""Timing, the machine, and the last JSON line: what all benchmarks share."""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.sink.run_record import installed_versions

# What is compared with, and what compiles for it.
_PEERS = ("transformers", "triton", "torchcodec", "torchvision", "opencv-python-headless", "qwen-vl-utils")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall seconds of repeated calls: the median, and the quarter points around it."""

    median_seconds: float
    low_seconds: float
    high_seconds: float
    repeats: int

    def __str__(self) -> str:
        spread = (self.high_seconds - self.low_seconds) / 2
        return f"{self.median_seconds * 1e3:.2f} ± {spread * 1e3:.2f} ms"


def measure(call: Callable[[], object], *, warmup: int = 3, repeats: int = 20, device: str = "cpu") -> Timing:
    """Time a call whose result is complete when the device is idle."""
    for _ in range(warmup):
        call()
    synchronize(device)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return _timing(seconds)


def _timing(seconds: Sequence[float]) -> Timing:
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    return Timing(median_seconds=statistics.median(seconds), low_seconds=low, high_seconds=high, repeats=len(seconds))


def measure_in_turns(
    calls: Sequence[Callable[[], object]], *, warmup: int = 3, repeats: int = 20, device: str = "cpu"
) -> list[Timing]:
    """`measure` of several calls that take turns, so that a warm card or a busy machine slows them alike."""
    timed: list[list[float]] = [[] for _ in calls]
    for turn in range(warmup + repeats):
        for call, seconds in zip(calls, timed, strict=True):
            found = measure(call, warmup=0, repeats=1, device=device)
            if turn >= warmup:
                seconds.append(found.median_seconds)
    return [_timing(seconds) for seconds in timed]


def synchronize(device: str) -> None:
    """Wait until a CUDA device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, size: int) -> float:
    """Measured FLOP/s of a square bf16 product: the roof that shares are given of."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    timing = measure(lambda: left @ right, device=device)
    return 2 * size**3 / timing.median_seconds


def matmul_burst(device: str, size: int, seconds: float) -> tuple[Callable[[], None], int]:
    """A call that multiplies as `matmul_rate` does, over and over for some `seconds`, and its operations."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    times = max(1, round(seconds / measure(lambda: torch.mm(left, right, out=product), device=device).median_seconds))

    def burst() -> None:
        for _ in range(times):
            torch.mm(left, right, out=product)

    return burst, times * 2 * size**3


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, as it goes into the README."""
    lines = [head, ["---"] * len(head), *rows]
    sys.stdout.writelines("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def print_record(name: str, config: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """The last line: everything a reader needs to repeat or to doubt the table."""
    record = {
        "benchmark": name,
        "hardware": hardware(),
        "versions": installed_versions() | {name: _version(name) for name in _PEERS},
        "commit": commit(),
        "config": config,
        "results": list(results),
    }
    sys.stdout.write(json.dumps(record) + "\n")


def hardware() -> dict[str, Any]:
    """What this ran on."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": torch.multiprocessing.cpu_count(),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    """The CPU's model as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The checked-out commit, or `unknown` outside a checkout."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def as_values(timing: Timing) -> dict[str, float | int]:
    """A timing for the JSON line."""
    return asdict(timing)
