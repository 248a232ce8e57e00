"""What does it cost to bring a request to the device?

    python -m benchmarks.transfer --grid 64x28x28 [--ray]

Compares, for one request of uint8 patch rows: out of a registered mapping that stands in for Ray's object store, as
encode actors do by default, the pinned ring that serves elsewhere, a pageable copy, a copy from memory that is pinned
already (the ceiling), and the float32 patches that transformers ships, pageable. `blocked` is
how long the call keeps its thread; `arrived` is until the bytes are on the device. With `--ray` the stand-in is Ray's
own object store: the request is put into it, and read where `ray.get` finds it. On a CPU the stage makes no copy.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import ray
import torch

from benchmarks.measure import measure, print_record, print_table, synchronize
from benchmarks.requests import make_store, parse_grid, random_request
from pipeline.config import Config
from pipeline.device.transfer import Transfer, host_tensor, make_transfer
from pipeline.encoder.counts import Grid
from pipeline.request.table import unwrap_request
from pipeline.stages.encode import NUM_SLOTS, encode_device


def blocked_seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median seconds until the call returns, started on an idle device."""
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]


def ways(
    grid: Grid, device: torch.device, stored: Callable[[Grid], pa.Table] | None, transfer: Transfer
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Each way by name, with the bytes it moves."""
    request = unwrap_request(random_request(grid))
    pageable = host_tensor(request)
    found: dict[str, tuple[int, Callable[[], object]]] = {
        f"uint8, {transfer(request).way}": (request.buffer.size, lambda: transfer(request)),
    }
    if stored is not None:
        in_store = unwrap_request(stored(grid))
        found[f"uint8, {transfer(in_store).way}"] = (in_store.buffer.size, lambda: transfer(in_store))
    if device.type == "cuda":
        pinned = pageable.pin_memory()
        floats = (pageable[request.meta.layout.rows_start :].float() - 127.5) / 127.5
        found["uint8, pageable"] = (request.buffer.size, lambda: pageable.to(device))
        found["uint8, already pinned"] = (request.buffer.size, lambda: pinned.to(device, non_blocking=True))
        found["float32, pageable (transformers)"] = (floats.numel() * 4, lambda: floats.to(device))
    return found


def in_stand_in(grids: Sequence[Grid], device: torch.device) -> Callable[[Grid], pa.Table] | None:
    """Requests in a mapping that looks like Ray's store; None on a CPU."""
    store = make_store([[grid] for grid in grids], device)
    return None if store is None else store.request


def in_ray() -> Callable[[Grid], pa.Table]:
    """Requests in the object store of a Ray that is started here."""
    ray.init(num_cpus=1, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
    return lambda grid: ray.get(ray.put(random_request(grid)))


def main() -> None:
    """Measure each way for each request size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="append", help="TxHxW in patches")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--ray", action="store_true", help="start a Ray, and use its object store")
    arguments = parser.parse_args()
    device = encode_device(Config())
    results: list[dict[str, Any]] = []
    grids = [parse_grid(grid) for grid in arguments.grid or ["64x28x28"]]
    stored = in_ray() if arguments.ray else in_stand_in(grids, device)
    transfer = make_transfer(device, NUM_SLOTS, register_store=True)
    for grid in grids:
        for name, (num_bytes, call) in ways(grid, device, stored, transfer).items():
            arrived = measure(call, repeats=arguments.repeats, device=device.type)
            blocked = blocked_seconds(call, device.type, arguments.repeats)
            results.append(
                {
                    "grid": "x".join(map(str, grid)),
                    "way": name,
                    "num_bytes": num_bytes,
                    "blocked_seconds": blocked,
                    "arrived_seconds": arrived.median_seconds,
                    "bytes_per_second": num_bytes / arrived.median_seconds,
                }
            )
    print_table(
        ["request", "way", "MB", "blocked", "arrived", "GB/s"],
        [
            [
                result["grid"],
                result["way"],
                f"{result['num_bytes'] / 1e6:.0f}",
                f"{result['blocked_seconds'] * 1e3:.2f} ms",
                f"{result['arrived_seconds'] * 1e3:.2f} ms",
                f"{result['bytes_per_second'] / 1e9:.1f}",
            ]
            for result in results
        ],
    )
    print_record("transfer", vars(arguments), results)


if __name__ == "__main__":
    main()
