"""What only a GPU with decoders can show: their planes, rows and vectors are the CPU decoder's, to the bit."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import Config, embed
from pipeline.config import DecodeConfig, LimitsConfig
from pipeline.device.nvdec.process import NvdecProcess
from pipeline.device.nvdec.session import RefusedError
from pipeline.device.nvdec.worker_process import EndedError
from pipeline.device.row_queue import RowQueue
from pipeline.device.transfer import make_transfer
from pipeline.media.container import ClipJob
from pipeline.plan.schema import plan_table
from pipeline.request.build import build_request, clip_job
from pipeline.request.deferred import deferred_request
from pipeline.request.table import unwrap_request
from pipeline.stages.decode import Decode, make_sandbox
from pipeline.stages.device_decode import DeviceDecode
from pipeline.stages.encode import Encode
from tests.cuda import CUDA
from tests.device.nvdec_factories import decode_planes, make_clips, make_config, make_plan
from tests.flow.tables import embeddings_of
from tests.media.conftest import VIDEOS
from tests.media_factory import make_video

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LARGE = {"width": 192, "height": 160}
DECODED = ["h264.mp4", "b_frames.mp4", "many_gops.mp4", "open_gop.mp4", "h264.mkv", "h264.ts", "full_range.mkv"]
REFUSED = ["interlaced.mp4", "quarter_turn.mp4", "vp9.webm", "mpeg4.avi"]


@pytest.fixture(scope="module")
def decoders() -> Iterator[NvdecProcess]:
    process = NvdecProcess(CUDA, 2, DecodeConfig(), LimitsConfig())
    yield process
    process.close()


@pytest.fixture
def mortal() -> Iterator[NvdecProcess]:
    process = NvdecProcess(CUDA, 2, DecodeConfig(timeout_seconds=3, timeout_per_video_second=0), LimitsConfig())
    yield process
    process.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("nvdec")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else make_video(path, **{**LARGE, **VIDEOS[name]})

    return get


def job_of(path: Path) -> tuple[ClipJob, tuple[int, int]]:
    (clip,) = make_clips(path)
    return clip_job(clip, clip.sources[0]), (clip.width, clip.height)


def planes_on_device(process: NvdecProcess, path: Path) -> np.ndarray:
    job, size = job_of(path)
    with process.frames(job, size) as frames:
        return frames.planes.cpu().numpy()


@pytest.mark.parametrize("name", [*DECODED, "hevc.mp4"])
def test_luma_and_chroma_are_those_of_the_cpu_decoder(name, video, decoders):
    job, _ = job_of(video(name))
    expected = decode_planes(video(name))
    found = planes_on_device(decoders, video(name))
    assert np.array_equal(found, [expected[number] for number in job.frame_indices])


@pytest.mark.parametrize("name", REFUSED)
def test_a_clip_that_would_differ_is_refused(name, video, decoders):
    with pytest.raises(RefusedError):
        planes_on_device(decoders, video(name))
    assert not decoders.is_down
    assert len(planes_on_device(decoders, video("h264.mp4")))


def test_a_damaged_clip_is_refused(video, decoders, tmp_path):
    data = bytearray(video("b_frames.mp4").read_bytes())
    start = data.index(b"mdat") + len(data) // 4
    data[start : start + 2000] = os.urandom(2000)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    with pytest.raises(RefusedError):
        planes_on_device(decoders, damaged)


def test_rows_are_those_of_the_cpu_decoder_whoever_served_the_clip(video):
    plan = make_plan(*(video(name) for name in ["h264.mp4", "interlaced.mp4", "b_frames.mp4", "full_range.mkv"]))
    config = make_config()
    with make_sandbox(config, None) as sandbox:
        expected = unwrap_request(build_request(plan, sandbox))
    decode = DeviceDecode(
        config,
        CUDA,
        NvdecProcess(CUDA, 2, config.decode, config.limits),
        make_transfer(CUDA, num_slots=2),
        RowQueue(CUDA),
    )
    found = decode(plan)
    decode.close()
    assert found.meta.clips == expected.meta.clips
    assert found.meta.decoders == ("nvdec", "pyav", "nvdec", "nvdec")
    assert found.num_copies == 1
    rows = expected.buffer[expected.meta.layout.rows_start :].reshape(found.rows.shape)
    assert np.array_equal(found.rows.cpu().numpy(), rows)


def test_a_deferred_request_has_the_vectors_of_a_decoded_one(video):
    plan = make_plan(video("h264.mp4"), video("b_frames.mp4"))
    told: list[str] = []
    encode = Encode(make_config(), "random:tiny", takes_deferred=True, on_decoded=told.append)
    with Decode(make_config()) as decode:
        expected = encode(decode(plan_table([plan])))
    found = encode(deferred_request(plan))
    encode.close()
    assert told == [plan.request_id]
    assert found["vectors"][0] == expected["vectors"][0]
    assert (found["num_device_copies"][0].as_py(), found["transfer"][0].as_py()) == (0, "device")


def test_a_clip_whose_rows_find_no_memory_is_decoded_on_the_cpu(video, monkeypatch):
    plan, config = make_plan(video("h264.mp4"), video("b_frames.mp4")), make_config()
    decoders = NvdecProcess(CUDA, 2, config.decode, config.limits)
    decode = DeviceDecode(config, CUDA, decoders, make_transfer(CUDA, num_slots=2), RowQueue(CUDA))
    expected = decode(plan)
    assert expected.meta.decoders == ("nvdec",) * 2
    to_rgb, num_calls = decode._rows._maker.to_rgb, iter(range(1000))

    def scarce(frames):
        if next(num_calls) == 1:
            raise torch.OutOfMemoryError("as CUDA would")
        return to_rgb(frames)

    monkeypatch.setattr(decode._rows._maker, "to_rgb", scarce)
    found = decode(plan)
    decode.close()
    assert sorted(found.meta.decoders) == ["nvdec", "pyav"]
    assert torch.equal(found.rows, expected.rows)


def test_a_lane_that_grows_gives_back_what_it_had(video, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.device.nvdec.process._LEAST_BYTES", 2 << 20)
    freed: list[int] = []
    decoders = NvdecProcess(CUDA, 1, DecodeConfig(), LimitsConfig())
    free = decoders._driver.free
    monkeypatch.setattr(decoders._driver, "free", lambda address: (freed.append(address), free(address)))
    large = make_video(tmp_path / "large.mp4", width=1280, height=720)
    for path, num_freed in ((video("h264.mp4"), 0), (large, 1), (video("h264.mp4"), 1)):
        job, _ = job_of(path)
        expected = decode_planes(path)
        found = planes_on_device(decoders, path)
        assert np.array_equal(found, [expected[number] for number in job.frame_indices])
        assert len(freed) == num_freed
    decoders.close()
    assert len(set(freed)) == len(freed) == 2


def test_a_run_gives_the_same_table_with_the_gpus_decoders(video, tmp_path):
    paths = [str(video(name)) for name in [*DECODED, *REFUSED]]
    for gpu in ("never", "auto"):
        config = Config.from_values({"model": "random:tiny", "decode": {"gpu": gpu}})
        embed(paths, tmp_path / gpu, config=config, runner="local")
    never, auto = (embeddings_of(tmp_path / gpu).sort_by("clip_id") for gpu in ("never", "auto"))
    assert set(never["decoder"].to_pylist()) == {"pyav"}
    assert set(auto["decoder"].to_pylist()) == {"pyav", "nvdec"}
    assert auto.drop_columns(["decoder"]) == never.drop_columns(["decoder"])


def test_a_process_that_is_killed_or_hangs_refuses_its_clips_and_is_replaced(video, mortal):
    for end in (signal.SIGKILL, signal.SIGSTOP):
        assert mortal.pid is not None
        os.kill(mortal.pid, end)
        with pytest.raises(EndedError):
            planes_on_device(mortal, video("h264.mp4"))
        assert len(planes_on_device(mortal, video("h264.mp4")))


def test_a_process_that_keeps_ending_stays_down(video, mortal):
    for _ in range(3):
        assert mortal.pid is not None and not mortal.is_down
        os.kill(mortal.pid, signal.SIGKILL)
        with pytest.raises(RefusedError):
            planes_on_device(mortal, video("h264.mp4"))
        if not mortal.is_down:
            planes_on_device(mortal, video("h264.mp4"))
    with pytest.raises(RefusedError, match="ended 3 times"):
        planes_on_device(mortal, video("h264.mp4"))


def test_many_threads_share_the_decoders(video, decoders):
    expected = {name: planes_on_device(decoders, video(name)) for name in DECODED}
    found: dict[str, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: planes_on_device(decoders, video(name))}))
        for name in DECODED
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[name], expected[name]) for name in DECODED)
