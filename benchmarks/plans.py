"""What a run would make of media, for benchmarks that decode them themselves."""

from collections.abc import Sequence

from pipeline.config import Config
from pipeline.flow.local import LocalRunner
from pipeline.flow.run import plan_only
from pipeline.plan.schema import Clip


def plan_clips(media: Sequence[str], config: Config) -> list[Clip]:
    """Every clip of the media, as a run would plan them."""
    with LocalRunner(config) as runner:
        plans, _ = plan_only(media, config, runner)
        return [clip for plan in plans for request in plan.requests for clip in request.clips]
