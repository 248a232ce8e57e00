"""How results look to a person; every function prints typed values that `flow`, `plan` or `sink` made."""

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.cli.checks import Check
from pipeline.flow.progress import format_seconds
from pipeline.flow.run import RunSummary
from pipeline.plan.prediction import DECODE, DRIVER, ENCODE, HEADERS, START, Cluster, Prediction
from pipeline.plan.schema import Failure
from pipeline.plan.summary import PlanSummary
from pipeline.sink.compact import MANIFEST, TABLE, Manifest
from pipeline.sink.errors_report import ErrorGroup
from pipeline.sink.lance_commit import LanceTable
from pipeline.sink.verify import VerifyReport

_MAX_SHAPES = 12
_MAX_FAILURES = 10


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Text of strangers (names, messages) for a terminal: control characters are shown, never sent."""
    return escape("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text))


def summary(run: RunSummary) -> None:
    """The last lines of a run: counts, the bottleneck, the next command."""
    console = _console()
    rate = run.video_seconds / run.elapsed_seconds if run.elapsed_seconds else 0.0
    console.print(
        f"{run.num_clips} clips of {run.num_sources} sources: {run.num_clips_done_before} were there, "
        f"{run.num_new_rows} new rows, {run.num_errors} errors"
    )
    if run.num_requests:
        console.print(
            f"{format_seconds(run.elapsed_seconds)} for {run.num_requests} requests, {run.num_frames} frames, "
            f"{rate:.1f} seconds of video a second; limited by {run.bottleneck}; "
            f"the encoder was ready after {run.encoder_start_seconds:.1f}s"
        )
    else:
        console.print("nothing new to do")
    if run.random_weights:
        console.print("seeded random weights: the vectors mean nothing; name a checkpoint with --model")
    next_command = f"patchwire {'errors' if run.num_errors else 'verify'} {shlex.quote(run.output)}"
    console.print(f"table: {_plain(run.output)}/embeddings")
    if run.table is not None:
        console.print(f"copy:  {_plain(run.table)}")
    console.print(f"next:  {_plain(next_command)}")


def prepared(run: RunSummary) -> None:
    """The last lines of a run that stored requests."""
    console = _console()
    console.print(
        f"{run.num_clips} clips of {run.num_sources} sources: {run.num_clips_done_before} were there, "
        f"{run.num_requests} new requests, {run.num_errors} errors"
    )
    if run.num_requests:
        console.print(f"{format_seconds(run.elapsed_seconds)} for {run.num_frames} frames, {run.num_patches} patches")
    else:
        console.print("nothing new to do")
    output = shlex.quote(run.output)
    console.print(_plain(f"requests: {run.output}/requests\nnext:  patchwire embed {output} --out OUT"))


def plan(found: PlanSummary, failures: Sequence[Failure], device_memory_bytes: int) -> None:
    """Counts, cost and shapes."""
    console = _console()
    console.print(
        f"{found.num_sources} sources, {found.num_clip_rows} clips ({found.num_clips} after equal files are joined), "
        f"{found.num_requests} requests, {found.num_failures} errors"
    )
    console.print(
        f"{found.video_seconds:.1f} s of video, {found.num_frames} frames, {found.num_patches} patches; "
        f"{found.device_bytes / 1e6:.1f} MB to the device, {found.flops / 1e12:.2f} TFLOP"
    )
    console.print(f"on a GPU the hungriest request takes {device_memory_bytes / 1e6:.1f} MB beside the weights")
    table = Table("media", "h x w", "requests", "clips", "patches")
    for shape in found.shapes[:_MAX_SHAPES]:
        counts = (shape.num_requests, shape.num_clips, shape.num_patches)
        table.add_row(shape.media_type, f"{shape.grid_h} x {shape.grid_w}", *map(str, counts))
    console.print(table)
    if len(found.shapes) > _MAX_SHAPES:
        console.print(f"and {len(found.shapes) - _MAX_SHAPES} more shapes")
    for failure in failures[:_MAX_FAILURES]:
        console.print(_plain(f"{failure.code}: {failure.message}"))
    if len(failures) > _MAX_FAILURES:
        console.print(f"and {len(failures) - _MAX_FAILURES} more errors")


def prediction(found: Prediction, cluster: Cluster, origin: str, cost: float | None) -> None:
    """One sentence, then each stage's own time and what the machines cost, then what the numbers rest on."""
    console = _console()
    console.print(_plain(prediction_sentence(found, cluster)))
    stages = {
        START: found.start_seconds,
        "the encoder's": found.encoder_start_seconds,
        HEADERS: found.headers_seconds,
        DECODE: found.decode_seconds,
        ENCODE: found.encode_seconds,
        DRIVER: found.driver_seconds,
    }
    console.print(
        ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in stages.items() if seconds)
        + f"; {found.core_hours:.3g} core-hours, {found.gpu_hours:.3g} GPU-hours"
        + (f", {cost:,.2f} at the prices given" if cost is not None else "")
    )
    console.print(_plain(f"rates: {origin}"))


