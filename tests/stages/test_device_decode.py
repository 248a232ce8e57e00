"""Requests whose clips are decoded on the device, with planes that the CPU decoded instead of a GPU."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.device.row_queue import RowQueue
from pipeline.device.rows import Frames, TorchRowMaker
from pipeline.device.transfer import Arrived, HostTransfer, make_transfer
from pipeline.errors import ErrorCode, RequestError
from pipeline.media.attempts import Attempts
from pipeline.plan.schema import RequestPlan, plan_table
from pipeline.request.build import build_request
from pipeline.request.deferred import deferred_plan, deferred_request
from pipeline.request.table import Request, unwrap_request
from pipeline.stages.decode import Decode, make_sandbox
from pipeline.stages.device_decode import DeviceDecode, DeviceRequest
from pipeline.stages.encode import Encode
from tests.device.nvdec_factories import CpuDecoders, make_clips, make_config, make_plan
from tests.media_factory import make_video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(folder / f"{count}.mp4", num_frames=count) for count in (24, 30, 37)]


@pytest.fixture(scope="module")
def on_cpu(videos: list[Path]) -> DeviceRequest:
    """The same request by the CPU's decoders alone."""
    with make_sandbox(make_config(), None) as sandbox:
        request = unwrap_request(build_request(make_plan(*videos), sandbox))
    layout = request.meta.layout
    rows = request.buffer[layout.rows_start :].reshape(layout.num_patches, layout.row_bytes).copy()
    return DeviceRequest(meta=request.meta, rows=torch.from_numpy(rows), num_copies=0)


@pytest.fixture
def make() -> Iterator[Callable[[CpuDecoders], DeviceDecode]]:
    made: list[DeviceDecode] = []

    def build(decoders: CpuDecoders, attempts_uri: str | None = None) -> DeviceDecode:
        transfer = make_transfer(CPU, num_slots=1)
        made.append(DeviceDecode(make_config(), CPU, decoders, transfer, RowQueue(CPU), attempts_uri))
        return made[-1]

    yield build
    for decode in made:
        decode.close()


def test_a_request_is_the_one_that_the_cpu_decodes(videos, on_cpu, make):
    found = make(CpuDecoders())(make_plan(*videos))
    assert torch.equal(found.rows, on_cpu.rows)
    assert found.meta.clips == on_cpu.meta.clips
    assert found.meta.decoders == ("nvdec",) * 3
    assert (found.meta.failures, found.num_copies) == ((), 0)


def test_a_refused_clip_is_decoded_on_the_cpu_in_its_place(videos, on_cpu, make):
    found = make(CpuDecoders(refused=["30.mp4"]))(make_plan(*videos))
    assert torch.equal(found.rows, on_cpu.rows)
    assert found.meta.clips == on_cpu.meta.clips
    assert found.meta.decoders == ("nvdec", "pyav", "nvdec")


def test_a_clip_that_ends_the_gpus_decoders_is_never_given_to_them_again_until_that_is_lifted(
    videos, on_cpu, make, tmp_path
):
    folder = str(tmp_path / "attempts")

    def run(decoders: CpuDecoders) -> tuple[str, ...]:
        found = make(decoders, folder)(make_plan(*videos))
        assert torch.equal(found.rows, on_cpu.rows)
        return found.meta.decoders

    first, later, lifted = CpuDecoders(deadly=["30.mp4"]), CpuDecoders(), CpuDecoders()
    assert run(first) == run(first) == run(later) == ("nvdec", "pyav", "nvdec")
    assert (first.given.count("30.mp4"), later.given.count("30.mp4")) == (1, 0)
    Attempts(folder).forget_all()
    assert run(lifted) == ("nvdec",) * 3


def test_a_decode_worker_keeps_what_has_ended_a_gpus_decoders(videos, make, tmp_path):
    folder = str(tmp_path / "attempts")
    with Decode(make_config(), claim=lambda _: True, attempts_uri=folder) as decode:
        assert deferred_plan(decode(plan_table([make_plan(videos[1])]))) is not None
        make(CpuDecoders(deadly=["30.mp4"]), folder)(make_plan(videos[1]))
        assert deferred_plan(decode(plan_table([make_plan(videos[1])]))) is None
        assert deferred_plan(decode(plan_table([make_plan(videos[0])]))) is not None


def test_a_clip_that_nobody_can_decode_is_a_failure_and_leaves_no_hole(videos, on_cpu, make, tmp_path):
    first, gone, last = make_clips(*videos)
    plan = RequestPlan.of([first, replace(gone, source_uris=(str(tmp_path / "gone.mp4"),)), last])
    found = make(CpuDecoders(refused=["gone.mp4"]))(plan)
    assert found.meta.clips == (first, last)
    assert [failure.code for failure in found.meta.failures] == [ErrorCode.UNREADABLE]
    end = first.num_patches
    assert torch.equal(found.rows, torch.cat([on_cpu.rows[:end], on_cpu.rows[-last.num_patches :]]))


