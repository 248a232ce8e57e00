"""What has been done, how fast, and what limits it: numbers from receipts, and two ways to show them.

A stage's busy share is its seconds over (wall seconds x workers). The stage nearest to 1 is what limits the run;
if neither is past one half, what limits it lies outside them: start-up, scheduling, or the disk.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.flow.runner import Capacity
from pipeline.plan.schema import RequestPlan
from pipeline.sink.receipt import Receipt

_PLAIN_EVERY_SECONDS = 5.0
_BUSY_ENOUGH = 0.5


@dataclass(slots=True)
class Progress:
    """Running totals of a run.

    What is to do grows as the plan does. `planning_seconds` is the time in which nothing was done for want of a plan,
    and no part of the stages' time. What is planned beside a run takes none.
    """

    capacity: Capacity
    clock: Callable[[], float] = time.monotonic
    num_requests: int = 0
    num_clips: int = 0
    failures_at_start: int = 0
    planning_seconds: float = 0.0
    started: float = field(init=False)
    done_requests: int = 0
    done_clips: int = 0
    rows: int = 0
    failures: int = 0
    frames: int = 0
    patches: int = 0
    device_copies: int = 0
    video_seconds: float = 0.0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    start_seconds: float = 0.0
    transfers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @contextmanager
    def waiting_for_plan(self) -> Iterator[None]:
        """Measure the time inside as planning."""
        began = self.clock()
        try:
            yield
        finally:
            self.planning_seconds += self.clock() - began

    def expect(self, requests: Iterable[RequestPlan], num_failures: int) -> None:
        """Count requests that are to do, and sources that could not be planned."""
        for request in requests:
            self.num_requests += 1
            self.num_clips += sum(len(clip.clip_ids) for clip in request.clips)
        self.failures_at_start += num_failures

    def add(self, receipt: Receipt) -> None:
        """Count one written request."""
        self.done_requests += 1
        self.done_clips += receipt.num_clips + receipt.num_failures
        self.rows += receipt.num_rows
        self.failures += receipt.num_failures
        self.frames += receipt.num_frames
        self.patches += receipt.num_patches
        self.device_copies += receipt.num_device_copies
        self.video_seconds += receipt.video_seconds
        self.decode_seconds += receipt.decode_seconds
        self.encode_seconds += receipt.encode_seconds
        self.write_seconds += receipt.write_seconds
        self.start_seconds = max(self.start_seconds, receipt.start_seconds)
        self.transfers[receipt.transfer] += 1

    @property
    def elapsed_seconds(self) -> float:
        """Wall seconds so far, without those in which a plan was waited for."""
        return max(self.clock() - self.started - self.planning_seconds, 1e-9)

    @property
    def decode_busy(self) -> float:
        """Share of the decode workers' time that was spent decoding."""
        return self.decode_seconds / (self.elapsed_seconds * self.capacity.decode)

    @property
    def encode_busy(self) -> float:
        """Share of the encode workers' time that was spent encoding."""
        return self.encode_seconds / (self.elapsed_seconds * self.capacity.encode)

    @property
    def bottleneck(self) -> str:
        """What limits the run: `decode`, `encode` or `overhead`; `none` before anything is done."""
        if not self.done_requests:
            return "none"
        busiest, share = max((("decode", self.decode_busy), ("encode", self.encode_busy)), key=lambda item: item[1])
        serial = self.capacity == Capacity(decode=1, encode=1)
        return busiest if share >= _BUSY_ENOUGH or (serial and share > 0.1) else "overhead"

    @property
    def seconds_left(self) -> float | None:
        """Time to go at the rate so far; None before the first clip."""
        if not self.done_clips:
            return None
        return self.elapsed_seconds * (self.num_clips - self.done_clips) / self.done_clips

    def line(self) -> str:
        """One line for a person."""
        rate = self.video_seconds / self.elapsed_seconds
        left = self.seconds_left
        return (
            f"clips {self.done_clips}/{self.num_clips}  video {rate:.1f} s/s  "
            f"frames {self.frames / self.elapsed_seconds:.1f}/s  limited by {self.bottleneck} "
            f"(decode {self.decode_busy:.0%}, encode {self.encode_busy:.0%})  "
            f"errors {self.failures + self.failures_at_start}  left {'?' if left is None else format_seconds(left)}"
        )


def format_seconds(seconds: float) -> str:
    """Seconds as 42s, 3m05s, 2h07m or 3.1 days."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{seconds / 86_400:.1f} days"


class Display(Protocol):
    """Shows a run's progress; a context manager."""

    def note(self, text: str) -> None:
        """Say what happens now."""
        ...

    def update(self, progress: Progress) -> None:
        """Show the totals after a request."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class QuietDisplay:
    """Shows nothing: for Python callers."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def update(self, progress: Progress) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind."""


class PlainDisplay(QuietDisplay):
    """A line every few seconds: for logs and pipes."""

    def __init__(self) -> None:
        self._last = -_PLAIN_EVERY_SECONDS

    def note(self, text: str) -> None:
        """Print one line."""
        _print(text)

    def update(self, progress: Progress) -> None:
        """Print the totals if the last line is old enough, or this is the last one."""
        now = time.monotonic()
        if now - self._last >= _PLAIN_EVERY_SECONDS or progress.done_requests == progress.num_requests:
            self._last = now
            _print(progress.line())


class LiveDisplay(QuietDisplay):
    """One line that changes in place: for terminals."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def note(self, text: str) -> None:
        """Print above the live line."""
        self._live.console.print(text, highlight=False, markup=False)

    def update(self, progress: Progress) -> None:
        """Redraw the totals."""
        self._live.update(Text(progress.line(), no_wrap=True, overflow="ellipsis"))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def make_display() -> Display:
    """Live on a terminal, plain lines elsewhere; both on standard error."""
    return LiveDisplay() if sys.stderr.isatty() else PlainDisplay()


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
