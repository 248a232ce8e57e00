"""What a plan asks of the machines, in units that rates can be held against: pixels, floating-point operations, files.

Pixels and not frames, because decoding, colour conversion and resizing all go over pixels; three counts and not one,
because a frame that no sample wants is decoded (or skipped) and nothing else. What a clip reads before its first
frame, back to the keyframe, is not in the plan and is counted as nothing: long groups of pictures cost more. Where
keyframes are wanted each counts as three frames, because it has more bits, and nothing else does: a clip without any
stays exact and costs more than is counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from pipeline.checkpoint import VisionSpec
from pipeline.media.container import MediaType
from pipeline.media.content import SAMPLED_BYTES, WHOLE_LIMIT_BYTES
from pipeline.media.grid import PATCH_SIZE, temporal_size
from pipeline.plan.schema import Clip, RequestPlan, SourceRecord

UNKNOWN_CODEC = "unknown"
_FRAMES_A_KEYFRAME = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipWork:
    """Decoding of one clip, or of several of one codec.

    `read_pixels` are those of all frames that are decoded (from the first to the last that is wanted, where these are
    not keyframes), `sampled_pixels` those of the wanted ones (a repeated one counts once), at the size of the source;
    `row_pixels` those that become patch rows. `plane_pixels` are the sampled ones of clips that may travel as planes,
    and `plane_row_pixels` what a GPU then makes of them: both are in the counts before them, too.
    """

    num_clips: int
    read_pixels: int
    sampled_pixels: int
    row_pixels: int
    plane_pixels: int = 0
    plane_row_pixels: int = 0

    @classmethod
    def of(cls, clip: Clip, *, keyframes_only: bool = False) -> Self:
        """Count one clip."""
        frame_pixels = clip.width * clip.height
        num_sampled = len(set(clip.frame_indices))
        num_read = clip.frame_indices[-1] - clip.frame_indices[0] + 1
        if keyframes_only:
            num_read = min(num_read, _FRAMES_A_KEYFRAME * num_sampled)
        sampled_pixels = frame_pixels * num_sampled
        row_pixels = clip.num_patches * PATCH_SIZE**2 * temporal_size(clip.media_type)
        may_be_planar = clip.plane_size is not None
        return cls(
            num_clips=1,
            read_pixels=frame_pixels * num_read,
            sampled_pixels=sampled_pixels,
            row_pixels=row_pixels,
            plane_pixels=sampled_pixels if may_be_planar else 0,
            plane_row_pixels=row_pixels if may_be_planar else 0,
        )

    def __add__(self, other: "ClipWork") -> "ClipWork":
        return ClipWork(
            num_clips=self.num_clips + other.num_clips,
            read_pixels=self.read_pixels + other.read_pixels,
            sampled_pixels=self.sampled_pixels + other.sampled_pixels,
            row_pixels=self.row_pixels + other.row_pixels,
            plane_pixels=self.plane_pixels + other.plane_pixels,
            plane_row_pixels=self.plane_row_pixels + other.plane_row_pixels,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A plan, or a part of one, as work.

    `num_videos` of the sources are videos, `hashed_bytes` are read for the content ids, `by_codec` is sorted by name,
    `flops` counts a multiply-add twice.
    """

    num_sources: int
    num_videos: int
    hashed_bytes: int
    num_requests: int
    flops: int
    by_codec: tuple[tuple[str, ClipWork], ...]

    @property
    def num_clips(self) -> int:
        """Clips that are decoded: byte-identical files count once."""
        return sum(work.num_clips for _, work in self.by_codec)

    @classmethod
    def of(
        cls,
        requests: Iterable[RequestPlan],
        sources: Iterable[SourceRecord],
        vision: VisionSpec,
        *,
        keyframes_only: bool = False,
    ) -> Self:
        """Add up requests and the sources whose headers are read. Cost: one pass, nothing kept."""
        totals: dict[str, ClipWork] = {}
        num_requests = flops = num_sources = num_videos = hashed_bytes = 0
        for request in requests:
            num_requests += 1
            flops += vision.flops(request.num_patches, request.patches_per_frame)
            for clip in request.clips:
                codec, work = clip.codec or UNKNOWN_CODEC, ClipWork.of(clip, keyframes_only=keyframes_only)
                totals[codec] = totals[codec] + work if codec in totals else work
        for source in sources:
            num_sources += 1
            num_videos += source.media_type == MediaType.VIDEO
            hashed_bytes += _hashed_bytes(source.num_bytes)
        return cls(
            num_sources=num_sources,
            num_videos=num_videos,
            hashed_bytes=hashed_bytes,
            num_requests=num_requests,
            flops=flops,
            by_codec=tuple(sorted(totals.items())),
        )

    def __add__(self, other: "Work") -> "Work":
        totals = dict(self.by_codec)
        for codec, work in other.by_codec:
            totals[codec] = totals[codec] + work if codec in totals else work
        return Work(
            num_sources=self.num_sources + other.num_sources,
            num_videos=self.num_videos + other.num_videos,
            hashed_bytes=self.hashed_bytes + other.hashed_bytes,
            num_requests=self.num_requests + other.num_requests,
            flops=self.flops + other.flops,
            by_codec=tuple(sorted(totals.items())),
        )


def _hashed_bytes(num_bytes: int) -> int:
    return num_bytes if num_bytes <= WHOLE_LIMIT_BYTES else SAMPLED_BYTES


NO_WORK = Work(num_sources=0, num_videos=0, hashed_bytes=0, num_requests=0, flops=0, by_codec=())
