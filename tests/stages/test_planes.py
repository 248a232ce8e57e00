"""Requests whose clips travel as planes, from the plan row to the vectors: nothing but the way there is different."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.config import Config
from pipeline.device.row_queue import RowQueue
from pipeline.device.transfer import make_transfer
from pipeline.errors import RequestError
from pipeline.media.grid import planes_bytes
from pipeline.plan.schema import RequestPlan, packed_request, plan_table
from pipeline.request.check import checked_request
from pipeline.request.deferred import decoded_request, deferred_plan, deferred_request
from pipeline.request.table import PLANAR, REQUEST_SCHEMA, unwrap_request
from pipeline.sink.output import Kind, OutputFolder
from pipeline.stages.decode import Decode
from pipeline.stages.encode import Encode
from pipeline.stages.request_file import read_request
from tests.device.nvdec_factories import make_clips
from tests.media.conftest import VIDEOS
from tests.media_factory import make_image, make_video

CPU = torch.device("cpu")
NAMES = ["h264.mp4", "half_turn.mp4", "b_frames.mp4", "odd_count.mp4"]


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.from_values({"model": "random:tiny", "encode": {"device": "cpu", "threads": 1}})


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, config: Config) -> RequestPlan:
    """Clips of one shape, of which the second is turned, and the last has an odd number of frames."""
    folder = tmp_path_factory.mktemp("planes")
    return RequestPlan.of(make_clips(*(make_video(folder / name, **VIDEOS[name]) for name in NAMES), config=config))


@pytest.fixture(scope="module")
def requests(plan: RequestPlan, config: Config) -> dict[bool, pa.Table]:
    """The request with planes, and without."""
    found = {}
    for with_planes in (True, False):
        with Decode(config, with_planes=with_planes) as decode:
            found[with_planes] = decode(plan_table([plan]))
    return found


def test_a_request_says_which_of_its_clips_are_planes(requests):
    assert requests[True].schema == REQUEST_SCHEMA.append(PLANAR)
    assert requests[False].schema == REQUEST_SCHEMA
    assert unwrap_request(requests[True]).meta.planar == (True, False, True, True)


def test_planes_take_half_the_bytes_of_rows_of_the_same_size(requests):
    layouts = [unwrap_request(requests[flag]).meta.layout for flag in (True, False)]
    assert layouts[0].plane_sizes == ((64, 96), None, (64, 96), (64, 96))
    planes, rows = ([layout.clip_bytes(clip) for clip in (0, 2)] for layout in layouts)
    assert all(half - 2560 - 256 <= whole / 2 <= half for half, whole in zip(planes, rows, strict=True))


def test_rows_made_on_the_device_are_those_of_the_decoder(requests):
    planar, plain = (unwrap_request(requests[flag]) for flag in (True, False))
    rows, ready = RowQueue(CPU).of_request(make_transfer(CPU, num_slots=1)(planar), planar.meta.layout)
    assert ready is None
    assert np.array_equal(rows.numpy().ravel(), plain.buffer[plain.meta.layout.rows_start :])


def test_vectors_are_the_same_to_the_bit(requests, config):
    encode = Encode(config, "random:tiny")
    planar, plain = (encode(requests[flag]) for flag in (True, False))
    encode.close()
    assert planar["vectors"] == plain["vectors"]
    assert planar["clips"] == plain["clips"]


def test_a_clip_that_fails_leaves_no_hole_between_planes(plan, config, tmp_path):
    gone = make_clips(make_video(tmp_path / "gone.mp4"), config=config)
    plans = RequestPlan.of([plan.clips[0], *gone, *plan.clips[2:]])
    (tmp_path / "gone.mp4").unlink()
    with Decode(config, with_planes=True) as decode, Decode(config) as decode_rows:
        planar, plain = (unwrap_request(stage(plan_table([plans]))) for stage in (decode, decode_rows))
    assert len(planar.meta.clips) == len(plan.clips) - 1
    assert planar.meta.failures == plain.meta.failures
    rows, _ = RowQueue(CPU).of_request(make_transfer(CPU, num_slots=1)(planar), planar.meta.layout)
    assert np.array_equal(rows.numpy().ravel(), plain.buffer[plain.meta.layout.rows_start :])


@pytest.mark.parametrize(("sides", "expected"), [((64, 96), True), ((64, 48), True), ((64, 32), False)], ids=str)
def test_planes_are_asked_for_where_they_are_not_much_larger_than_rows(plan, sides, expected):
    t, (height, width) = 100, sides
    grid = (t, height // 16, width // 16)
    clip = replace(plan.clips[0], grid_thw=grid, resized_height=height, resized_width=width)
    planes, rows = planes_bytes(t, 64, 96), t * grid[1] * grid[2] * 1536
    assert (planes <= 1.5 * rows) is expected
    assert clip.plane_size == ((64, 96) if expected else None)


@pytest.mark.parametrize("sides", [(-16, -16), (0, 96), (63, 96), (64, 97)], ids=str)
def test_sides_that_no_frame_has_are_none_of_planes(plan, sides):
    assert replace(plan.clips[0], height=sides[0], width=sides[1]).plane_size is None


def test_planes_have_even_sides_and_are_of_videos(tmp_path, config):
    odd = make_video(tmp_path / "b.webm", **VIDEOS["odd_sides.webm"])
    assert [clip.plane_size for clip in make_clips(odd, make_image(tmp_path / "c.png"), config=config)] == [None] * 2


def test_a_deferred_request_has_the_columns_of_one_with_planes(plan, requests):
    found = deferred_request(plan, with_planes=True)
    assert deferred_plan(found) == plan
    assert found.schema.names == [*requests[True].schema.names, "plan_row"]
    assert unwrap_request(found).meta.planar == ()


def test_a_stored_request_of_planes_is_refused(requests):
    with pytest.raises(RequestError):
        checked_request(requests[True], "stored")


def test_columns_that_mean_something_within_a_run_are_left_out_of_a_stored_request(plan, requests, tmp_path):
    """A plan row in it would have the encoder's machine read any file; what is not known is not even looked at."""
    folder = OutputFolder(str(tmp_path))
    folder.create(Kind.REQUESTS)
    strange = pa.array([[1, 2]], pa.list_(pa.int32()))
    table = decoded_request(requests[False]).append_column(PLANAR.name, strange)
    row = packed_request(plan)["plan_row"]
    table = table.set_column(table.column_names.index("plan_row"), "plan_row", row)
    name = folder.name(Kind.REQUESTS, plan.request_id)
    with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
        writer.write_table(table)
    found = read_request(folder, plan)
    assert found.schema == REQUEST_SCHEMA
    assert deferred_plan(found) is None


def test_header_that_names_other_planes_is_refused(requests, tmp_path: Path):
    table = requests[True]
    flags = pa.array([[True, True, True, True]], PLANAR.type)
    with pytest.raises(RequestError):
        unwrap_request(table.set_column(table.column_names.index("planar"), PLANAR, flags))
