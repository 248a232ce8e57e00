"""How much faster is a run with the GPU's own decoders, what does it cost the encoder, and what does it change?

    python -m benchmarks.nvdec VIDEO... --copies 120 --set sizes.max_tokens_per_frame=196

The same videos through one Ray with `decode.gpu` never and auto: video-hours a day, from the first tenth of the video
that is done to the last second of it, so that starting actors and loading weights is left out (`seconds` has it in).
Beside the encoder: a request's time, two calls at once as in an actor, alone and while the decoders decode all they
can. The difference: bytes of patch rows and values of vectors, of the same clips by both. Each video is copied under
new bytes (an empty box at its end), because equal files are encoded once. On a CPU `auto` changes nothing.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch

from benchmarks.measure import print_record, print_table
from benchmarks.plans import plan_clips
from benchmarks.recipe import copies_of
from pipeline import embed
from pipeline.config import Config, load_config, override_config
from pipeline.device.nvdec.process import NvdecProcess
from pipeline.device.row_queue import RowQueue
from pipeline.device.transfer import make_transfer
from pipeline.flow.progress import Progress, QuietDisplay
from pipeline.flow.run import RunnerName, make_runner
from pipeline.plan.schema import RequestPlan
from pipeline.request.build import build_request
from pipeline.request.table import unwrap_request
from pipeline.stages.decode import make_sandbox
from pipeline.stages.device_decode import DeviceDecode
from pipeline.stages.encode import Encode, encode_device

_HOURS_PER_DAY = 24.0
_WARM_SHARE = 0.1
_MOST_COMPARED = 8


class Recorder(QuietDisplay):
    """Notes how much video was done when."""

    def __init__(self) -> None:
        self.done: list[tuple[float, float]] = []

    def update(self, progress: Progress) -> None:
        """Note the totals after a request."""
        self.done.append((time.perf_counter(), progress.video_seconds))

    def steady_rate(self) -> float:
        """Video seconds a second, without the first tenth."""
        total = self.done[-1][1]
        start = next(entry for entry in self.done if entry[1] >= _WARM_SHARE * total)
        seconds = self.done[-1][0] - start[0]
        return (total - start[1]) / seconds if seconds else 0.0


def run_once(paths: Sequence[str], setting: str, config: Config, out: str, runner: RunnerName) -> dict[str, Any]:
    """One run with a setting of its own, and who decoded its videos."""
    ours = override_config(config, [setting])
    recorder = Recorder()
    summary = embed(paths, out, config=ours, runner=runner, display=recorder)
    table = ds.dataset(Path(out) / "embeddings", format="parquet").to_table(["source_uri", "decoder"])
    assert summary.num_errors == 0, "videos were lost"
    rate = recorder.steady_rate()
    return {
        "setting": setting,
        "videos": len(paths),
        "seconds": summary.elapsed_seconds,
        "video_seconds": summary.video_seconds,
        "video_seconds_a_second": rate,
        "video_hours_a_day": rate * _HOURS_PER_DAY,
        "bottleneck": summary.bottleneck,
        "decoders": dict(Counter(table["decoder"].to_pylist())),
    }


def compare_runs(
    paths: Sequence[str], key: str, config: Config, folder: str, runner: RunnerName, turns: int = 1
) -> list[dict[str, Any]]:
    """Runs through one Ray with a setting `never` and `auto`, in turns, into FOLDER/never-0, FOLDER/auto-0, ..."""
    with make_runner(runner, config):
        return [
            run_once(paths, f"{key}={choice}", config, f"{folder}/{choice}-{turn}", runner)
            for turn in range(turns)
            for choice in ("never", "auto")
        ]


def print_runs(runs: Sequence[dict[str, Any]]) -> None:
    """What `compare_runs` found; `times` is over the run without, of the same turn."""
    without = [runs[number // 2 * 2]["video_hours_a_day"] for number in range(len(runs))]
    print_table(
        ["setting", "videos", "seconds", "video-hours a day", "times", "limited by", "decoded by"],
        [
            [
                run["setting"],
                run["videos"],
                f"{run['seconds']:.1f}",
                f"{run['video_hours_a_day']:.0f}",
                f"{run['video_hours_a_day'] / max(base, 1e-9):.2f}",
                run["bottleneck"],
                ", ".join(f"{name} {count}" for name, count in sorted(run["decoders"].items())),
            ]
            for run, base in zip(runs, without, strict=True)
        ],
    )


def vector_difference(left: str, right: str) -> dict[str, Any]:
    """The vectors of two outputs with the same clips."""
    tables = [ds.dataset(Path(out) / "embeddings", format="parquet").to_table() for out in (left, right)]
    keys = [("source_uri", "ascending"), ("clip_index", "ascending"), ("position", "ascending")]
    here, there = (_matrix(table.sort_by(keys)) for table in tables)
    cosines = (here * there).sum(1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)
    changed = (here != there).any(axis=1)
    return {
        "vectors": len(here),
        "changed": int(changed.sum()),
        "largest_difference": float(np.abs(here - there).max()),
        "least_cosine": float(cosines.min()),
    }


def _matrix(table: pa.Table) -> np.ndarray:
    values = table["embedding"].combine_chunks().flatten().to_numpy()
    return values.reshape(table.num_rows, -1).astype(np.float64)


class Decoders:
    """The GPU's decoders and the CPU's, on the requests of a plan."""

    def __init__(self, plans: Sequence[RequestPlan], config: Config, device: torch.device) -> None:
        self._plans = plans
        decoders = NvdecProcess(device, config.decode.gpu_decoders, config.decode, config.limits)
        self._decode = DeviceDecode(config, device, decoders, make_transfer(device, num_slots=2), RowQueue(device))
        self._config = config
        self._stopped = False
        self._video_seconds = 0.0
        self._lock = threading.Lock()

    def byte_difference(self) -> dict[str, Any]:
        """Patch rows of the first requests, by both."""
        levels = []
        with make_sandbox(self._config, None) as sandbox:
            for plan in self._plans[:_MOST_COMPARED]:
                request = unwrap_request(build_request(plan, sandbox))
                found = self._decode(plan)
                assert set(found.meta.decoders) == {"nvdec"}, "these videos are not for the device"
                rows = request.buffer[request.meta.layout.rows_start :].reshape(found.rows.shape)
                levels.append(np.abs(found.rows.cpu().numpy().astype(np.int16) - rows))
        values = np.concatenate(levels)
        return {
            "bytes": values.size,
            "largest_levels": int(values.max()),
            "mean_levels": float(values.mean()),
            "share_differing": float((values > 0).mean()),
        }

    def beside(self, work: Callable[[], float]) -> tuple[float, float]:
        """Do work while all decoders are busy: its result, and the video seconds a second that they decode."""
        threads = [
            threading.Thread(target=self._decode_on, args=(number,))
            for number in range(self._config.decode.gpu_decoders)
        ]
        for thread in threads:
            thread.start()
        time.sleep(2.0)  # until every decoder has begun
        started, before = time.perf_counter(), self._video_seconds
        result = work()
        rate = (self._video_seconds - before) / (time.perf_counter() - started)
        self._stopped = True
        for thread in threads:
            thread.join()
        return result, rate

    def close(self) -> None:
        """End both decoder processes."""
        self._decode.close()

    def _decode_on(self, number: int) -> None:
        while not self._stopped:
            plan = self._plans[number % len(self._plans)]
            self._decode(plan)
            number += 1
            with self._lock:
                self._video_seconds += sum(clip.video_seconds for clip in plan.clips)


def encode_seconds(encode: Encode, table: pa.Table, repeats: int) -> float:
    """Seconds a request with two calls at once, as an encode actor makes them."""

    def call() -> None:
        for _ in range(repeats):
            encode(table)

    threads = [threading.Thread(target=call) for _ in range(2)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - started) / (2 * repeats)


def beside_the_encoder(plans: Sequence[RequestPlan], config: Config, repeats: int) -> dict[str, Any]:
    """A request's time alone and beside busy decoders, and whether the decoders' bytes are the CPU's."""
    device = encode_device(config)
    encode = Encode(override_config(config, ["decode.gpu=never"]), config.model or "random:2b")
    with make_sandbox(config, None) as sandbox:
        table = build_request(plans[0], sandbox)
    decoders = Decoders(plans, config, device)
    difference = decoders.byte_difference()
    encode_seconds(encode, table, 5)
    alone = encode_seconds(encode, table, repeats)
    beside, rate = decoders.beside(lambda: encode_seconds(encode, table, repeats))
    again = encode_seconds(encode, table, repeats)
    decoders.close()
    return {
        "encode_seconds_alone": (alone + again) / 2,
        "encode_seconds_beside": beside,
        "slower": beside / ((alone + again) / 2) - 1,
        "video_seconds_a_second": rate,
        **difference,
    }


