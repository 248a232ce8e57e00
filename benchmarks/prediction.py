"""How far is what `patchwire plan` predicts from what a run then takes?

    python -m benchmarks.prediction SRC... --workers 1 2 --set clips.mode=stride

The sources are planned and predicted, then embedded once for each number of decode workers, each run in a process of
its own. `own rates` predicts a run with the rates that the first run left, as `plan --rates` does. Decoding is also
held against CPU seconds, from a serial pass over all clips: the clock counts whatever else the machine is doing, and
CPU time does not. `load` is the machine's load average at a run's end.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.growth import in_fresh_process
from benchmarks.measure import print_record, print_table
from pipeline.checkpoint import VisionSpec
from pipeline.config import Config, load_config, override_config
from pipeline.flow.forecast import machine, rates_for
from pipeline.flow.local import LocalRunner
from pipeline.flow.run import RunnerName, embed, plan_only
from pipeline.media.sandbox import SharedBuffer
from pipeline.plan.prediction import decode_core_seconds, predict
from pipeline.plan.summary import summarize
from pipeline.plan.work import Work
from pipeline.request.build import clip_job
from pipeline.request.layout import RequestLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A corpus as work for a tower, and the CPU seconds that the decoder process spends on all of it."""

    work: Work
    vision: VisionSpec
    cpu_seconds: float


def survey(sources: list[str], config: Config, *, with_decoding: bool) -> Survey:
    """Plan a corpus and, if that is wanted, decode every clip of it once, one after the other."""
    with LocalRunner(config) as runner:
        made, checkpoint = plan_only(sources, config, runner)
        plans = list(made)
        seconds = 0.0
        requests = [request for plan in plans for request in plan.requests] if with_decoding else []
        for clip in (clip for request in requests for clip in request.clips):
            layout = RequestLayout.of(clip.media_type, [clip.grid_thw])
            report = runner.sandbox.decode(
                clip_job(clip, clip.sources[0]), SharedBuffer(layout.num_bytes), layout.rows_start
            )
            seconds += report.decode_seconds
    vision = checkpoint.vision
    work = summarize(plans, vision, keyframes_only=config.frames.keyframes_only).work
    return Survey(work=work, vision=vision, cpu_seconds=seconds)


def run_once(sources: list[str], out: str, config: Config, runner: RunnerName) -> dict[str, Any]:
    """Embed into an output; called in a fresh process."""
    summary = embed(sources, out, config=config, runner=runner)
    return {
        "clips": summary.num_clips,
        "errors": summary.num_errors,
        "seconds": summary.elapsed_seconds,
        "limited_by": summary.bottleneck,
    }


def compare(found: Survey, config: Config, measured: dict[str, Any], first: str, num_gpus: int) -> dict[str, Any]:
    """One run beside what is predicted for it, with the defaults and with the first run's rates."""
    cluster = machine(config, num_gpus=num_gpus)
    default = rates_for(found.vision)
    predicted = predict(found.work, cluster, default)
    return {
        "workers": config.ray.decode_workers,
        **measured,
        "predicted_seconds": predicted.seconds,
        "predicted_limit": predicted.bottleneck,
        "own_rates_seconds": predict(found.work, cluster, rates_for(found.vision, first)).seconds,
        "decode_cpu_seconds": found.cpu_seconds,
        "predicted_decode_cpu_seconds": decode_core_seconds(found.work, default),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Predict, run, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="decode workers")
    parser.add_argument("--runner", choices=("ray", "local"), default="ray", help="predictions are for ray")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs here; without any, the CPU encodes")
    parser.add_argument("--no-decode-cpu", action="store_true", help="leave the serial pass over all clips out")
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--config", help="a YAML file, or the name of a preset")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    arguments = parser.parse_args()
    device = "cuda" if arguments.gpus else "cpu"
    config = load_config(arguments.config, [f"encode.device={device}", *arguments.settings], arguments.model)
    found = survey(arguments.sources, config, with_decoding=not arguments.no_decode_cpu)
    results = []
    with tempfile.TemporaryDirectory() as place:
        first = str(Path(place) / "0")
        for number, workers in enumerate(arguments.workers):
            used = override_config(config, [f"ray.decode_workers={workers}"])
            measured = in_fresh_process(
                run_once, arguments.sources, str(Path(place) / str(number)), used, arguments.runner
            )
            results.append(compare(found, used, measured, first, arguments.gpus))
    print_table(
        [name.replace("_", " ") for name in results[0]],
        [[f"{value:.1f}" if isinstance(value, float) else value for value in row.values()] for row in results],
    )
    print_record("prediction", vars(arguments), results)


if __name__ == "__main__":
    main()
