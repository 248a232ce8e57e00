"""A run from its arguments to its summary: list, plan once, do what is missing, write down how it went."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pipeline.checkpoint import Checkpoint, official_checkpoint, resolve_model
from pipeline.config import Config, override_config
from pipeline.errors import UsageError
from pipeline.flow.error_rate import ErrorRate
from pipeline.flow.forecast import measured_rates
from pipeline.flow.lookahead import Lookahead
from pipeline.flow.outside import outside
from pipeline.flow.plan_store import (
    Missing,
    announce_retry,
    announced_retry,
    assign,
    drop_unfinished,
    end_retry,
    plan_stems,
    planned_requests,
    read_plan,
    write_plan,
)
from pipeline.flow.planned import Planned
from pipeline.flow.prepared import check_extends, check_whole, find_prepared
from pipeline.flow.progress import Display, Progress, QuietDisplay
from pipeline.flow.runner import Job, Runner
from pipeline.flow.summary import RunSummary, finished_record, utc_now
from pipeline.media.attempts import Attempts
from pipeline.plan.clips import Recipe
from pipeline.plan.planner import EMPTY_PLAN, Plan, Prober, make_plan
from pipeline.plan.probe import ProbeResult
from pipeline.plan.retry import failed_media
from pipeline.plan.schema import RequestPlan
from pipeline.plan.shards import ShardLimits, cut
from pipeline.sink.atomic import remove_stale_temporaries
from pipeline.sink.compact import TABLE, compact_output
from pipeline.sink.embeddings import RowSettings
from pipeline.sink.fragments import count_rows
from pipeline.sink.lance_commit import commit_lance
from pipeline.sink.lance_table import require_lance
from pipeline.sink.lease import Lease, refuse_if_held
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.reading import readable
from pipeline.sink.run_record import (
    ModelIdentity,
    RunRecord,
    as_begun,
    check_purpose,
    check_same_arithmetic,
    check_same_requests,
    check_same_run,
    read_run_record,
    require_run_record,
    write_run_record,
)
from pipeline.sink.schema import errors_schema
from pipeline.sources.listing import Listing, SourceItem, list_sources
from pipeline.stages.write import WriteTarget

__all__ = ["OpenRun", "RunSummary", "RunnerName", "embed", "make_runner", "plan_only", "prepare", "retry"]

RunnerName = Literal["ray", "local"]

_MOST_AHEAD = 2_000_000  # in the units of `_size`: four shards of pictures, or one of videos


def embed(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    config: Config | None = None,
    overrides: Sequence[str] = (),
    runner: RunnerName = "ray",
    address: str | None = None,
    display: Display | None = None,
) -> RunSummary:
    """Embed media into the Parquet tables of an output folder.

    Args:
        sources: files, folders, globs, manifests, shards, tables or fsspec URLs; or one folder that `prepare` made.
        out: the output folder, local or an fsspec URL; what it already holds is not done again.
        model: replaces the config's model if given.
        config: all settings; None takes the defaults, and for prepared requests those they were prepared with.
        overrides: `section.key=value` settings that are changed in those.
        runner: `ray`, or `local` for a serial run in this process.
        address: the Ray cluster to join; None starts one here.
        display: shows progress; None shows nothing.
    Raises: any PatchwireError but MediaError, which becomes an error row.
    """
    specs = _specs(sources)
    prepared = find_prepared(specs)
    if prepared is None:
        settings = _settings(override_config(config or Config(), overrides), model)
        return _plan_and_run(specs, out, settings, runner, address, display, Kind.EMBEDDINGS)
    settings = _settings(override_config(config or prepared.config, overrides), model)
    folder = OutputFolder(str(out))
    check_same_requests(
        prepared.record,
        result_config=settings.result_values,
        model=identity_of(resolve_model(settings.model)),
    )
    with ExitStack() as stack:
        shown = stack.enter_context(display or QuietDisplay())
        run = stack.enter_context(OpenRun(settings, folder, shown))
        working = stack.enter_context(make_runner(runner, settings, address, folder.attempts_uri))
        return run.embed_prepared(prepared.folder, working)


def prepare(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    config: Config | None = None,
    runner: RunnerName = "ray",
    address: str | None = None,
    display: Display | None = None,
) -> RunSummary:
    """Decode media into requests that `embed` takes as its source later, elsewhere, without the media.

    Args: as for `embed`. The model's weights are not loaded; its files say how large frames are, and which model the
        requests are for.
    Raises: any PatchwireError but MediaError, which becomes an error row.
    """
    specs = _specs(sources)
    if find_prepared(specs) is not None:
        raise UsageError(f"source {specs[0]!r}: these requests are prepared already; `patchwire embed` takes them")
    settings = _settings(config or Config(), model)
    return _plan_and_run(specs, out, settings, runner, address, display, Kind.REQUESTS)


def _specs(sources: Sequence[str | Path] | str | Path) -> list[str]:
    return [str(spec) for spec in ([sources] if isinstance(sources, str | Path) else sources)]


def _settings(config: Config, model: str | None) -> Config:
    return config if model is None else config.model_copy(update={"model": model})


def _plan_and_run(
    specs: Sequence[str],
    out: str | Path,
    settings: Config,
    runner: RunnerName,
    address: str | None,
    display: Display | None,
    makes: Kind,
) -> RunSummary:
    folder = OutputFolder(str(out))
    refuse_if_held(folder)
    # Before the run is opened, so that a mistyped source leaves no folder behind.
    listing = outside(list_sources(specs, settings.sources), folder)
    with ExitStack() as stack:
        shown = stack.enter_context(display or QuietDisplay())
        run = stack.enter_context(OpenRun(settings, folder, shown, makes))
        working = stack.enter_context(make_runner(runner, settings, address, folder.attempts_uri))
        return run.embed(listing, working)


def retry(
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    lift_quarantine: bool = False,
    runner: RunnerName = "ray",
    address: str | None = None,
    display: Display | None = None,
) -> RunSummary:
    """Do what failed in an output again, with the settings of its last run.

    Sources that could not be listed (they are no media yet) are left to the next `embed`. New files are not
    looked for.

    Args:
        out: the output folder of a run.
        overrides: `section.key=value` settings that are changed, such as limits and timeouts; whatever decides the
            rows stays as it was.
        lift_quarantine: try media again that ended their decoder twice, or once the decoders of a GPU.
        runner: as for `embed`.
        address: as for `embed`.
        display: as for `embed`.
    Raises: OutputError where there was no run; any PatchwireError but MediaError.
    """
    folder = OutputFolder(str(out))
    record = require_run_record(folder)
    # What failed will often fail again: a limit on errors is for runs over everything, unless it is asked for here.
    stored = override_config(Config.from_values(record.config), ["errors.max_rate=null"])
    settings = override_config(stored, overrides)
    with ExitStack() as stack:
        shown = stack.enter_context(display or QuietDisplay())
        run = stack.enter_context(OpenRun(settings, folder, shown))
        working = stack.enter_context(make_runner(runner, settings, address, folder.attempts_uri))
        return run.retry(working, lift_quarantine=lift_quarantine)


def make_runner(
    name: RunnerName, config: Config, address: str | None = None, attempts_uri: str | None = None
) -> Runner:
    """The runner of that name; Ray is only imported for its own. `attempts_uri`: where decoders' deaths are kept."""
    if name == "local":
        if address is not None:
            raise UsageError("--address goes with --runner ray")
        from pipeline.flow.local import LocalRunner

        return LocalRunner(config, attempts_uri)
    from pipeline.flow.cluster import RayRunner

    return RayRunner(config, address, attempts_uri)


