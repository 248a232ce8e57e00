"""What the encoder would see of one file: its clips, their patch rows, and a picture of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Config
from pipeline.errors import MediaError
from pipeline.flow.local import LocalRunner
from pipeline.flow.run import plan_only
from pipeline.media.container import MediaType
from pipeline.media.grid import MERGE_SIZE, NUM_CHANNELS, PATCH_SIZE
from pipeline.plan.schema import Clip, Failure, RequestPlan, plan_table
from pipeline.request.table import Request, unwrap_request
from pipeline.stages.decode import Decode

_TEMPORAL = 2  # frames of a patch row as the encoder sees it, images included
_SHEET_COLUMNS = 6
_SHEET_CELL = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InspectedClip:
    """One clip as it would be encoded.

    `patch_rows` is uint8 (num_patches, 1536) in the official order; an image's single frame is there twice,
    as the encoder sees it.
    """

    clip: Clip
    decoder: str
    patch_rows: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        """What `patchwire inspect` prints."""
        clip = self.clip
        return {
            "media_type": clip.media_type,
            "clip_index": clip.clip_index,
            "start_seconds": clip.start_seconds,
            "end_seconds": clip.end_seconds,
            "width": clip.width,
            "height": clip.height,
            "fps": clip.fps,
            "num_frames": clip.num_frames,
            "frame_indices": list(clip.frame_indices),
            "timestamps_seconds": list(clip.timestamps_seconds),
            "resized_height": clip.resized_height,
            "resized_width": clip.resized_width,
            "grid_thw": list(clip.grid_thw),
            "num_patches": clip.num_patches,
            "decoder": self.decoder,
        }

    def frames(self) -> NDArray[np.uint8]:
        """The resized frames that the patch rows were cut from: uint8 (2 * t, height, width, 3)."""
        t, h, w = self.clip.grid_thw
        blocks = self.patch_rows.reshape(
            t, h // MERGE_SIZE, w // MERGE_SIZE, MERGE_SIZE, MERGE_SIZE, NUM_CHANNELS, _TEMPORAL, PATCH_SIZE, PATCH_SIZE
        )
        ordered = blocks.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
        return ordered.reshape(t * _TEMPORAL, h * PATCH_SIZE, w * PATCH_SIZE, NUM_CHANNELS)


def inspect_media(source: str, config: Config) -> Iterator[InspectedClip]:
    """Plan and decode one source as a run would, clip by clip in order.

    Raises: MediaError for the first clip that a run would write an error row for.
    """
    with LocalRunner(config) as runner:
        yield from inspect_with(runner, source, config)


def inspect_with(runner: LocalRunner, source: str, config: Config) -> Iterator[InspectedClip]:
    """As `inspect_media`, in a decoder process that is there already."""
    plans, _ = plan_only([source], config, runner)
    decode = Decode(config, runner.sandbox)
    for plan in plans:
        _raise_first(plan.failures)
        for clip in sorted((clip for request in plan.requests for clip in request.clips), key=_place):
            request = unwrap_request(decode(plan_table([RequestPlan.of([clip])])))
            _raise_first(request.meta.failures)
            yield InspectedClip(clip=clip, decoder=request.meta.decoders[0], patch_rows=_full_rows(request))


def _place(clip: Clip) -> tuple[str, int]:
    return clip.source_uris[0], clip.clip_index


def _raise_first(failures: Sequence[Failure]) -> None:
    for failure in failures:
        raise MediaError(failure.code, failure.message, failure.stage)


def _full_rows(request: Request) -> NDArray[np.uint8]:
    layout = request.meta.layout
    rows = request.buffer[layout.rows_start :].reshape(layout.num_patches, layout.row_bytes)
    if request.meta.media_type is MediaType.VIDEO:
        return rows
    single = rows.reshape(layout.num_patches, NUM_CHANNELS, 1, PATCH_SIZE * PATCH_SIZE)
    return np.repeat(single, _TEMPORAL, axis=2).reshape(layout.num_patches, -1)


def contact_sheet(clips: Sequence[InspectedClip]) -> Image.Image:
    """All frames of the clips in reading order, each within 256 x 256 pixels."""
    frames = [frame for clip in clips for frame in clip.frames()[:: _step(clip)]]
    cells = [Image.fromarray(frame) for frame in frames]
    for cell in cells:
        cell.thumbnail((_SHEET_CELL, _SHEET_CELL))
    columns = min(_SHEET_COLUMNS, len(cells))
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    sheet = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height))
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * width, place // columns * height))
    return sheet


def _step(clip: InspectedClip) -> int:
    """An image is there twice for the encoder; once is enough for a person."""
    return _TEMPORAL if clip.clip.media_type is MediaType.IMAGE else 1
