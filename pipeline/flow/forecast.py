"""Predictions for a person: the rates to predict with, the machine to predict for, and what a run leaves for the next.

A run writes its own rates into `run.json`, so that the next plan for the same machines and model predicts with them.
They are taken as the run was: with other processes on the machine, and with its start-up in them if it was short.
"""

import os

from pipeline.checkpoint import VisionSpec
from pipeline.config import Config
from pipeline.device.store_size import num_gpus_here
from pipeline.encoder.memory import request_bytes
from pipeline.errors import OutputError
from pipeline.flow.progress import Progress
from pipeline.media.container import MediaType
from pipeline.media.grid import row_bytes
from pipeline.plan.prediction import Cluster, decode_core_seconds
from pipeline.plan.rates import CORE_FLOPS, DECODE_PACE, GPU_FLOPS, Rates
from pipeline.plan.summary import PlanSummary
from pipeline.plan.work import Work
from pipeline.sink.output import OutputFolder
from pipeline.sink.run_record import require_run_record


def rates_for(vision: VisionSpec, measured_by: str | None = None) -> Rates:
    """The rates of a tower: the defaults, or those of an earlier run's output where it has them.

    Raises: OutputError where that output has no record, or its run did nothing.
    """
    rates = Rates.default(vision.head_dim, vision.hidden_size)
    if measured_by is None:
        return rates
    found = require_run_record(OutputFolder(measured_by)).rates
    if not found:
        raise OutputError(f"output {measured_by!r}: run.json holds no rates: its last run did nothing, or did not end")
    return rates.measured_by(found, measured_by)


def machine(config: Config, num_cores: int | None = None, num_gpus: int | None = None) -> Cluster:
    """What a run would have: what is named, or else this machine; GPUs are counted without touching them."""
    found_gpus = 0 if config.encode.device == "cpu" else num_gpus_here()
    return Cluster(
        num_cores=num_cores or config.ray.num_cpus or os.cpu_count() or 1,
        num_gpus=found_gpus if num_gpus is None else num_gpus,
        decode_workers=config.ray.decode_workers,
        gpus_decode=config.decode.gpu == "auto",
        gpus_make_rows=config.decode.sends_planes("cuda"),
        shard_sources=config.sources.shard_sources,
    )


def device_memory_bytes(found: PlanSummary, vision: VisionSpec, config: Config) -> int:
    """Device memory that the plan's hungriest request takes on CUDA beside the weights; 0 for an empty plan."""
    arithmetic = config.encode.arithmetic("cuda")
    return max(
        (
            request_bytes(
                vision,
                shape.most_patches,
                arithmetic,
                config.output,
                row_bytes=row_bytes(MediaType(shape.media_type)),
                max_patches=config.encode.max_patches,
                as_planes=config.decode.sends_planes("cuda") and shape.media_type == MediaType.VIDEO,
            )
            for shape in found.shapes
        ),
        default=0,
    )


def measured_rates(
    work: Work, progress: Progress, vision: VisionSpec, config: Config, *, is_prepared: bool = False
) -> dict[str, float]:
    """What a finished run measured, for `run.json`; a stage that did nothing has no rate.

    Args:
        work: the requests that were done.
        progress: their receipts' totals.
        vision: the tower's dimensions.
        config: the run's settings; without a GPU, `encode.threads` cores share an encoder's time.
        is_prepared: its requests had been decoded before, into rows.
    """
    found: dict[str, float] = {}
    on_gpu = progress.device_copies > 0
    with_planes = config.decode.sends_planes("cuda" if on_gpu else "cpu") and not is_prepared
    expected = decode_core_seconds(work, Rates.default(vision.head_dim, vision.hidden_size), with_planes=with_planes)
    if expected and progress.decode_seconds and config.decode.gpu == "never":  # else a GPU has done some of it
        found[DECODE_PACE] = progress.decode_seconds / expected
    if work.flops and progress.encode_seconds:
        cores = 1 if on_gpu else config.encode.threads or os.cpu_count() or 1
        found[GPU_FLOPS if on_gpu else CORE_FLOPS] = work.flops / progress.encode_seconds / cores
    return found