def plan_only(specs: Sequence[str], config: Config, runner: Runner) -> tuple[Iterator[Plan], Checkpoint]:
    """Plan without an output, shard by shard: what `patchwire plan` and `inspect` show.

    Without a model, the default one's recipe is used, which needs no files.
    """
    checkpoint = official_checkpoint() if config.model is None else resolve_model(config.model)
    recipe = Recipe(preprocessing=checkpoint.preprocessing, config=config)
    listing = list_sources(specs, config.sources)
    return plan_in_shards(listing, lambda items: runner.probe(items, config), recipe), checkpoint


def plan_in_shards(listing: Listing, probe: Prober, recipe: Recipe) -> Iterator[Plan]:
    """The plan that an empty output would get, a shard at a time; at least one, which may be empty."""
    shards = iter(cut(listing.items, ShardLimits.of(recipe.config.sources)))
    yield make_plan(Listing(items=next(shards, ()), failures=listing.failures), EMPTY_PLAN, probe, recipe)
    for items in shards:
        yield make_plan(Listing(items=items, failures=()), EMPTY_PLAN, probe, recipe)


def _size(plan: Plan) -> int:
    """What a plan takes of memory, in some 50 bytes."""
    clips = (clip for request in plan.requests for clip in request.clips)
    return 8 * len(plan.sources) + sum(8 + len(clip.frame_indices) for clip in clips)


