"""What a runner is: a way to call the stages. `local` is a serial loop, `cluster` is Ray Data."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from pipeline.config import Config, Device
from pipeline.plan.probe import ProbeResult
from pipeline.plan.schema import RequestPlan
from pipeline.sink.output import Kind
from pipeline.sink.receipt import Receipt
from pipeline.sources.listing import SourceItem
from pipeline.stages.write import WriteTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every worker of a run is built from.

    `prepared_uri` is the folder that requests are loaded from instead of being decoded. A run that `makes` requests
    stores them in its target instead of encoding them.
    """

    config: Config
    model: str
    target: WriteTarget
    prepared_uri: str | None = None
    makes: Kind = Kind.EMBEDDINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many calls of each stage run at once; what a stage's busy time is measured against."""

    decode: int
    encode: int


class MainRun(Protocol):
    """The run that headers are read beside of, by another thread."""

    @property
    def is_awaited(self) -> bool:
        """Whether it has nothing to do until they are read."""
        ...

    def check(self) -> None:
        """Raise RunError where it is over, and nobody wants them; to be called every second or so."""
        ...


class Runner(Protocol):
    """Calls the stages; a context manager that owns its workers. `plans_ahead`: it can read headers beside a run."""

    name: str
    capacity: Capacity
    plans_ahead: bool

    @property
    def device(self) -> Device:
        """What it encodes on, to be asked once it is entered.

        Raises: UsageError where the settings ask for a GPU and there is none.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def probe(
        self, items: Sequence[SourceItem], config: Config, beside: MainRun | None = None
    ) -> Generator[ProbeResult]:
        """Read headers, results in any order; beside a run with few workers, as long as it has something to do."""
        ...

    def run(self, waves: Iterable[Sequence[RequestPlan]], job: Job) -> Generator[Receipt]:
        """Decode or load requests, then encode and write them or store them; a receipt for each, in any order.

        A wave is asked for when the one before it is done; without any, no worker is started. Closing the generator
        ends the work that is under way.
        """
        ...
