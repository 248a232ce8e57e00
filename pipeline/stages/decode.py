"""The stages that touch media: headers become probe results, plan rows become requests."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipeline.config import Config
from pipeline.device.nvdec.eligible import may_decode_on_device
from pipeline.media.attempts import Attempts
from pipeline.media.sandbox import Sandbox
from pipeline.media.shared_template import SharedTemplate
from pipeline.plan.probe import ProbeResult, items_of, probe_source, results_table
from pipeline.plan.schema import RequestPlan, requests_of
from pipeline.request.build import build_request
from pipeline.request.deferred import decoded_request, deferred_request
from pipeline.sources.items import SourceItem


def make_sandbox(config: Config, attempts_uri: str | None, template: SharedTemplate | None = None) -> Sandbox:
    """A decoder process for a run's settings.

    Deaths are written down below `attempts_uri`, if there is one; `template` is what this machine's decoders share.
    """
    attempts = None if attempts_uri is None else Attempts(attempts_uri)
    return Sandbox(config.decode, config.images, config.limits, attempts, template)


class DecodingStage:
    """A stage with a decoder process: its own, or one that it shares and leaves open.

    A context manager, or closed by hand.
    """

    def __init__(self, config: Config, shared: Sandbox | None = None) -> None:
        self._is_shared = shared is not None
        self._sandbox = shared or make_sandbox(config, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder process, if it is this stage's own."""
        if not self._is_shared:
            self._sandbox.close()


class Probe(DecodingStage):
    """Reads headers and hashes contents."""

    def __init__(self, config: Config, shared: Sandbox | None = None) -> None:
        super().__init__(config, shared)
        self._with_times = config.frames.sampling == "time"
        self._with_keyframes = config.frames.keyframes_only

    def __call__(self, items: pa.Table) -> pa.Table:
        """Rows of ITEM_SCHEMA to rows of PROBE_SCHEMA; a bad medium is a row with an error."""
        return results_table(self._probe(item) for item in items_of(items))

    def _probe(self, item: SourceItem) -> ProbeResult:
        return probe_source(item, self._sandbox, with_times=self._with_times, with_keyframes=self._with_keyframes)


class Decode(DecodingStage):
    """Decodes and patchifies the clips of plan rows, or leaves that to the GPU's decoders.

    Args:
        config: the run's settings.
        shared: a decoder process to use and leave open.
        claim: given a request that the GPU may decode, whether it is to; None where there is no such GPU.
        attempts_uri: where deaths of a GPU's decoders are written down.
        with_planes: the encoder takes planes in place of patch rows.
    """

    def __init__(
        self,
        config: Config,
        shared: Sandbox | None = None,
        claim: Callable[[str], bool] | None = None,
        attempts_uri: str | None = None,
        *,
        with_planes: bool = False,
    ) -> None:
        super().__init__(config, shared)
        self._claim = claim
        self._with_planes = with_planes
        self._attempts = None if claim is None or attempts_uri is None else Attempts(attempts_uri, on_device=True)

    def __call__(self, plan: pa.Table) -> pa.Table:
        """One row of PLAN_SCHEMA to one row of REQUEST_SCHEMA; a bad clip is among its failures.

        With `claim` the row has a column more, see request/deferred.py.
        """
        (request,) = requests_of(plan)
        if self._claim is None:
            return self._build(request)
        if may_decode_on_device(request) and self._is_harmless(request) and self._claim(request.request_id):
            return deferred_request(request, with_planes=self._with_planes)
        return decoded_request(self._build(request))

    def _build(self, request: RequestPlan) -> pa.Table:
        return build_request(request, self._sandbox, with_planes=self._with_planes)

    def _is_harmless(self, request: RequestPlan) -> bool:
        """Whether none of its media has ended a GPU's decoders."""
        attempts = self._attempts
        return attempts is None or all(attempts.allows(clip.sources[0].uri) for clip in request.clips)
