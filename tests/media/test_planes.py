"""Clips that travel as planes: they say what the decoder's frames are, and whatever planes cannot say stays rows."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media import planes
from pipeline.media.colour import ColourSpace, ColourTables, colour_tables
from pipeline.media.container import ClipJob, ClipReport
from pipeline.media.frames import open_frames
from pipeline.media.grid import TABLE_BYTES, frame_bytes, planes_bytes
from pipeline.media.planes import NotPlanarError, PlaneWriter, resizes_by_taps
from pipeline.media.resize import Taps, resize_taps
from pipeline.media.sandbox import Sandbox, SharedBuffer
from pipeline.media.worker import Worker
from tests.device.nvdec_factories import decode_planes
from tests.media.conftest import VIDEOS
from tests.media.helpers import damage, evenly, make_job, probe, rows_of
from tests.media_factory import make_animation, make_image, make_video, picture

ONLY_ROWS = {
    "10_bits.mp4": {"codec": "libx265", "pixels": "yuv420p10le"},
    "narrow_chroma.mp4": {"pixels": "yuv422p"},
    "full_chroma.mp4": {"pixels": "yuv444p"},
    "interlaced.mp4": VIDEOS["interlaced.mp4"],
    "quarter_turn.mp4": VIDEOS["quarter_turn.mp4"],
    "half_turn.mp4": VIDEOS["half_turn.mp4"],
}
PLANAR = [name for name in VIDEOS if name not in ONLY_ROWS and "odd_sides" not in name and "turn" not in name]


def planar_job(path: Path, indices: list[int], **changes: object) -> ClipJob:
    info = probe(path)
    return replace(make_job(path, info, indices), **({"plane_size": (info.height, info.width)} | changes))


def decode_planar(sandbox: Sandbox, job: ClipJob, offset: int = 256) -> tuple[bool, np.ndarray]:
    """Whether a clip came as planes, and what was written."""
    num_bytes = max(planes_bytes((len(job.frame_indices) + 1) // 2, *job.plane_size), 1 << 20)
    buffer = SharedBuffer(offset + num_bytes)
    report = sandbox.decode(job, buffer, offset)
    written = np.frombuffer(buffer.memory, np.uint8)
    assert not written[:offset].any()
    return report.is_planar, written[offset : offset + report.num_bytes]


def in_a_row(nv12: np.ndarray) -> np.ndarray:
    """Luma, U, V."""
    height = nv12.shape[0] * 2 // 3
    chroma = nv12[height:].reshape(-1, 2)
    return np.concatenate([nv12[:height].ravel(), chroma[:, 0], chroma[:, 1]])


@pytest.mark.parametrize("name", PLANAR)
def test_planes_are_the_decoders_own_and_become_the_rows_that_it_makes(made, sandbox, name):
    frames = decode_planes(made(name))
    indices = evenly(len(frames), 5)
    job = planar_job(made(name), indices)
    is_planar, written = decode_planar(sandbox, job)
    assert is_planar
    num_frames = len(indices) + len(indices) % 2
    found = written[TABLE_BYTES : TABLE_BYTES + num_frames * frame_bytes(*job.plane_size)].reshape(num_frames, -1)
    for row, number in zip(found, [*indices, indices[-1]][:num_frames], strict=True):
        assert np.array_equal(row, in_a_row(frames[number]))
    rows = rows_of(sandbox, replace(job, plane_size=None))
    assert rows_from(written, job, rows.shape) == rows.tobytes()


@pytest.mark.parametrize("name", ONLY_ROWS)
def test_what_planes_cannot_say_comes_as_the_rows_that_it_always_was(tmp_path, sandbox, name):
    path = make_video(tmp_path / name, **ONLY_ROWS[name])
    job = planar_job(path, [0, 4, 9])
    is_planar, written = decode_planar(sandbox, job)
    assert not is_planar
    assert np.array_equal(written, rows_of(sandbox, replace(job, plane_size=None)).ravel())


def test_pictures_that_lie_upside_down_in_memory_come_as_rows(tmp_path, sandbox):
    path = tmp_path / "upside_down.mkv"
    with av.open(str(path), "w", format="matroska", options={"allow_raw_vfw": "1"}) as output:
        stream = output.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.codec_tag, stream.codec_context.extradata = "I420", b"BottomUp\0" * 2
        for number in range(6):
            frame = VideoFrame.from_ndarray(picture(number, 96, 64), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    job = planar_job(path, [0, 4])
    is_planar, written = decode_planar(sandbox, job)
    assert not is_planar
    assert np.array_equal(written, rows_of(sandbox, replace(job, plane_size=None)).ravel())


def write_job(worker: Worker, job: ClipJob) -> tuple[ClipReport, np.ndarray]:
    buffer = SharedBuffer(1 << 20)
    report = worker._decode(job, buffer.handle, 0)
    return report, np.frombuffer(buffer.memory, np.uint8)[: report.num_bytes]


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the clips that were opened, in this process."""
    names: list[str] = []

    def noted(job: ClipJob, *others: object) -> object:
        names.append(Path(job.uri).name)
        return open_frames(job, *others)

    monkeypatch.setattr("pipeline.media.worker.open_frames", noted)
    return names


