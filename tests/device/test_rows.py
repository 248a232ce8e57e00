"""Rows made of decoded planes equal those of the CPU decoder's RGB frames, step by step and as a whole."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.device.row_queue import RowQueue
from pipeline.device.rows import Frames, TorchRowMaker, colour_lookup, patch_rows
from pipeline.media.colour import colour_tables
from pipeline.media.container import MediaType
from pipeline.media.grid import grid_of, row_bytes
from pipeline.media.patchify import write_clip
from tests.device.nvdec_factories import colours_of, decode_planes
from tests.media_factory import decode_plainly, make_video

KINDS = {
    "limited.mp4": {},
    "full.mkv": {"pixels": "yuvj420p"},
    "hevc.mp4": {"codec": "libx265"},
    "wide.mp4": {"width": 98, "height": 62},
}


CPU = torch.device("cpu")


def frames_of(path: Path, numbers: Sequence[int] | None = None) -> Frames:
    """Frames of a video as NVDEC gives them."""
    planes = decode_planes(path)
    height, width = planes[0].shape[0] * 2 // 3, planes[0].shape[1]
    chosen = [planes[number].ravel() for number in (range(len(planes)) if numbers is None else numbers)]
    tables = colour_lookup(colour_tables(colours_of(path)), CPU)
    return Frames(
        planes=torch.from_numpy(np.stack(chosen)), height=height, width=width, tables=tables, takes_turns=True
    )


def rows_of(frames: Frames, order: Sequence[int], height: int, width: int) -> torch.Tensor:
    t, h, w = grid_of(MediaType.VIDEO, len(order), height, width)
    rows = torch.empty((t * h * w, row_bytes(MediaType.VIDEO)), dtype=torch.uint8)
    patch_rows(frames, order, rows, height, width, TorchRowMaker())
    return rows


@pytest.mark.parametrize("order", [[0, 3, 5], [0, 1, 1, 4], [2]], ids=["odd", "repeated", "one"])
@pytest.mark.parametrize("size", [(64, 96), (32, 64), (64, 160), (128, 96)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_planes_are_the_rows_of_frames(kind, size, order, tmp_path):
    path = make_video(tmp_path / kind, num_frames=8, **KINDS[kind])
    frames = decode_plainly(path)
    t, h, w = grid_of(MediaType.VIDEO, len(order), *size)
    expected = np.empty((t * h * w, row_bytes(MediaType.VIDEO)), np.uint8)
    write_clip([frames[number] for number in order], expected, MediaType.VIDEO, *size)
    distinct = list(dict.fromkeys(order))
    places = [distinct.index(number) for number in order]
    assert np.array_equal(rows_of(frames_of(path, distinct), places, *size).numpy(), expected)


def test_more_frames_than_are_made_at_once_stay_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.device.rows._BYTES_AT_ONCE", 7 * 3 * 64 * 96)
    frames = frames_of(make_video(tmp_path / "long.mp4", num_frames=40))
    parts = [rows_of(frames.part(start, start + 2), range(2), 64, 96) for start in range(0, 40, 2)]
    assert torch.equal(rows_of(frames, range(40), 64, 96), torch.cat(parts))


class RunsDry(TorchRowMaker):
    """A device whose memory is used up when colours are there."""

    def resize_columns(self, planes: torch.Tensor, size: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_frames_are_given_back_when_nothing_reads_them_any_more_though_rows_found_no_memory(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", num_frames=2)
    frames = frames_of(path)
    log: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            log.append(f"behind {stream}")

        def synchronize(self) -> None:
            log.append("waited")

    queue = RowQueue(CPU)
    queue._stream, queue._maker = "rows", RunsDry()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "compute")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    with pytest.raises(torch.OutOfMemoryError):
        queue.make(frames, range(2), 64, 64)
    assert log == ["behind rows", "waited"]