def test_a_file_that_changed_since_it_was_planned_is_not_decoded(videos, make, tmp_path):
    path = tmp_path / "changing.mp4"
    path.write_bytes(videos[0].read_bytes())
    plan = make_plan(path)
    path.write_bytes(videos[1].read_bytes())
    found = make(CpuDecoders())(plan)
    assert [failure.code for failure in found.meta.failures] == [ErrorCode.CHANGED_MEDIA]
    assert len(found.rows) == 0


def test_frames_that_are_wanted_twice_are_decoded_once(videos, make):
    (clip,) = make_clips(videos[0])
    twice = replace(clip, frame_indices=(0, 7, 7, 7), grid_thw=(2, *clip.grid_thw[1:]))
    with make_sandbox(make_config(), None) as sandbox:
        expected = unwrap_request(build_request(RequestPlan.of([twice]), sandbox))
    found = make(CpuDecoders())(RequestPlan.of([twice]))
    assert np.array_equal(found.rows.numpy().ravel(), expected.buffer[expected.meta.layout.rows_start :])


def test_decoders_end_with_the_stage_and_take_nothing_when_they_are_down(make):
    decoders = CpuDecoders()
    decode = make(decoders)
    assert decode.num_requests == 2
    decoders.is_down = True
    assert decode.num_requests == 0
    decode.close()
    assert decoders.is_closed


def test_a_decode_worker_hands_on_what_it_may_and_is_told_to(videos):
    plan, told = make_plan(*videos), []

    def claim(request_id: str) -> bool:
        told.append(request_id)
        return len(told) == 1

    with Decode(make_config(), claim=claim) as decode:
        deferred, decoded = (decode(plan_table([plan])) for _ in range(2))
    assert told == [plan.request_id] * 2
    assert deferred_plan(deferred) == plan
    assert deferred_plan(decoded) is None
    assert unwrap_request(decoded).meta.decoders == ("pyav",) * 3
    assert deferred.schema == decoded.schema


def test_a_decode_worker_does_not_ask_for_what_no_gpu_takes(tmp_path):
    plan = make_plan(make_video(tmp_path / "a.avi", codec="mpeg4"))
    with Decode(make_config(), claim=lambda _: pytest.fail("asked")) as decode:
        assert deferred_plan(decode(plan_table([plan]))) is None


def test_an_encoder_without_decoders_has_deferred_requests_decoded_on_the_cpu(videos, tmp_path):
    told: list[str] = []
    encode = Encode(make_config(encode={"device": "cpu"}), "random:tiny", takes_deferred=True, on_decoded=told.append)
    plan = RequestPlan.of([*make_clips(*videos), replace(make_clips(videos[0])[0], source_uris=(str(tmp_path),))])
    with Decode(make_config()) as decode:
        expected = encode(decode(plan_table([plan])))
    assert (encode.num_device_requests, told) == (0, [])
    found = encode(deferred_request(plan))
    encode.close()
    assert told == [plan.request_id]
    for name in ("clips", "decoders", "failures", "vectors", "vector_counts", "transfer"):
        assert found[name] == expected[name], name


class ScarceMaker(TorchRowMaker):
    """A device that has no memory for rows at its second call."""

    def __init__(self) -> None:
        self.num_calls = 0

    def to_rgb(self, frames: Frames) -> torch.Tensor:
        self.num_calls += 1
        if self.num_calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().to_rgb(frames)


def test_a_clip_whose_rows_find_no_device_memory_is_decoded_on_the_cpu(videos, on_cpu, make):
    decode = make(CpuDecoders())
    decode._rows._maker = ScarceMaker()
    found = decode(make_plan(*videos))
    assert torch.equal(found.rows, on_cpu.rows)
    assert sorted(found.meta.decoders) == ["nvdec", "nvdec", "pyav"]


class ScarceTransfer(HostTransfer):
    """A device that has no room for what the CPU decoded, a number of times."""

    def __init__(self, num_failures: int) -> None:
        self._num_failures = num_failures

    def __call__(self, request: Request) -> Arrived:
        self._num_failures -= 1
        if self._num_failures >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(request)


def test_rows_that_find_no_device_memory_are_put_together_when_nothing_else_is_under_way(videos, on_cpu, make):
    decode = make(CpuDecoders(refused=["30.mp4"]))
    decode._transfer = ScarceTransfer(1)
    found = decode(make_plan(*videos))
    assert torch.equal(found.rows, on_cpu.rows)
    assert found.meta.decoders == ("nvdec", "pyav", "nvdec")
    decode._transfer = ScarceTransfer(2)
    with pytest.raises(RequestError, match="does not fit into the device's memory, even by itself"):
        decode(make_plan(*videos))