def test_a_clip_that_cannot_be_planes_is_decoded_once_and_goes_on_where_the_last_one_ended(tmp_path, opened):
    path = make_video(tmp_path / "turned.mp4", num_frames=60, gop=60, rotation=180)
    worker = Worker(DecodeConfig(), ImagesConfig(), LimitsConfig())
    first = planar_job(path, [0, 8, 16], following=(24, 32))
    report, _ = write_job(worker, first)
    assert not report.is_planar
    assert worker._cache._kept is not None
    report, rows = write_job(worker, planar_job(path, [24, 32]))
    assert not report.is_planar
    assert opened == ["turned.mp4"] * 2
    alone = Worker(DecodeConfig(), ImagesConfig(), LimitsConfig())
    assert np.array_equal(rows, write_job(alone, planar_job(path, [24, 32], plane_size=None))[1])


def test_a_clip_whose_colours_change_in_the_middle_is_decoded_again_into_rows(made, opened, monkeypatch):
    job, kinds = planar_job(made("h264.mp4"), [0, 5, 9]), iter("aaab")
    monkeypatch.setattr(planes, "_kind_of", lambda frame: (next(kinds),))
    worker = Worker(DecodeConfig(), ImagesConfig(), LimitsConfig())
    report, rows = write_job(worker, job)
    assert not report.is_planar
    assert opened == ["h264.mp4"] * 2
    assert np.array_equal(rows, write_job(worker, replace(job, plane_size=None))[1])


def test_frames_of_another_size_than_was_planned_come_as_rows(made, sandbox):
    job = replace(planar_job(made("h264.mp4"), [0, 4]), plane_size=(62, 98))
    assert not decode_planar(sandbox, job)[0]


def test_decord_gives_rows(made):
    with Sandbox(DecodeConfig(video="decord"), ImagesConfig(), LimitsConfig()) as box:
        assert not decode_planar(box, planar_job(made("h264.mp4"), [0, 4]))[0]


@pytest.mark.parametrize("lost", [[9], [3, 14, 15, 31]])
def test_damaged_video_has_the_frames_that_its_rows_are_of(tmp_path, sandbox, lost, made):
    path = damage(made("many_gops.mp4"), tmp_path / "damaged.mp4", lost)
    job = planar_job(path, [0, 5, 11, 20, 39])
    (is_planar, written), rows = decode_planar(sandbox, job), rows_of(sandbox, replace(job, plane_size=None))
    assert is_planar
    assert rows_from(written, job, rows.shape) == rows.tobytes()