def prediction_sentence(found: Prediction, cluster: Cluster) -> str:
    """How long, on what, what limits it, and what would help."""
    machines = [_count(cluster.num_gpus, "GPU")] if cluster.num_gpus else []
    where = " and ".join([*machines, _count(cluster.num_cores, "core")])
    sentence = f"about {format_seconds(found.seconds)} on {where}; {found.bottleneck}-bound"
    if found.helped_seconds is None:
        advice = {DRIVER: "; larger requests help: --set request.max_patches=..."}
        return sentence + advice.get(found.bottleneck, "")
    more = _count(found.help_cores, "core") if found.help_cores else _count(found.help_gpus or 0, "GPU")
    return f"{sentence}; add {more}: {format_seconds(found.helped_seconds)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def error_groups(groups: Sequence[ErrorGroup], output: str) -> None:
    """Errors by code, most frequent first, and the command that tries them again."""
    console = _console()
    if not groups:
        console.print("no errors")
    for group in groups:
        console.print(f"{group.code}: {group.num_errors}\n  {group.meaning} {group.action}")
        for example in group.examples:
            console.print(_plain(f"  - {example.source_uri} ({example.stage}): {example.message}"))
    if groups:
        console.print(_plain(f"next:  patchwire retry {shlex.quote(output)}"))


def verify(report: VerifyReport) -> None:
    """Whether the books close, and the first places where they do not."""
    console = _console()
    console.print(
        f"{report.num_sources} sources, {report.num_clips} clips planned: {report.num_rows} rows, "
        f"{report.num_error_rows} errors"
    )
    if report.num_table_rows is not None:
        console.print(f"table: {report.num_table_rows} rows; {report.num_newer_requests} requests are newer")
    if report.num_lance_rows is not None:
        console.print(f"lance: {report.num_lance_rows} rows; {report.num_newer_than_lance} requests are newer")
    for discrepancy in report.discrepancies:
        console.print(_plain(f"- {discrepancy}"))
    console.print("ok" if report.ok else "NOT ok")


def manifest(made: Manifest, output: str) -> None:
    """What was compacted, and where it lies."""
    console = _console()
    num_requests = sum(len(part.fragments) for part in made.parts)
    console.print(f"{made.num_rows} rows of {num_requests} requests in {len(made.parts)} files")
    console.print(_plain(f"table: {output}/{TABLE}/{made.generation}, listed by {output}/{MANIFEST}"))


def lance_table(made: LanceTable | None) -> None:
    """What the Lance dataset holds, and where it lies."""
    console = _console()
    if made is None:
        console.print("no request has been written yet, so there is no Lance dataset")
        return
    console.print(f"{made.num_rows} rows in {made.num_files} files")
    console.print(_plain(f"lance: {made.uri}, version {made.version}"))


def checks(found: Sequence[Check]) -> None:
    """One line a check."""
    console = _console()
    for check in found:
        console.print(_plain(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}"))
