"""Which packets the GPU is fed, and what is refused before it has decoded anything; no GPU is asked."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from pipeline.config import DecodeConfig, LimitsConfig
from pipeline.device.nvdec.clip import ClipTools, decode_clip
from pipeline.device.nvdec.driver import DriverError, load_library
from pipeline.device.nvdec.process import NvdecProcess
from pipeline.device.nvdec.session import RefusedError
from pipeline.device.nvdec.worker_process import NvdecUnavailableError
from pipeline.media.colour import ColourSpace
from pipeline.media.grid import frame_bytes
from pipeline.media.location import open_binary
from pipeline.media.safe_start import SafeStart
from pipeline.media.video_pyav import IndexCache
from tests.device.nvdec_factories import colours_of
from tests.media.conftest import VIDEOS
from tests.media.helpers import make_job, probe
from tests.media_factory import make_video

ADDRESS = 4096


@dataclass
class Recording:
    """A session that decodes nothing and notes what it is given."""

    targets: dict[int, int] = field(default_factory=dict)
    fed: list[tuple[int, bool]] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    num_drained: int = 0

    def open(self, codec: str, size: tuple[int, int], targets: dict[int, int]) -> "Recording":
        self.codec, self.targets = codec, targets
        return self

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def feed(self, data: bytes, frame_number: int, *, is_wanted: bool) -> None:
        self.fed.append((frame_number, is_wanted))
        self.data.append(data)

    def drain(self) -> None:
        self.num_drained += 1

    def require_all(self) -> None:
        pass


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("clips")
    return lambda name: make_video(folder / name, **VIDEOS[name])


def feed(
    path: Path, indices: list[int], size: tuple[int, int] | None = None, origin: SafeStart | None = None
) -> tuple[Recording, ColourSpace]:
    info = probe(path)
    job = replace(make_job(path, info, indices), origin=origin)
    session, tools = Recording(), ClipTools(cache=IndexCache(), limits=LimitsConfig())
    with open_binary(str(path)) as file:
        return session, decode_clip(job, file, size or (info.width, info.height), ADDRESS, session, tools)


@pytest.mark.parametrize("name", ["h264.mp4", "b_frames.mp4", "h264.mkv", "h264.ts", "hevc.mp4"])
def test_wanted_frames_are_fed_with_their_numbers_as_byte_streams(name, video):
    session, colours = feed(video(name), [0, 9, 9, 17])
    assert sorted(number for number, is_wanted in session.fed if is_wanted) == [0, 9, 17]
    assert session.targets == {0: ADDRESS, 9: ADDRESS + frame_bytes(64, 96), 17: ADDRESS + 2 * frame_bytes(64, 96)}
    assert all(data.startswith((b"\0\0\0\1", b"\0\0\1")) for data in session.data)
    assert colours == colours_of(video(name))


def test_decoding_begins_at_the_keyframe_before_each_wanted_frame(video):
    session, _ = feed(video("many_gops.mp4"), [15, 75])
    numbers = [number for number, _ in session.fed]
    assert min(numbers) == 10
    assert not set(range(25, 65)) & set(numbers)
    assert session.num_drained == 2


def test_clip_with_a_safe_start_is_fed_from_there_or_from_the_beginning_if_it_is_not_there(tmp_path):
    path = make_video(tmp_path / "video.mkv", num_frames=150, gop=10, options={"x264-params": "scenecut=0:bframes=2"})
    (start, _) = probe(path).safe_starts
    expected, _ = feed(path, [85, 105])
    for origin in (start, replace(start, num_bytes=1)):
        session, _ = feed(path, [85, 105], origin=origin)
        assert (session.fed, session.data) == (expected.fed, expected.data)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("interlaced.mp4", "interlaced"),
        ("quarter_turn.mp4", "expected 4:2:0 of"),
        ("half_turn.mp4", "turned"),
        ("odd_sides.mp4", "odd sides"),
        ("vp9.webm", "codec vp9"),
        ("av1.mkv", "codec av1"),
    ],
)
def test_what_would_not_be_the_same_bytes_is_refused(name, reason, video):
    with pytest.raises(RefusedError, match=reason):
        feed(video(name), [0, 3])


def test_frames_of_another_size_than_planned_are_refused(video):
    with pytest.raises(RefusedError, match="expected 4:2:0 of"):
        feed(video("h264.mp4"), [0], size=(128, 64))


def test_frames_beyond_the_files_end_are_left_to_the_cpu(video):
    with pytest.raises(RefusedError, match="by their times"):
        feed(video("h264.mp4"), [0, 25])


def test_a_library_that_is_missing_is_named():
    with pytest.raises(DriverError, match=r"libnone\.so\.1"):
        load_library("libnone.so.1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_there_are_no_decoders():
    with pytest.raises(NvdecUnavailableError, match=r"libcuda\.so\.1"):
        NvdecProcess(torch.device("cuda", 0), 1, DecodeConfig(), LimitsConfig())