def rows_from(written: np.ndarray, job: ClipJob, shape: tuple[int, ...]) -> bytes:
    """Patch rows of a clip's planes, in plain torch."""
    import torch

    from pipeline.device.rows import Frames, TorchRowMaker, patch_rows

    height, width = job.plane_size
    num_frames = 2 * ((len(job.frame_indices) + 1) // 2)
    stop = TABLE_BYTES + num_frames * frame_bytes(height, width)
    values = torch.from_numpy(written.copy())
    frames = Frames(
        planes=values[TABLE_BYTES:stop].view(num_frames, -1),
        height=height,
        width=width,
        tables=values[:TABLE_BYTES].view(torch.int16).view(5, 256),
        takes_turns=False,
    )
    rows = torch.empty(shape, dtype=torch.uint8)
    patch_rows(frames, range(num_frames), rows, job.resized_height, job.resized_width, TorchRowMaker())
    return rows.numpy().tobytes()


def test_a_medium_that_fails_fails_as_it_does_into_rows(tmp_path, sandbox, made):
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(made("h264.mkv").read_bytes()[:2000])
    job = replace(planar_job(made("h264.mkv"), [0, 39]), uri=str(cut))
    for wanted in (job, replace(job, plane_size=None)):
        with pytest.raises(MediaError) as error:
            sandbox.decode(wanted, SharedBuffer(1 << 20), 0)
        assert error.value.code is ErrorCode.TRUNCATED_MEDIA


def test_animations_and_pictures_are_never_planes(tmp_path):
    images = ImagesConfig(animated="video")
    with Sandbox(DecodeConfig(), images, LimitsConfig()) as box:
        animation = make_animation(tmp_path / "a.gif")
        info = probe(animation, images=images)
        job = replace(make_job(animation, info, [0, 1]), plane_size=(info.height, info.width))
        assert not decode_planar(box, job)[0]


def frame_of(pixel_format: str = "yuv420p", *, height: int = 64, width: int = 96, matrix: int = 1, seed: int = 0):
    random = np.random.default_rng(seed)
    frame = VideoFrame(width, height, pixel_format)
    for plane in frame.planes:
        plane.update(random.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    frame.colorspace, frame.color_range = matrix, 1
    return frame


def write(frames: list[VideoFrame], writer: PlaneWriter | None = None) -> np.ndarray:
    slots = np.empty((len(frames), 1, frame_bytes(64, 96)), np.uint8)
    (writer or PlaneWriter()).write(frames, 64, 96, slots)
    return slots


@pytest.mark.parametrize(
    "changes",
    [{"matrix": 6}, {"pixel_format": "yuvj420p"}, {"pixel_format": "yuv422p"}, {"height": 62}, {"width": 98}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_clip_whose_frames_change_is_none_of_planes(changes):
    with pytest.raises(NotPlanarError):
        write([frame_of(), frame_of(**changes)])


def test_colours_that_are_not_what_the_tables_say_are_none_of_planes(monkeypatch):
    true = colour_tables(ColourSpace(pixel_format="yuv420p", matrix=1, colour_range=1))
    wrong = ColourTables(**{**{name: getattr(true, name) for name in true.__slots__}, "red_v": true.red_v + 1})
    monkeypatch.setattr(planes, "colour_tables", lambda space: wrong)
    writer = PlaneWriter()
    for _ in range(2):
        with pytest.raises(NotPlanarError):
            write([frame_of()], writer)


def test_a_kind_of_frames_is_looked_at_once(monkeypatch):
    asked: list[ColourSpace] = []
    monkeypatch.setattr(planes, "colour_tables", lambda space: asked.append(space) or colour_tables(space))
    writer = PlaneWriter()
    for matrix in (1, 1, 6, 1):
        write([frame_of(matrix=matrix)], writer)
    assert [space.matrix for space in asked] == [1, 6]


def test_another_resize_than_the_taps_keeps_planes_from_being_sent(monkeypatch):
    assert resizes_by_taps()
    resizes_by_taps.cache_clear()

    def shifted(size: int, new_size: int) -> Taps:
        taps = resize_taps(size, new_size)
        return replace(taps, weights=np.roll(taps.weights, 1, axis=1))

    monkeypatch.setattr(planes, "resize_taps", shifted)
    try:
        with pytest.raises(NotPlanarError):
            write([frame_of()])
    finally:
        resizes_by_taps.cache_clear()


def test_a_picture_is_no_clip_of_planes(tmp_path, sandbox):
    path = make_image(tmp_path / "a.png")
    info = probe(path)
    assert not decode_planar(sandbox, replace(make_job(path, info, [0]), plane_size=(64, 96)))[0]
