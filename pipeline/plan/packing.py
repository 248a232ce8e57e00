"""Clips of one media type and one (h, w) fill requests up to a patch budget, in the order they come.

Next-fit: a request is closed by the first clip that does not fit. Clips of one file stay together, so its
decoder reads on instead of starting again; first-fit would pack a little tighter and scatter them.
"""

from collections.abc import Iterable, Iterator

from pipeline.media.container import MediaType
from pipeline.plan.schema import Clip, RequestPlan

Shape = tuple[MediaType, int, int]


def pack(clips: Iterable[Clip], max_patches: int) -> Iterator[RequestPlan]:
    """Group clips into requests of at most `max_patches` patches; a larger clip is a request of its own.

    Deterministic for the same clips in the same order. Holds one open request a shape.
    """
    waiting: dict[Shape, list[Clip]] = {}
    filled: dict[Shape, int] = {}
    for clip in clips:
        shape = (clip.media_type, clip.grid_thw[1], clip.grid_thw[2])
        group = waiting.setdefault(shape, [])
        if group and filled[shape] + clip.num_patches > max_patches:
            yield RequestPlan.of(group)
            group = waiting[shape] = []
        filled[shape] = clip.num_patches + (filled[shape] if group else 0)
        group.append(clip)
    yield from (RequestPlan.of(group) for group in waiting.values())
