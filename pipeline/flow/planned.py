"""What has been planned so far, as totals: a run keeps these, and of the plan itself what it is at."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.checkpoint import VisionSpec
from pipeline.plan.planner import Plan
from pipeline.plan.schema import RequestPlan
from pipeline.plan.work import NO_WORK, Work


@dataclass(slots=True)
class Planned:
    """Counts over the shards of a plan; `work` is what was missing of them, without their headers."""

    keyframes_only: bool = False
    num_sources: int = 0
    num_failed_sources: int = 0
    num_requests: int = 0
    num_clip_rows: int = 0
    work: Work = NO_WORK

    def add(self, plan: Plan, missing: Sequence[RequestPlan], vision: VisionSpec) -> None:
        """Count one shard, of which these requests are to do."""
        self.num_sources += len(plan.sources)
        self.num_failed_sources += len({failure.source_uri for failure in plan.failures})
        self.num_requests += len(plan.requests)
        self.num_clip_rows += plan.num_clip_rows
        self.work += Work.of(missing, (), vision, keyframes_only=self.keyframes_only)
