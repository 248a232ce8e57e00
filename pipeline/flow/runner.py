"""What a runner is: a way to call the stages. `local` is a serial loop, `cluster` is Ray Data."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from pipeline.config import Config
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


class Runner(Protocol):
    """Calls the stages; a context manager that owns its workers.

    `requests_ahead`: more are planned beside a run while fewer than these are waiting; 0 where the two take turns.
    """

    name: str
    capacity: Capacity
    requests_ahead: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def probe(
        self, items: Sequence[SourceItem], config: Config, *, beside_a_run: bool = False
    ) -> Generator[ProbeResult]:
        """Read headers, results in any order; beside a run in another thread, and with fewer workers."""
        ...

    def run(self, waves: Iterable[Sequence[RequestPlan]], job: Job) -> Generator[Receipt]:
        """Decode or load requests, then encode and write them or store them; a receipt for each, in any order.

        A wave is asked for when the one before it is done; without any, no worker is started. Closing the generator
        ends the work that is under way.
        """
        ...
