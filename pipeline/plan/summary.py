"""What a plan will cost, told before anything is decoded."""

from collections import Counter
from dataclasses import dataclass

from pipeline.checkpoint import VisionSpec
from pipeline.media.grid import row_bytes
from pipeline.plan.planner import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeCount:
    """One (h, w) that the plan holds, in patches, and how much of it."""

    media_type: str
    grid_h: int
    grid_w: int
    num_requests: int
    num_clips: int
    num_patches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSummary:
    """Counts of a plan. `flops` counts a multiply-add twice; `device_bytes` is what the transfers carry."""

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


def summarize(plan: Plan, vision: VisionSpec) -> PlanSummary:
    """Add up a plan; shapes come largest first."""
    clips = [clip for request in plan.requests for clip in request.clips]
    totals: dict[tuple[str, int, int], Counter[str]] = {}
    for request in plan.requests:
        _, h, w = request.clips[0].grid_thw
        counter = totals.setdefault((request.media_type, h, w), Counter())
        counter.update(requests=1, clips=len(request.clips), patches=request.num_patches)
    shapes = [
        ShapeCount(
            media_type=str(media_type),
            grid_h=h,
            grid_w=w,
            num_requests=count["requests"],
            num_clips=count["clips"],
            num_patches=count["patches"],
        )
        for (media_type, h, w), count in totals.items()
    ]
    return PlanSummary(
        num_sources=len(plan.sources),
        num_failures=len(plan.failures),
        num_requests=len(plan.requests),
        num_clips=len(clips),
        num_clip_rows=plan.num_clip_rows,
        num_frames=sum(len(clip.frame_indices) for clip in clips),
        num_patches=sum(clip.num_patches for clip in clips),
        video_seconds=sum(clip.video_seconds for clip in clips),
        device_bytes=sum(clip.num_patches * row_bytes(clip.media_type) for clip in clips),
        flops=sum(vision.flops(request.num_patches, request.patches_per_frame) for request in plan.requests),
        shapes=tuple(sorted(shapes, key=lambda shape: (-shape.num_patches, shape.media_type, shape.grid_h))),
    )
