"""A decoder process is bounded by the size of its pictures, not by the length of a clip or a run."""

from pathlib import Path

import pytest

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.media.sandbox import Sandbox, SharedBuffer
from tests.media.helpers import evenly, make_job, probe
from tests.media_factory import make_video

_HEAP_BYTES = 8_000_000
_INDEX_BYTES = 100  # a frame of the file
_FRAGMENTS = 2  # a heap that has had large pieces may hold each of them twice
_ROW_BYTES, _PATCH_PIXELS = 1536, 256

# Frames that the decoder may hold: x264's references, and as many as wait for their turn to be shown.
_FEW = {"preset": "ultrafast", "bf": "3"}, 6
_MANY = {"x264-params": "ref=16:bframes=8:b-pyramid=none:scenecut=0"}, 25


def bound_bytes(num_frames: int, pixels: int, resized_pixels: int, num_held: int) -> int:
    """What docs/decode.md gives as the most that decoding adds to a decoder process."""
    pictures = (1.5 * num_held + 9) * pixels + 12 * resized_pixels
    return int(_HEAP_BYTES + _INDEX_BYTES * num_frames + _FRAGMENTS * pictures)


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names in /proc/<pid>/status."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name.rstrip(":"): int(rest[0]) * 1024 for name, *rest in lines if rest[-1:] == ["kB"]}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("memory")
    small = {"width": 160, "height": 96, "gop": 250}
    return {
        "short": make_video(folder / "short.mp4", num_frames=24, options=_FEW[0], **small),
        "long": make_video(folder / "long.mp4", num_frames=1500, options=_FEW[0], **small),
        "large": make_video(folder / "large.mp4", num_frames=30, width=960, height=544, gop=250, options=_FEW[0]),
        "referring": make_video(
            folder / "referring.mp4", num_frames=60, width=640, height=352, gop=250, options=_MANY[0]
        ),
    }


@pytest.mark.parametrize(
    ("name", "first", "count", "size", "num_held"),
    [
        ("short", 0, 4, (96, 160), _FEW[1]),
        ("long", 1476, 4, (96, 160), _FEW[1]),
        ("long", 0, 1500, (96, 160), _FEW[1]),
        ("large", 0, 4, (544, 960), _FEW[1]),
        ("large", 0, 30, (288, 512), _FEW[1]),
        ("referring", 0, 60, (352, 640), _MANY[1]),
    ],
    ids=["short", "end-of-long", "all-of-long", "large", "large-made-small", "many-references"],
)
def test_decoding_adds_no_more_memory_than_its_pictures_need(videos, name, first, count, size, num_held):
    info = probe(videos[name])
    indices = [first + index for index in evenly(info.num_frames - first, count)]
    job = make_job(videos[name], info, indices, *size)
    num_bytes = -(-count // 2) * size[0] * size[1] // _PATCH_PIXELS * _ROW_BYTES
    with Sandbox(DecodeConfig(timeout_seconds=60), ImagesConfig(), LimitsConfig()) as box:
        warm_up = make_job(videos["short"], probe(videos["short"]), [0, 1], 32, 32)
        box.decode(warm_up, SharedBuffer(4 * _ROW_BYTES), 0)
        pid = box.pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        before = memory_of(pid)
        assert box.decode(job, SharedBuffer(num_bytes), 0).num_bytes == num_bytes
        after = memory_of(pid)
    assert box.pid != pid
    most = bound_bytes(info.num_frames, info.width * info.height, size[0] * size[1], num_held)
    assert after["VmHWM"] - before["VmRSS"] < most
    assert after["RssShmem"] == before["RssShmem"]  # rows are written to their file: no page of it is the decoder's