class OpenRun:
    """One run of one output folder; a context manager that gives the lease back.

    Entering looks and writes nothing; the folder becomes this run's with its first work, when the workers are there.
    Raises: on entry OutputBusyError, OutputMismatchError, ModelError, UsageError where a Lance dataset is asked for
        and cannot be had; with the first work these again, UsageError where the settings ask for a GPU and there is
        none, or OutputError where the folder cannot be written.
    """

    def __init__(self, config: Config, folder: OutputFolder, display: Display, makes: Kind = Kind.EMBEDDINGS) -> None:
        self._config = config
        self._folder = folder
        self._makes = makes
        self._prepared: OutputFolder | None = None
        self._display = display
        self._lease = Lease(folder)
        self._held = ExitStack()
        self._arithmetic: str | None = None  # of this run, once it is known
        self._recorded_arithmetic: str | None = None
        self._rate = ErrorRate(config.errors, folder)
        self._started_at = utc_now()

    def __enter__(self) -> Self:
        """Refuse what cannot become a run of this folder: it is held, another config, no such model, no pylance."""
        refuse_if_held(self._folder)
        existing = read_run_record(self._folder)
        if existing is not None:
            check_purpose(self._folder, existing, self._makes)
            asked = self._config.encode.dtype
            self._config = as_begun(self._config, existing)
            self._arithmetic = None if self._config.encode.dtype == asked else asked
        if self._config.output.compact == "lance" and self._makes is Kind.EMBEDDINGS:
            require_lance(self._folder)
        self._resolve_model()
        self._require_same(existing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _begin(self, runner: Runner) -> None:
        """Make the folder ours, and remove what a killed run left half-written."""
        if self._makes is Kind.EMBEDDINGS:
            usual = self._config.encode.arithmetic(runner.device)
            self._arithmetic = self._arithmetic or usual
        self._require_same(read_run_record(self._folder))
        self._folder.create(self._makes)
        with ExitStack() as stack:
            stack.enter_context(self._lease)
            existing = read_run_record(self._folder)
            self._require_same(existing)
            remove_stale_temporaries(self._folder)
            drop_unfinished(self._folder)
            if existing is None:
                write_run_record(self._folder, replace(self._record, arithmetic=self._arithmetic))
            self._recorded_arithmetic = existing.arithmetic if existing is not None else self._arithmetic
            self._held = stack.pop_all()

    def _require_same(self, existing: RunRecord | None) -> None:
        if existing is not None:
            check_same_run(existing, result_config=self._config.result_values, model=self._model)
            check_same_arithmetic(existing, self._arithmetic)

    def embed_prepared(self, prepared: OutputFolder, runner: Runner) -> RunSummary:
        """Take over the plan of prepared requests, and encode those that are missing here."""
        check_whole(prepared)
        self._begin(runner)
        check_extends(self._folder, prepared)
        self._prepared = prepared
        return self._execute(lambda _: (self._take_over(prepared, stem) for stem in plan_stems(prepared)), runner)

    def embed(self, listing: Listing, runner: Runner) -> RunSummary:
        """Plan what is new, shard by shard, and do what is missing of each while the next ones are planned."""
        self._begin(runner)
        self._display.note(f"sources: {len(listing.items) + len(listing.failures)} found, reading headers")
        parts = assign(self._folder, listing, ShardLimits.of(self._config.sources))
        return self._execute(lambda probe: (self._extend(stem, part, probe) for stem, part in parts), runner)

    def retry(self, runner: Runner, *, lift_quarantine: bool = False) -> RunSummary:
        """Do only what failed again: read the failed sources' headers, decode the failed clips."""
        self._begin(runner)
        if lift_quarantine:  # not before: until the lease is held, the records may be another run's
            Attempts(self._folder.attempts_uri).forget_all()
        failed = set(self._folder.fragments(Kind.ERRORS)).intersection(planned_requests(self._folder))
        self._display.note(f"retry: failed clips of {len(failed)} requests, and the sources that failed")
        announce_retry(self._folder, failed | announced_retry(self._folder))
        stems = plan_stems(self._folder)
        return self._execute(lambda probe: (self._retry_sources(stem, probe) for stem in stems), runner)

    def _take_over(self, prepared: OutputFolder, stem: str) -> Plan:
        plan = read_plan(prepared, stem)
        self._write_plan(stem, plan, read_plan(self._folder, stem))
        return plan

    def _extend(self, stem: str, listing: Listing, probe: Prober) -> Plan:
        known = read_plan(self._folder, stem)
        return self._plan(stem, known, known, listing, probe)

    def _retry_sources(self, stem: str, probe: Prober) -> Plan:
        written = read_plan(self._folder, stem)
        listing, rest = failed_media(written, self._config.sources)
        return self._plan(stem, written, rest, listing, probe)

    def _plan(self, stem: str, written: Plan, known: Plan, listing: Listing, probe: Prober) -> Plan:
        """Plan what the listing holds and `known` does not, and write it down where it differs from `written`."""
        recipe = Recipe(preprocessing=self._checkpoint.preprocessing, config=self._config)
        plan = make_plan(listing, known, probe, recipe)
        self._write_plan(stem, plan, written)
        return plan

    def _write_plan(self, stem: str, plan: Plan, written: Plan) -> None:
        self._lease.check()
        if plan != written:
            schema = errors_schema(model=self._model, config_hash=self._record.config_hash)
            write_plan(self._folder, stem, plan, schema)

    def _execute(self, make_plans: Callable[[Prober], Iterator[Plan]], runner: Runner) -> RunSummary:
        """Run what is missing of each shard, and leave `run.json` and a summary."""
        started = time.monotonic()

        def probe(items: Sequence[SourceItem]) -> Iterator[ProbeResult]:
            with closing(runner.probe(items, self._config, ahead if ahead.is_beside else None)) as results:
                yield from results

        ahead = Lookahead(make_plans(probe), size_of=_size, most=_MOST_AHEAD)
        if self._model.random_weights and self._makes is Kind.EMBEDDINGS:
            self._display.note(f"model {self._model.model_id}: seeded random weights; the vectors mean nothing")
        progress = Progress(capacity=runner.capacity)
        planned = Planned(keyframes_only=self._config.frames.keyframes_only)
        waves = self._waves(ahead, planned, progress, begins_ahead=runner.plans_ahead)
        with ahead, closing(runner.run(waves, self._job())) as receipts:
            for receipt in receipts:
                progress.add(receipt)
                self._display.update(progress)
                self._lease.check()
                self._rate.check_clips(progress)
        self._lease.check()
        end_retry(self._folder)
        table = self._commit_table()
        summary = self._summary(planned, progress, time.monotonic() - started, table)
        is_prepared = self._job().prepared_uri is not None
        rates = measured_rates(planned.work, progress, self._checkpoint.vision, self._config, is_prepared=is_prepared)
        # Where nothing was encoded, this machine's arithmetic says nothing of the rows.
        arithmetic = self._arithmetic if progress.done_requests else self._recorded_arithmetic
        record = replace(self._record, arithmetic=arithmetic)
        write_run_record(self._folder, finished_record(record, summary, progress, rates))
        return summary

    def _waves(
        self, ahead: Lookahead[Plan], planned: Planned, progress: Progress, *, begins_ahead: bool
    ) -> Iterator[list[RequestPlan]]:
        """What is to do of the shards that are planned when the runner comes to ask for more.

        Planning goes ahead from the first wave on: before it, all workers are there to read headers.
        """
        todo = Missing(self._folder, self._makes)
        while True:
            with progress.waiting_for_plan():
                plans = ahead.take()
            if not plans:
                return
            missing: list[RequestPlan] = []
            for plan in plans:
                to_do = self._to_do(plan, todo)
                planned.add(plan, to_do, self._checkpoint.vision)
                progress.expect(to_do, num_failures=len(plan.failures))
                missing += to_do
            self._display.note(
                f"plan: {planned.num_sources} sources, {planned.num_clip_rows} clips in {planned.num_requests} "
                f"requests, {progress.num_requests} of them to do"
            )
            self._rate.check_sources(planned.num_failed_sources, planned.num_sources)
            del plans, plan, to_do
            if missing:
                if begins_ahead:
                    ahead.begin()
                yield missing
            del missing  # or these clips would still be here while the next ones are waited for

    def _to_do(self, plan: Plan, todo: Missing) -> list[RequestPlan]:
        missing = todo.of(plan.requests)
        if self._prepared is None:
            return missing
        # Stored requests are whole: what a retry began is done with all clips.
        ids = {request.request_id for request in missing}
        return [request for request in plan.requests if request.request_id in ids]

    def _commit_table(self) -> str | None:
        """Bring the copy of the embeddings up to date, where one is asked for, and say where it is.

        Killed before its end, the next run does it.
        """
        wanted = self._config.output.compact if self._makes is Kind.EMBEDDINGS else False
        if wanted == "lance":
            self._display.note("table: copying new embeddings into the Lance dataset")
            dataset = commit_lance(self._folder, require_held=self._lease.check)
            return None if dataset is None else dataset.uri
        if wanted:
            self._display.note("table: copying the embeddings into large files")
            manifest = compact_output(self._folder, require_held=self._lease.check)
            return f"{self._folder.uri}/{TABLE}/{manifest.generation}"
        return None

    def _resolve_model(self) -> None:
        self._checkpoint = resolve_model(self._config.model)
        if self._checkpoint.folder is not None and self._makes is Kind.EMBEDDINGS:
            from pipeline.encoder.weights import check_weights  # torch, which preparing does without

            check_weights(self._checkpoint)
        self._model = identity_of(self._checkpoint)
        self._record = RunRecord.begun(self._config, self._model, self._makes, self._started_at)

    def _job(self) -> Job:
        output = self._config.output
        settings = RowSettings(
            model=self._model, config_hash=self._record.config_hash, level=output.level, dtype=output.dtype
        )
        target = WriteTarget(output_uri=self._folder.uri, settings=settings)
        # Workers are told what the driver decided, whatever they find where they are.
        encode = {} if self._arithmetic is None else {"dtype": self._arithmetic}
        config = self._config.model_copy(update={"encode": self._config.encode.model_copy(update=encode)})
        return Job(
            config=config,
            model=self._checkpoint.reference,
            target=target,
            prepared_uri=None if self._prepared is None else self._prepared.uri,
            makes=self._makes,
        )

    def _summary(self, planned: Planned, progress: Progress, elapsed_seconds: float, table: str | None) -> RunSummary:
        return RunSummary(
            output=self._folder.uri,
            table=table,
            num_sources=planned.num_sources,
            num_clips=planned.num_clip_rows,
            num_clips_done_before=planned.num_clip_rows - progress.num_clips,
            num_errors=self._count_errors(),
            num_new_rows=progress.rows,
            num_device_copies=progress.device_copies,
            num_requests=progress.done_requests,
            num_frames=progress.frames,
            num_patches=progress.patches,
            video_seconds=progress.video_seconds,
            elapsed_seconds=elapsed_seconds,
            encoder_start_seconds=progress.start_seconds,
            bottleneck=progress.bottleneck,
            random_weights=self._model.random_weights,
        )

    def _count_errors(self) -> int:
        num_errors = 0
        for stem in self._folder.fragments(Kind.ERRORS):
            with readable(self._folder, Kind.ERRORS, stem):
                num_errors += count_rows(self._folder, Kind.ERRORS, stem)
        return num_errors


def identity_of(checkpoint: Checkpoint) -> ModelIdentity:
    """What run records and rows say of a checkpoint."""
    return ModelIdentity(
        model_id=checkpoint.model_id, model_revision=checkpoint.revision, random_weights=checkpoint.is_random
    )
