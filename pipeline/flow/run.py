"""A run from its arguments to its summary: list, plan once, do what is missing, write down how it went."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipeline.checkpoint import Checkpoint, official_checkpoint, resolve_model
from pipeline.config import Config
from pipeline.digest import digest_values
from pipeline.errors import UsageError
from pipeline.flow.progress import Display, Progress, QuietDisplay
from pipeline.flow.runner import Job, Runner
from pipeline.plan.clips import Recipe
from pipeline.plan.planner import EMPTY_PLAN, Plan, make_plan, sources_of, sources_table
from pipeline.plan.schema import Failure, RequestPlan, failures_of, plan_table, requests_of
from pipeline.sink.atomic import remove_stale_temporaries
from pipeline.sink.embeddings import RowSettings
from pipeline.sink.fragments import count_rows, done_requests, read_table, write_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.run_record import (
    ModelIdentity,
    RunRecord,
    check_same_run,
    installed_versions,
    read_run_record,
    write_run_record,
)
from pipeline.sink.schema import errors_schema, errors_table
from pipeline.sources.listing import list_sources
from pipeline.stages.write import WriteTarget

RunnerName = Literal["ray", "local"]
PLAN_STEM = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """How a run ended. Clip counts include every path a clip lies under."""

    output: str
    num_sources: int
    num_clips: int
    num_clips_done_before: int
    num_errors: int
    num_new_rows: int
    num_device_copies: int
    num_requests: int
    num_frames: int
    num_patches: int
    video_seconds: float
    elapsed_seconds: float
    bottleneck: str
    random_weights: bool

    @property
    def exit_code(self) -> int:
        """0 when everything was embedded, 3 when there are error rows."""
        return 3 if self.num_errors else 0


def embed(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    config: Config | None = None,
    runner: RunnerName = "ray",
    address: str | None = None,
    display: Display | None = None,
) -> RunSummary:
    """Embed media into the Parquet tables of an output folder.

    Args:
        sources: files, folders, globs, manifests or fsspec URLs.
        out: the output folder, local or an fsspec URL; what it already holds is not done again.
        model: replaces the config's model if given.
        config: all settings; None takes the defaults.
        runner: `ray`, or `local` for a serial run in this process.
        address: the Ray cluster to join; None starts one here.
        display: shows progress; None shows nothing.
    Raises: any PatchwireError but MediaError, which becomes an error row.
    """
    specs = [sources] if isinstance(sources, str | Path) else list(sources)
    settings = config or Config()
    if model is not None:
        settings = settings.model_copy(update={"model": model})
    with ExitStack() as stack:
        shown = stack.enter_context(display or QuietDisplay())
        run = _Run(settings, OutputFolder(str(out)), shown)
        run.open()
        working = stack.enter_context(make_runner(runner, settings, address))
        return run.execute([str(spec) for spec in specs], working)


def make_runner(name: RunnerName, config: Config, address: str | None = None) -> Runner:
    """The runner of that name; Ray is only imported for its own."""
    if name == "local":
        if address is not None:
            raise UsageError("--address goes with --runner ray")
        from pipeline.flow.local import LocalRunner

        return LocalRunner(config)
    from pipeline.flow.cluster import RayRunner

    return RayRunner(config, address)


def plan_only(specs: Sequence[str], config: Config, runner: Runner) -> tuple[Plan, Checkpoint]:
    """Plan without an output: what `patchwire plan` and `inspect` show.

    Without a model, the default one's recipe is used, which needs no files.
    """
    checkpoint = official_checkpoint() if config.model is None else resolve_model(config.model)
    recipe = Recipe(preprocessing=checkpoint.preprocessing, config=config)
    listing = list_sources(specs, config.sources)
    return make_plan(listing, EMPTY_PLAN, lambda items: runner.probe(items, config), recipe), checkpoint


class _Run:
    """One run of one output folder."""

    def __init__(self, config: Config, folder: OutputFolder, display: Display) -> None:
        self._config = config
        self._folder = folder
        self._display = display
        self._checkpoint = resolve_model(config.model)
        self._model = ModelIdentity(
            model_id=self._checkpoint.model_id,
            model_revision=self._checkpoint.revision,
            random_weights=self._checkpoint.is_random,
        )
        self._config_hash = digest_values(
            config.result_values, self._model.model_id, self._model.model_revision, self._model.random_weights
        )
        self._started_at = _now()

    def open(self) -> None:
        """Make the folder ours: refuse another config's, remove what a killed run left half-written."""
        self._folder.create()
        existing = read_run_record(self._folder)
        if existing is not None:
            check_same_run(existing, result_config=self._config.result_values, model=self._model)
        remove_stale_temporaries(self._folder)
        if existing is None:
            write_run_record(self._folder, self._record())

    def execute(self, specs: Sequence[str], runner: Runner) -> RunSummary:
        """Plan, run what is missing, and leave `run.json` and a summary."""
        started = time.monotonic()
        if self._model.random_weights:
            self._display.note(f"model {self._model.model_id}: seeded random weights; the vectors mean nothing")
        plan = self._plan(specs, runner)
        planned_seconds = time.monotonic() - started
        done = done_requests(self._folder)
        missing = [request for request in plan.requests if request.request_id not in done]
        progress = self._progress(plan, missing, runner)
        self._display.note(
            f"plan: {len(plan.sources)} sources, {plan.num_clip_rows} clips in {len(plan.requests)} requests, "
            f"{len(missing)} of them to do"
        )
        if missing:
            for receipt in runner.run(missing, self._job()):
                progress.add(receipt)
                self._display.update(progress)
        summary = self._summary(plan, progress, time.monotonic() - started)
        write_run_record(self._folder, self._record(summary, progress, planned_seconds))
        return summary

    def _plan(self, specs: Sequence[str], runner: Runner) -> Plan:
        listing = list_sources(specs, self._config.sources)
        self._display.note(f"sources: {len(listing.items) + len(listing.failures)} found, reading headers")
        recipe = Recipe(preprocessing=self._checkpoint.preprocessing, config=self._config)
        known = self._read_plan()
        plan = make_plan(listing, known, lambda items: runner.probe(items, self._config), recipe)
        if plan != known:
            self._write_plan(plan)
        return plan

    def _read_plan(self) -> Plan:
        stems = self._folder.fragments(Kind.PLAN), self._folder.fragments(Kind.SOURCES)
        if stems != ((PLAN_STEM,), (PLAN_STEM,)):
            return EMPTY_PLAN
        return Plan(
            requests=tuple(requests_of(read_table(self._folder, Kind.PLAN, PLAN_STEM))),
            sources=sources_of(read_table(self._folder, Kind.SOURCES, PLAN_STEM)),
            failures=self._read_failures(),
        )

    def _read_failures(self) -> tuple[Failure, ...]:
        if PLAN_STEM not in self._folder.fragments(Kind.ERRORS):
            return ()
        return failures_of(read_table(self._folder, Kind.ERRORS, PLAN_STEM))

    def _write_plan(self, plan: Plan) -> None:
        """The list of sources comes last: without it the next run plans again, to the same requests."""
        errors = errors_table(plan.failures, errors_schema(model=self._model, config_hash=self._config_hash))
        write_table(self._folder, Kind.ERRORS, PLAN_STEM, errors)
        write_table(self._folder, Kind.PLAN, PLAN_STEM, plan_table(plan.requests))
        write_table(self._folder, Kind.SOURCES, PLAN_STEM, sources_table(plan.sources))

    def _job(self) -> Job:
        output = self._config.output
        settings = RowSettings(model=self._model, config_hash=self._config_hash, level=output.level, dtype=output.dtype)
        target = WriteTarget(output_uri=self._folder.uri, settings=settings)
        return Job(config=self._config, model=self._checkpoint.reference, target=target)

    def _progress(self, plan: Plan, missing: Sequence[RequestPlan], runner: Runner) -> Progress:
        return Progress(
            num_requests=len(missing),
            num_clips=sum(len(clip.clip_ids) for request in missing for clip in request.clips),
            capacity=runner.capacity,
            failures_at_start=len(plan.failures),
        )

    def _summary(self, plan: Plan, progress: Progress, elapsed_seconds: float) -> RunSummary:
        return RunSummary(
            output=self._folder.uri,
            num_sources=len(plan.sources),
            num_clips=plan.num_clip_rows,
            num_clips_done_before=plan.num_clip_rows - progress.num_clips,
            num_errors=self._count_errors(),
            num_new_rows=progress.rows,
            num_device_copies=progress.device_copies,
            num_requests=progress.done_requests,
            num_frames=progress.frames,
            num_patches=progress.patches,
            video_seconds=progress.video_seconds,
            elapsed_seconds=elapsed_seconds,
            bottleneck=progress.bottleneck,
            random_weights=self._model.random_weights,
        )

    def _count_errors(self) -> int:
        return sum(count_rows(self._folder, Kind.ERRORS, stem) for stem in self._folder.fragments(Kind.ERRORS))

    def _record(
        self, summary: RunSummary | None = None, progress: Progress | None = None, planned_seconds: float = 0.0
    ) -> RunRecord:
        record = RunRecord(
            started_at=self._started_at,
            model=self._model,
            config_hash=self._config_hash,
            result_config=self._config.result_values,
            config=self._config.model_dump(mode="json"),
            versions=installed_versions(),
        )
        if summary is None or progress is None:
            return record
        return replace(
            record,
            finished_at=_now(),
            bottleneck=summary.bottleneck,
            counts={
                "sources": summary.num_sources,
                "clips": summary.num_clips,
                "clips_done_before": summary.num_clips_done_before,
                "errors": summary.num_errors,
                "requests": summary.num_requests,
                "rows": summary.num_new_rows,
                "frames": summary.num_frames,
                "patches": summary.num_patches,
                "device_copies": summary.num_device_copies,
            },
            timings_seconds={
                "elapsed": summary.elapsed_seconds,
                "plan": planned_seconds,
                "decode": progress.decode_seconds,
                "encode": progress.encode_seconds,
                "write": progress.write_seconds,
                "video": summary.video_seconds,
            },
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
