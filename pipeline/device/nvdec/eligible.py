"""Which plan rows the GPU's decoders may be handed, by the plan alone: nothing is opened.

What only the file tells (interlacing, 10 bits, a display matrix) refuses a clip later, at the price of decoding it on
the encode actor's machine; so the rule here leaves out what is known to be refused. No torch, for decode workers.
"""

from pipeline.media.container import MediaType
from pipeline.media.grid import frame_bytes
from pipeline.media.inside import container_of, inside_of
from pipeline.media.location import local_path
from pipeline.plan.schema import Clip, RequestPlan
from pipeline.sources.items import SourceItem

LEAST_SIDE = {"h264": 64, "hevc": 144}  # pixels; NVDEC's own least are 48 and 144 (H100)
MOST_PIXELS = 4096 * 4096
MOST_BYTES = 1 << 30  # of one clip's planes: each decoder keeps as much device memory as its largest clip took


def may_decode_on_device(plan: RequestPlan) -> bool:
    """Whether every clip of a request is a local H.264 or HEVC video of a size that NVDEC decodes."""
    return plan.media_type is MediaType.VIDEO and all(_may_decode(clip) for clip in plan.clips)


def _may_decode(clip: Clip) -> bool:
    if clip.codec not in LEAST_SIDE:
        return False
    has_even_sides = clip.width % 2 == 0 and clip.height % 2 == 0
    has_fitting_sides = min(clip.width, clip.height) >= LEAST_SIDE[clip.codec]
    return (
        has_even_sides
        and has_fitting_sides
        and clip.width * clip.height <= MOST_PIXELS
        and len(set(clip.frame_indices)) * frame_bytes(clip.height, clip.width) <= MOST_BYTES
        and all(_is_local(item) for item in clip.sources)
    )


def _is_local(item: SourceItem) -> bool:
    """A file of its own, or the member of a shard; a cell of a table is read through Arrow, which is not there."""
    is_file = inside_of(item.uri) is None or item.byte_range is not None
    return is_file and local_path(container_of(item.uri)) is not None