def requests_of(paths: Sequence[str], config: Config) -> list[RequestPlan]:
    """The videos' clips, a request each."""
    return [RequestPlan.of([clip]) for clip in plan_clips(paths, config)]


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="MP4 or MOV, H.264 or HEVC")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20, help="requests of each of two calls, beside the encoder")
    parser.add_argument("--runner", default="ray", choices=["ray", "local"])
    parser.add_argument("--model", default="random:2b")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    config = load_config(None, arguments.settings, arguments.model)
    results: dict[str, Any] = {}
    if encode_device(config).type == "cuda":
        results["beside"] = beside_the_encoder(requests_of(arguments.videos, config), config, arguments.repeats)
        print_values("beside the encoder", results["beside"])
    with tempfile.TemporaryDirectory() as folder:
        paths = copies_of(arguments.videos, arguments.copies, Path(folder))
        runs = compare_runs(paths, "decode.gpu", config, folder, arguments.runner)
        results["vectors"] = vector_difference(f"{folder}/never-0", f"{folder}/auto-0")
    print_values("vectors", results["vectors"])
    print_runs(runs)
    print_record("nvdec", vars(arguments), [{**results, "runs": runs}])


def print_values(name: str, values: dict[str, Any]) -> None:
    """A table of what was measured, at once: the runs take minutes."""
    print_table([name, ""], [[key, value] for key, value in values.items()])
    sys.stdout.flush()


if __name__ == "__main__":
    main()
