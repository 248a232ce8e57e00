"""Rows made of decoded planes equal those of the CPU decoder's RGB frames, step by step and as a whole."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from pipeline.device.nvdec.rows import RowQueue, TorchRowMaker, patch_rows
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


@pytest.mark.parametrize("order", [[0, 3, 5], [0, 1, 1, 4], [2]], ids=["odd", "repeated", "one"])
@pytest.mark.parametrize("size", [(64, 96), (32, 64), (64, 160), (128, 96)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_planes_are_the_rows_of_frames(kind, size, order, tmp_path):
    path = make_video(tmp_path / kind, num_frames=8, **KINDS[kind])
    frames, planes = decode_plainly(path), decode_planes(path)
    t, h, w = grid_of(MediaType.VIDEO, len(order), *size)
    expected = np.empty((t * h * w, row_bytes(MediaType.VIDEO)), np.uint8)
    write_clip([frames[number] for number in order], expected, MediaType.VIDEO, *size)
    distinct = list(dict.fromkeys(order))
    on_device = torch.from_numpy(np.stack([planes[number] for number in distinct]))
    tables = colour_tables(colours_of(path))
    places = [distinct.index(number) for number in order]
    assert np.array_equal(patch_rows(on_device, places, tables, *size, TorchRowMaker()).numpy(), expected)


def test_more_frames_than_are_made_at_once_stay_in_order(tmp_path):
    path = make_video(tmp_path / "long.mp4", num_frames=40)
    planes = torch.from_numpy(np.stack(decode_planes(path)))
    tables, maker = colour_tables(colours_of(path)), TorchRowMaker()
    whole = patch_rows(planes, range(40), tables, 64, 96, maker)
    parts = [patch_rows(planes[start : start + 2], range(2), tables, 64, 96, maker) for start in range(0, 40, 2)]
    assert torch.equal(whole, torch.cat(parts))


class RunsDry(TorchRowMaker):
    """A device whose memory is used up when colours are there."""

    def resize_columns(self, planes: torch.Tensor, size: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_frames_are_given_back_when_nothing_reads_them_any_more_though_rows_found_no_memory(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", num_frames=2)
    planes, tables = torch.from_numpy(np.stack(decode_planes(path))), colour_tables(colours_of(path))
    log: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            log.append(f"behind {stream}")

        def synchronize(self) -> None:
            log.append("waited")

    queue = RowQueue(torch.device("cpu"))
    queue._stream, queue._maker = "rows", RunsDry()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    with pytest.raises(torch.OutOfMemoryError):
        queue.make(planes, range(2), tables, 64, 64)
    assert log == ["behind rows", "waited"]
