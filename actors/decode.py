"""CPU actors that probe, decode, and store what they decoded."""

from dataclasses import dataclass

import pyarrow as pa

from actors.share import ShareDesk
from pipeline.config import Config
from pipeline.media.sandbox import Sandbox
from pipeline.media.shared_template import SharedTemplate
from pipeline.plan.schema import unpacked_request
from pipeline.stages.decode import Decode, Probe, make_sandbox
from pipeline.stages.prepared import Store
from pipeline.stages.write import WriteTarget


@dataclass(frozen=True, slots=True)
class Decoders:
    """Where the deaths of a run's decoder processes are written down, and what they are forked from."""

    attempts_uri: str | None = None
    template: SharedTemplate | None = None

    def sandbox(self, config: Config) -> Sandbox:
        """An actor's own decoder process, which ends with the actor."""
        return make_sandbox(config, self.attempts_uri, self.template)


class ProbeActor:
    """Reads the headers of a block of sources."""

    def __init__(self, config: Config, decoders: Decoders) -> None:
        self._stage = Probe(config, decoders.sandbox(config))

    def __call__(self, items: pa.Table) -> pa.Table:
        """Rows of ITEM_SCHEMA to rows of PROBE_SCHEMA."""
        return self._stage(items)


class DecodeActor:
    """Turns one plan row into one request, decoded or deferred to a GPU; its decoder process dies with it."""

    def __init__(
        self, config: Config, decoders: Decoders, share: ShareDesk | None = None, *, with_planes: bool = False
    ) -> None:
        claim = None if share is None else share.claim
        sandbox = decoders.sandbox(config)
        self._stage = Decode(config, sandbox, claim, decoders.attempts_uri, with_planes=with_planes)

    def __call__(self, plan: pa.Table) -> pa.Table:
        """One packed row of PLAN_SCHEMA to one row of REQUEST_SCHEMA."""
        return self._stage(unpacked_request(plan))


class PrepareActor:
    """Turns one plan row into one stored request, which never passes through Ray's object store."""

    def __init__(self, config: Config, target: WriteTarget, decoders: Decoders) -> None:
        self._decode = Decode(config, decoders.sandbox(config))
        self._store = Store(target)

    def __call__(self, plan: pa.Table) -> pa.Table:
        """One packed row of PLAN_SCHEMA to one row of RECEIPT_SCHEMA."""
        return self._store(self._decode(unpacked_request(plan)))
