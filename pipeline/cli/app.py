"""The `patchwire` command and its subcommands.

Exit codes: 0 all embedded; 3 finished with error rows; 1 failed; 2 wrong usage.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.cli import render
from pipeline.cli.stopping import end_at_once, stoppable, was_stopped
from pipeline.config import Config, load_config
from pipeline.errors import MediaError, PatchwireError, UsageError
from pipeline.flow import run
from pipeline.flow.progress import Display, make_display
from pipeline.flow.summary import RunSummary
from pipeline.plan.planner import Plan
from pipeline.plan.schema import Failure

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Embed large corpora of video and images with the Qwen3-VL vision encoder, on Ray.",
)


class RunnerChoice(StrEnum):
    """Who calls the stages."""

    RAY = "ray"
    LOCAL = "local"


Sources = Annotated[list[str], typer.Argument(help="Files, folders, globs, manifests or URLs.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Checkpoint folder, hub id, or random:tiny|2b|8b.")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="A YAML file, or the name of a preset.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")]
Runner = Annotated[RunnerChoice, typer.Option(help="ray, or local: serial and without Ray.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; else a local Ray is started.")]
Output = Annotated[str, typer.Argument(help="The output folder of a run.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command; every error of ours is one message and an exit code, never a traceback."""
    try:
        app()
    except MediaError as error:
        sys.exit(_fail(f"{error}\n{error.code.advice.action}", error.exit_code))
    except PatchwireError as error:
        code = _fail(str(error), error.exit_code)
        if was_stopped(error):
            end_at_once(code)
        sys.exit(code)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"patchwire: {message}\n")
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"patchwire {metadata.version('patchwire')}\n")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _config(config: str | None, settings: list[str] | None, model: str | None = None) -> Config:
    return load_config(config, settings or (), model)


def _run(start: Callable[[Display], RunSummary], show: Callable[[RunSummary], None]) -> NoReturn:
    """Make a run that a signal stops in order; show its last lines, and exit as it ended."""
    with stoppable():
        summary = start(make_display())
    show(summary)
    raise typer.Exit(summary.exit_code)


@app.command()
def embed(
    sources: Sources,
    out: Annotated[str, typer.Option(help="The output folder; what it already holds is not done again.")],
    model: Model = None,
    config: ConfigFile = None,
    settings: Settings = None,
    runner: Runner = RunnerChoice.RAY,
    address: Address = None,
) -> None:
    """Embed media into Parquet tables."""
    _run(
        lambda display: run.embed(
            sources,
            out,
            model=model,
            config=None if config is None else load_config(config),
            overrides=settings or (),
            runner=runner.value,
            address=address,
            display=display,
        ),
        render.summary,
    )


@app.command()
def prepare(
    sources: Sources,
    out: Annotated[str, typer.Option(help="The folder of requests; what it already holds is not done again.")],
    model: Model = None,
    config: ConfigFile = None,
    settings: Settings = None,
    runner: Runner = RunnerChoice.RAY,
    address: Address = None,
) -> None:
    """Decode media into requests that `patchwire embed OUT --out ...` encodes later, elsewhere."""
    _run(
        lambda display: run.prepare(
            sources,
            out,
            config=_config(config, settings, model),
            runner=runner.value,
            address=address,
            display=display,
        ),
        render.prepared,
    )


@app.command()
def retry(
    out: Output,
    settings: Settings = None,
    lift_quarantine: Annotated[
        bool, typer.Option("--lift-quarantine", help="Try media again that ended their decoder twice.")
    ] = False,
    runner: Runner = RunnerChoice.RAY,
    address: Address = None,
) -> None:
    """Do only what failed again, with the run's own settings and those that --set changes."""
    _run(
        lambda display: run.retry(
            out,
            overrides=settings or (),
            lift_quarantine=lift_quarantine,
            runner=runner.value,
            address=address,
            display=display,
        ),
        render.summary,
    )


