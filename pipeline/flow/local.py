"""The whole way in one screen: every stage, one after the other, in this process and without Ray."""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipeline.config import Config
from pipeline.flow.runner import Capacity, Job
from pipeline.plan.probe import ProbeResult, items_table, results_of
from pipeline.plan.schema import RequestPlan, plan_table
from pipeline.sink.output import Kind
from pipeline.sink.receipt import Receipt, receipts_of
from pipeline.sources.listing import SourceItem
from pipeline.stages.decode import Decode, Probe, make_sandbox
from pipeline.stages.prepared import Load, Store
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
        make = Decode(job.config, self.sandbox) if job.prepared_uri is None else Load(job.prepared_uri)
        finish = Store(job.target) if job.makes is Kind.REQUESTS else _encode_and_write(job)
        for request in chain([first], requests):
            yield from receipts_of(finish(make(plan_table([request]))))


def _encode_and_write(job: Job) -> Callable[[pa.Table], pa.Table]:
    from pipeline.stages.encode import Encode  # torch takes a second, and planning and preparing do without

    encode, write = Encode(job.config, job.model), Write(job.target)
    return lambda request: write(encode(request))
