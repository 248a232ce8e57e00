"""Clips of one media type and one (h, w) fill requests up to a patch budget, in the order they come.

Next-fit: a request is closed by the first clip that does not fit. Clips of one file stay together, so its
decoder reads on instead of starting again; first-fit would pack a little tighter and scatter them. Videos of one codec
keep together too: a GPU takes a request only if it decodes all of it, and one VP9 clip would keep it from the others.
"""

from collections.abc import Iterable, Iterator

from pipeline.media.container import MediaType
from pipeline.plan.schema import Clip, RequestPlan

Alike = tuple[MediaType, str | None, int, int]


def pack(clips: Iterable[Clip], max_patches: int) -> Iterator[RequestPlan]:
    """Group clips into requests of at most `max_patches` patches; a larger clip is a request of its own.

    Deterministic for the same clips in the same order. Holds one open request a codec and shape.
    """
    waiting: dict[Alike, list[Clip]] = {}
    filled: dict[Alike, int] = {}
    for clip in clips:
        codec = clip.codec if clip.media_type is MediaType.VIDEO else None
        alike = (clip.media_type, codec, clip.grid_thw[1], clip.grid_thw[2])
        group = waiting.setdefault(alike, [])
        if group and filled[alike] + clip.num_patches > max_patches:
            yield RequestPlan.of(group)
            group = waiting[alike] = []
        filled[alike] = clip.num_patches + (filled[alike] if group else 0)
        group.append(clip)
    yield from (RequestPlan.of(group) for group in waiting.values())
