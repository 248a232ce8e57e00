"""The whole way in one screen: every stage, one after the other, in this process and without Ray."""

from collections.abc import Generator, Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import Self

from pipeline.config import Config
from pipeline.flow.runner import Capacity, Job
from pipeline.plan.probe import ProbeResult, items_table, results_of
from pipeline.plan.schema import RequestPlan, plan_table
from pipeline.sink.receipt import Receipt, receipts_of
from pipeline.sources.listing import SourceItem
from pipeline.stages.decode import Decode, Probe, make_sandbox
from pipeline.stages.write import Write


class LocalRunner:
    """Runs the stages serially, with one decoder process for all of them.

    The reference that the cluster is compared with, and the debugger's friend.
    """

    name = "local"
    capacity = Capacity(decode=1, encode=1)

    def __init__(self, config: Config, attempts_uri: str | None = None) -> None:
        self.sandbox = make_sandbox(config, attempts_uri)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sandbox.close()

    def probe(self, items: Sequence[SourceItem], config: Config) -> Generator[ProbeResult]:
        """Read headers one by one."""
        probe = Probe(config, self.sandbox)
        for item in items:
            yield from results_of(probe(items_table([item])))

    def run(self, waves: Iterable[Sequence[RequestPlan]], job: Job) -> Generator[Receipt]:
        """Take each request the whole way before the next one begins."""
        requests = chain.from_iterable(waves)
        first = next(requests, None)
        if first is None:
            return
        from pipeline.stages.encode import Encode  # torch takes a second, and planning does without

        decode = Decode(job.config, self.sandbox)
        encode, write = Encode(job.config, job.model), Write(job.target)
        for request in chain([first], requests):
            yield from receipts_of(write(encode(decode(plan_table([request])))))
