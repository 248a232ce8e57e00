"""Does a run through Ray on this machine's best device give what a serial run on the CPU gives?

    python -m benchmarks.acceptance SRC... --model random:2b

Embeds the sources twice, compares the vectors clip by clip, and counts host-to-device copies against requests.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from benchmarks.measure import print_record, print_table
from pipeline import Config, RunSummary, embed
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output

Vectors = dict[tuple[str, int], np.ndarray]


def vectors_of(out: str) -> Vectors:
    """Every vector by clip and position."""
    columns = ["clip_id", "position", "embedding"]
    table = ds.dataset(f"{out}/embeddings", format="parquet").to_table(columns=columns)
    keys = zip(table["clip_id"].to_pylist(), table["position"].to_pylist(), strict=True)
    return dict(zip(keys, np.stack(table["embedding"].to_numpy()), strict=True))


def compare(reference: Vectors, found: Vectors) -> dict[str, float]:
    """Cosine distance and relative error over all clips, which must be the same ones."""
    assert reference.keys() == found.keys(), "the two runs embedded different clips"
    pairs = [(reference[key].astype(np.float64), found[key].astype(np.float64)) for key in reference]
    cosines = [1 - left @ right / np.linalg.norm(left) / np.linalg.norm(right) for left, right in pairs]
    errors = [np.linalg.norm(left - right) / np.linalg.norm(left) for left, right in pairs]
    return {
        "vectors": len(pairs),
        "worst_cosine_distance": float(max(cosines)),
        "mean_relative_error": float(np.mean(errors)),
        "worst_relative_error": float(max(errors)),
    }


def values_of(name: str, summary: RunSummary, out: str) -> dict[str, Any]:
    """What one run did."""
    return {
        "run": name,
        "requests": summary.num_requests,
        "device_copies": summary.num_device_copies,
        "clips": summary.num_clips,
        "errors": summary.num_errors,
        "frames": summary.num_frames,
        "patches": summary.num_patches,
        "elapsed_seconds": summary.elapsed_seconds,
        "bottleneck": summary.bottleneck,
        "verified": verify_output(OutputFolder(out)).ok,
    }


def main() -> None:
    """Run both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--model", default="random:tiny")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outs = {name: str(Path(folder) / name) for name in ("local-cpu", "ray-auto")}
        config = Config.from_values({"model": arguments.model})
        on_cpu = Config.from_values({"model": arguments.model, "encode": {"device": "cpu"}})
        first = embed(arguments.sources, outs["local-cpu"], config=on_cpu, runner="local")
        second = embed(arguments.sources, outs["ray-auto"], config=config, runner="ray")
        runs = [
            values_of("serial, CPU, float32", first, outs["local-cpu"]),
            values_of("Ray, best device", second, outs["ray-auto"]),
        ]
        found = compare(vectors_of(outs["local-cpu"]), vectors_of(outs["ray-auto"]))
    print_table(list(runs[0]), [[_short(value) for value in run.values()] for run in runs])
    print_table(list(found), [[f"{value:.3g}" for value in found.values()]])
    print_record("acceptance", vars(arguments), [*runs, found])


def _short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
