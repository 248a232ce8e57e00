"""The whole way in one screen: every stage, one after the other, in this process and without Ray."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipeline.config import Config, Device
from pipeline.flow.runner import Capacity, Job, MainRun
from pipeline.media.sandbox import Sandbox
from pipeline.plan.probe import ProbeResult, items_table, results_of
from pipeline.plan.schema import RequestPlan, plan_table
from pipeline.sink.output import Kind
from pipeline.sink.receipt import Receipt, receipts_of
from pipeline.sources.listing import SourceItem
from pipeline.stages.decode import Decode, Probe, make_sandbox
from pipeline.stages.prepared import Load, Store
from pipeline.stages.write import Write

_Stage = Callable[[pa.Table], pa.Table]


def probe_one_by_one(items: Sequence[SourceItem], config: Config, sandbox: Sandbox) -> Generator[ProbeResult]:
    """Read the headers of sources in this process's own decoder, one after the other."""
    probe = Probe(config, sandbox)
    for item in items:
        yield from results_of(probe(items_table([item])))


class LocalRunner:
    """Runs the stages serially, with one decoder process for all of them.

    The reference that the cluster is compared with, and the debugger's friend.
    """

    name = "local"
    capacity = Capacity(decode=1, encode=1)
    plans_ahead = False

    def __init__(self, config: Config, attempts_uri: str | None = None) -> None:
        self._config = config
        self._attempts_uri = attempts_uri
        self.sandbox = make_sandbox(config, attempts_uri)

    @property
    def device(self) -> Device:
        """What this process encodes on. Raises: UsageError where the settings ask for a GPU and there is none."""
        from pipeline.stages.encode import encode_device  # torch, as below

        return "cuda" if encode_device(self._config).type == "cuda" else "cpu"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sandbox.close()

    def probe(
        self, items: Sequence[SourceItem], config: Config, beside: MainRun | None = None
    ) -> Generator[ProbeResult]:
        """Read headers one by one; never beside a run, which has the one decoder process."""
        assert beside is None
        yield from probe_one_by_one(items, config, self.sandbox)

    def run(self, waves: Iterable[Sequence[RequestPlan]], job: Job) -> Generator[Receipt]:
        """Take each request the whole way before the next one begins."""
        requests = chain.from_iterable(waves)
        first = next(requests, None)
        if first is None:
            return
        with ExitStack() as stack:
            make, finish = self._stages(job, stack)
            for request in chain([first], requests):
                yield from receipts_of(finish(make(plan_table([request]))))

    def _stages(self, job: Job, stack: ExitStack) -> tuple[_Stage, _Stage]:
        """What makes a request of a plan row, and what then becomes of it."""
        if job.makes is Kind.REQUESTS:
            return Decode(job.config, self.sandbox), Store(job.target)
        from pipeline.stages.encode import Encode  # torch takes a second, and planning and preparing do without

        is_prepared = job.prepared_uri is not None
        takes_planes = not is_prepared and job.config.decode.sends_planes(self.device)
        encode = Encode(
            job.config,
            job.model,
            takes_deferred=not is_prepared,
            takes_planes=takes_planes,
            attempts_uri=self._attempts_uri,
        )
        write = Write(job.target)
        stack.callback(encode.close)
        claim = (lambda _: encode.num_device_requests > 0) if encode.num_device_requests else None
        make = (
            Decode(job.config, self.sandbox, claim, self._attempts_uri, with_planes=takes_planes)
            if job.prepared_uri is None
            else Load(job.prepared_uri)
        )
        return make, lambda request: write(encode(request))
