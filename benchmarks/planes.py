"""How much faster is a run whose clips travel as planes, what does it cost the encoder, and what does it change?

    python -m benchmarks.planes VIDEO... --copies 120

The same videos through one Ray with `decode.planes` never and auto, as `benchmarks.nvdec` compares the GPU's decoders:
video-hours a day without the first tenth, and the vectors of both. On a GPU also each video's clip as one request: its
encode stage's time as rows and as planes, two calls at once as in an actor, the two forms in turns; and the time of
making its rows by themselves.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.measure import measure, print_record
from benchmarks.nvdec import (
    compare_runs,
    encode_seconds,
    print_runs,
    print_values,
    requests_of,
    vector_difference,
)
from benchmarks.recipe import copies_of
from pipeline.config import Config, load_config
from pipeline.device.row_queue import RowQueue
from pipeline.device.transfer import make_transfer
from pipeline.plan.schema import RequestPlan
from pipeline.request.build import build_request
from pipeline.request.table import unwrap_request
from pipeline.stages.decode import make_sandbox
from pipeline.stages.encode import Encode, encode_device

_FORMS = (False, True)


def encode_both_ways(
    plans: Sequence[RequestPlan], config: Config, device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """For each request its time in the encode stage, as rows and as planes, and the time of making the rows."""
    encode = Encode(config, config.model or "random:2b", takes_planes=True)
    queue, transfer = RowQueue(device), make_transfer(device, num_slots=2)
    found = []
    with make_sandbox(config, None) as sandbox:
        for plan in plans:
            tables = [build_request(plan, sandbox, with_planes=is_planar) for is_planar in _FORMS]
            for table in tables:
                encode_seconds(encode, table, 3)
            rounds = [[encode_seconds(encode, table, repeats) for table in tables] for _ in range(5)]
            rows, planes = (statistics.median(of_form) for of_form in zip(*rounds, strict=True))
            found.append(
                {
                    "patches": plan.num_patches,
                    "size": f"{plan.clips[0].width}x{plan.clips[0].height}",
                    "megabytes_as_rows": tables[0]["buffer"].nbytes / 1e6,
                    "megabytes_as_planes": tables[1]["buffer"].nbytes / 1e6,
                    "encode_seconds_as_rows": rows,
                    "encode_seconds_as_planes": planes,
                    "slower": planes / rows - 1,
                    "making_rows": str(_making(tables[1], queue, transfer, device)),
                    "same_vectors": encode(tables[0])["vectors"] == encode(tables[1])["vectors"],
                }
            )
    encode.close()
    return found


def _making(table: pa.Table, queue: RowQueue, transfer: Any, device: torch.device) -> Any:
    request = unwrap_request(table)
    arrived = transfer(request)
    arrived.join()
    layout = request.meta.layout
    return measure(lambda: queue.of_request(arrived, layout), repeats=20, device=device.type)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="MP4 or MOV")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=10, help="requests of each of two calls, a round")
    parser.add_argument("--turns", type=int, default=2, help="runs of each setting, in turns")
    parser.add_argument("--runner", default="ray", choices=["ray", "local"])
    parser.add_argument("--model", default="random:2b")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    config = load_config(None, arguments.settings, arguments.model)
    device = encode_device(config)
    results: dict[str, Any] = {"encode": []}
    if device.type == "cuda":
        results["encode"] = encode_both_ways(requests_of(arguments.videos, config), config, device, arguments.repeats)
        for found in results["encode"]:
            print_values("a request", found)
    with tempfile.TemporaryDirectory() as folder:
        paths = copies_of(arguments.videos, arguments.copies, Path(folder))
        runs = compare_runs(paths, "decode.planes", config, folder, arguments.runner, arguments.turns)
        results["vectors"] = vector_difference(f"{folder}/never-0", f"{folder}/auto-0")
    print_values("vectors", results["vectors"])
    print_runs(runs)
    print_record("planes", vars(arguments), [{**results, "runs": runs}])


if __name__ == "__main__":
    main()
