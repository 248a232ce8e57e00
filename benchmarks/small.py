"""What do CUDA graphs save where the host takes longer to queue a pass than the device to run it?

    python -m benchmarks.small --model random:2b --model random:8b

Wall time from queueing a request that is on the device already until its pooled vectors are there, with graphs and
without, in turns. Both must give the same vectors to the bit.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.measure import as_values, measure, print_record, print_table
from benchmarks.requests import parse_grid
from pipeline.checkpoint import resolve_model
from pipeline.config import load_config
from pipeline.encoder.counts import Grid
from pipeline.encoder.encode import MAX_GRAPHS, Encoder
from pipeline.stages.encode import encode_device, encode_dtype

_MODELS = ("random:2b", "random:8b")
_GRIDS = ("1x16x16", "1x28x28", "4x28x28", "8x28x28", "16x28x28")


def run_model(model: str, settings: Sequence[str], grids: Sequence[Grid], repeats: int) -> list[dict[str, Any]]:
    """Every grid on one model, with graphs and without."""
    config = load_config(None, settings, model)
    device, checkpoint = encode_device(config), resolve_model(model)
    dtype, least_cosine = encode_dtype(config, device), config.encode.float8_least_cosine
    with_graphs, without = (
        Encoder(checkpoint, device=device, dtype=dtype, max_graphs=max_graphs, float8_least_cosine=least_cosine)
        for max_graphs in (MAX_GRAPHS, 0)
    )
    results = []
    for grid in grids:
        t, h, w = grid
        rows = torch.randint(0, 256, (t * h * w, with_graphs.row_bytes[1]), dtype=torch.uint8, device=device)
        timings = [
            measure(lambda: encoder.encode(rows, [grid], config.output), repeats=repeats, device=device.type)  # noqa: B023
            for encoder in (with_graphs, without, with_graphs, without)
        ]
        same = torch.equal(*(encoder.encode(rows, [grid], config.output).vectors for encoder in (with_graphs, without)))
        results.append(
            {
                "model": model,
                "grid": "x".join(map(str, grid)),
                "graph": as_values(min(timings[::2], key=lambda timing: timing.median_seconds)),
                "no_graph": as_values(min(timings[1::2], key=lambda timing: timing.median_seconds)),
                "same_vectors": same,
            }
        )
    return results


def main() -> None:
    """Measure every model on every grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--grid", action="append", help="TxHxW in patches")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    grids = [parse_grid(grid) for grid in arguments.grid or _GRIDS]
    results = [
        result
        for model in arguments.model or _MODELS
        for result in run_model(model, arguments.settings, grids, arguments.repeats)
    ]
    print_table(
        ["model", "request", "graph", "no graph", "same vectors"],
        [
            [
                result["model"],
                result["grid"],
                *(f"{result[way]['median_seconds'] * 1e3:.1f} ms" for way in ("graph", "no_graph")),
                "yes" if result["same_vectors"] else "NO",
            ]
            for result in results
        ],
    )
    print_record("small", vars(arguments), results)


if __name__ == "__main__":
    main()
