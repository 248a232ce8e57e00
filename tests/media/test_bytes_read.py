"""How much of a file a clip reads: in an MP4 its index and what lies around the clip, wherever that is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.media.sandbox import Sandbox, SharedBuffer
from tests.media.helpers import make_job, probe
from tests.media_factory import make_video

_GOP = 50
_NUM_FRAMES = 3000
_BUFFERS_BYTES = 8 * 65_536  # of Python, FFmpeg and the demuxer's look at the file's beginning and end, more than once


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 seconds of MP4, its index behind the frames: 60 groups of pictures of about 200 kB."""
    options = {"preset": "ultrafast", "bf": "2", "x264-params": "scenecut=0:qp=8"}
    path = tmp_path_factory.mktemp("long") / "v.mp4"
    return make_video(path, num_frames=_NUM_FRAMES, fps=2, gop=_GOP, options=options)


@contextmanager
def counted(pid: int, read: list[int]) -> Iterator[None]:
    """Add what a process reads meanwhile, in bytes, whether from the disk or not."""

    def read_so_far() -> int:
        return int(Path(f"/proc/{pid}/io").read_text().split()[1])

    before = read_so_far()
    yield
    read.append(read_so_far() - before)


def largest_group_bytes(path: Path) -> int:
    groups: list[int] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.is_keyframe:
                groups.append(0)
            groups[-1] += packet.size
    return max(groups)


@pytest.mark.parametrize("middle", [_NUM_FRAMES // 2 + 20, _NUM_FRAMES - 4], ids=["middle", "end"])
def test_clip_of_a_long_mp4_reads_little_more_than_the_first_one_does(long_video, middle):
    info = probe(long_video)
    buffer = SharedBuffer(2 * 24 * 1536)
    read: list[int] = []
    for first in (0, middle):
        with Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), LimitsConfig()) as box:
            box.probe(str(long_video))
            with counted(box.pid, read):
                box.decode(make_job(long_video, info, range(first, first + 4)), buffer, 0)
    of_first, of_later = read
    # It begins up to one group of pictures before its own, which is read once for the index and once to be decoded.
    assert of_later < of_first + 4 * largest_group_bytes(long_video) + _BUFFERS_BYTES
    assert max(read) < long_video.stat().st_size / 4
