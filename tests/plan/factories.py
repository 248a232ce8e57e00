"""Sources, probed headers and clips with sensible defaults."""

from pipeline.checkpoint import Preprocessing
from pipeline.config import Config
from pipeline.media.container import MediaInfo, MediaType
from pipeline.media.safe_start import SafeStart
from pipeline.plan.clips import Recipe, plan_clips
from pipeline.plan.schema import Clip
from pipeline.sources.listing import SourceItem


def make_item(uri: str = "/media/a.mp4", **changes: object) -> SourceItem:
    return SourceItem(**({"uri": uri, "num_bytes": 1000, "modified_ns": 1} | changes))


def make_video(**changes: object) -> MediaInfo:
    values: dict[str, object] = {
        "media_type": MediaType.VIDEO,
        "width": 640,
        "height": 360,
        "num_frames": 250,
        "fps": 25.0,
        "frame_times_seconds": None,
        "codec": "h264",
    }
    return MediaInfo(**(values | changes))


def make_image(**changes: object) -> MediaInfo:
    return make_video(**({"media_type": MediaType.IMAGE, "num_frames": 1, "fps": None, "codec": "PNG"} | changes))


def make_start(number: int) -> SafeStart:
    return SafeStart(
        number=number, pts=40 * number, cluster_position=1000 * number, position=1000 * number + 20, num_bytes=900
    )


def make_recipe(**sections: dict[str, object]) -> Recipe:
    return Recipe(preprocessing=Preprocessing(), config=Config.from_values(sections))


def make_clip(uri: str = "/media/a.mp4", source_id: str = "b2-a", **changes: object) -> Clip:
    (clip,) = plan_clips(make_item(uri), source_id, make_video(**changes), make_recipe())
    return clip