@app.command()
def plan(
    sources: Sources,
    model: Model = None,
    config: ConfigFile = None,
    settings: Settings = None,
    runner: Runner = RunnerChoice.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores to predict for; else this machine's.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs to predict for; else this machine's.")] = None,
    rates: Annotated[str | None, typer.Option(help="Predict at the speed of this output's last run.")] = None,
    core_price: Annotated[float, typer.Option(min=0.0, help="What a core costs an hour.")] = 0.0,
    gpu_price: Annotated[float, typer.Option(min=0.0, help="What a GPU costs an hour.")] = 0.0,
) -> None:
    """Say what a run would do, cost and take, from headers alone."""
    from pipeline.flow.forecast import device_memory_bytes, machine, rates_for
    from pipeline.flow.run import make_runner, plan_only
    from pipeline.plan.prediction import predict
    from pipeline.plan.summary import summarize

    wanted = _config(config, settings, model)
    failures: list[Failure] = []

    def noting(shards: Iterator[Plan]) -> Iterator[Plan]:
        for shard in shards:
            failures.extend(shard.failures)
            yield shard

    with make_runner(runner.value, wanted, address) as working:
        shards, checkpoint = plan_only(sources, wanted, working)
        cluster, speed = machine(wanted, cores, gpus), rates_for(checkpoint.vision, rates)
        found = summarize(noting(shards), checkpoint.vision, keyframes_only=wanted.frames.keyframes_only)
    prediction = predict(found.work, cluster, speed)
    cost = prediction.cost(core_price, gpu_price) if core_price or gpu_price else None
    device_memory = device_memory_bytes(found, checkpoint.vision, wanted)
    if as_json:
        predicted = {**dataclasses.asdict(prediction), "cost": cost, "device_memory_bytes": device_memory}
        _print_json({**dataclasses.asdict(found), "prediction": predicted})
    else:
        render.plan(found, failures, device_memory)
        render.prediction(prediction, cluster, speed.origin, cost)


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A video or an image.", show_default=False)],
    npz: Annotated[Path | None, typer.Option(help="Write patch_rows_<i> and grid_thw here.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a contact sheet here.")] = None,
    model: Model = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Show what the encoder would see: JSON lines, one a clip."""
    import numpy as np

    from pipeline.flow.inspect import contact_sheet, inspect_media

    wanted = [path for path in (npz, png) if path is not None]
    for path in wanted:
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist")
    clips = []
    for clip in inspect_media(file, _config(config, settings, model)):
        _print_json(clip.to_json())
        if wanted:
            clips.append(clip)
    if wanted and not clips:
        raise UsageError(f"{file}: no media in it, nothing to write")
    if npz is not None:
        rows = {f"patch_rows_{place}": clip.patch_rows for place, clip in enumerate(clips)}
        grids = np.array([clip.clip.grid_thw for clip in clips], dtype=np.int64)
        np.savez(npz, grid_thw=grids, **rows)  # type: ignore[arg-type]
    if png is not None:
        contact_sheet(clips).save(png, format="PNG")


@app.command()
def errors(out: Output, as_json: AsJson = False) -> None:
    """Group a run's error rows, with what each means and what to do."""
    from pipeline.sink.errors_report import group_errors
    from pipeline.sink.output import OutputFolder
    from pipeline.sink.run_record import require_run_record

    folder = OutputFolder(out)
    require_run_record(folder, None)
    groups = group_errors(folder)
    if as_json:
        _print_json([dataclasses.asdict(group) for group in groups])
    else:
        render.error_groups(groups, out)


@app.command()
def verify(out: Output, as_json: AsJson = False) -> None:
    """Close the books from the files alone: plan = rows + errors."""
    from pipeline.sink.output import OutputFolder
    from pipeline.sink.verify import verify_output

    report = verify_output(OutputFolder(out))
    if as_json:
        _print_json({**dataclasses.asdict(report), "ok": report.ok})
    else:
        render.verify(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def compact(
    out: Output,
    lance: Annotated[bool, typer.Option("--lance", help="Into a Lance dataset, OUT/embeddings.lance.")] = False,
) -> None:
    """Copy the embeddings into a few large files below OUT/table, listed by its manifest."""
    from pipeline.sink.compact import compact_output
    from pipeline.sink.lance_commit import commit_lance
    from pipeline.sink.lease import Lease
    from pipeline.sink.output import OutputFolder
    from pipeline.sink.run_record import require_run_record

    folder = OutputFolder(out)
    require_run_record(folder)
    with stoppable(), Lease(folder) as lease:
        if lance:
            render.lance_table(commit_lance(folder, require_held=lease.check))
        else:
            render.manifest(compact_output(folder, require_held=lease.check), folder.uri)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: packages, decoders, Ray, CUDA, shared memory."""
    from pipeline.cli.checks import run_checks

    checks = run_checks()
    if as_json:
        _print_json([dataclasses.asdict(check) for check in checks])
    else:
        render.checks(checks)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
