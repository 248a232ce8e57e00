"""What a plan will cost, told before anything is decoded."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.checkpoint import VisionSpec
from pipeline.media.grid import row_bytes
from pipeline.plan.planner import Plan
from pipeline.plan.work import NO_WORK, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeCount:
    """One (h, w) that the plan holds, in patches, and how much of it; `most_patches` has its largest request."""

    media_type: str
    grid_h: int
    grid_w: int
    num_requests: int
    num_clips: int
    num_patches: int
    most_patches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSummary:
    """Counts of a plan; `flops` counts a multiply-add twice.

    `device_bytes` is what the transfers carry as patch rows; clips that travel as planes are mostly less.

    `work` is the same plan in the units that a prediction needs.
    """

    num_sources: int
    num_failures: int
    num_requests: int
    num_clips: int
    num_clip_rows: int
    num_frames: int
    num_patches: int
    video_seconds: float
    device_bytes: int
    flops: int
    shapes: tuple[ShapeCount, ...]
    work: Work


def summarize(plans: Iterable[Plan], vision: VisionSpec, *, keyframes_only: bool = False) -> PlanSummary:
    """Add up the shards of a plan; shapes come largest first. Cost: one pass, nothing but totals kept."""
    totals: Counter[str] = Counter()
    shapes: dict[tuple[str, int, int], Counter[str]] = {}
    video_seconds, work = 0.0, NO_WORK
    for plan in plans:
        work += Work.of(plan.requests, plan.sources, vision, keyframes_only=keyframes_only)
        totals.update(failures=len(plan.failures), rows=plan.num_clip_rows)
        for request in plan.requests:
            _, h, w = request.clips[0].grid_thw
            shape = shapes.setdefault((str(request.media_type), h, w), Counter())
            shape.update(requests=1, clips=len(request.clips), patches=request.num_patches)
            shape["most"] = max(shape["most"], request.num_patches)
            totals.update(
                frames=sum(len(clip.frame_indices) for clip in request.clips),
                patches=request.num_patches,
                bytes=request.num_patches * row_bytes(request.media_type),
            )
            video_seconds += sum(clip.video_seconds for clip in request.clips)
    counts = [
        ShapeCount(
            media_type=media_type,
            grid_h=h,
            grid_w=w,
            num_requests=count["requests"],
            num_clips=count["clips"],
            num_patches=count["patches"],
            most_patches=count["most"],
        )
        for (media_type, h, w), count in shapes.items()
    ]
    return PlanSummary(
        num_sources=work.num_sources,
        num_failures=totals["failures"],
        num_requests=work.num_requests,
        num_clips=work.num_clips,
        num_clip_rows=totals["rows"],
        num_frames=totals["frames"],
        num_patches=totals["patches"],
        video_seconds=video_seconds,
        device_bytes=totals["bytes"],
        flops=work.flops,
        shapes=tuple(sorted(counts, key=lambda shape: (-shape.num_patches, shape.media_type, shape.grid_h))),
        work=work,
    )
