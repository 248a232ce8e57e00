"""Requests that come from a file, broken one way at a time: each is an error that names what is wrong."""

import io
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, RequestError, Stage
from pipeline.media.byte_range import ByteRange
from pipeline.media.container import MediaType
from pipeline.plan.schema import Clip, Failure, RequestPlan
from pipeline.request.check import check_planned, checked_request
from pipeline.request.layout import MAGIC, VERSION
from pipeline.request.table import REQUEST_SCHEMA, RequestMeta, wrap_request
from tests.plan.factories import make_clip

SMALL = {"width": 96, "height": 64}


def good_clips() -> tuple[Clip, ...]:
    return tuple(make_clip(f"/{name}", f"b2-{name}", num_frames=30, **SMALL) for name in "ab")


def make_failure(clip_id: str) -> Failure:
    return Failure(
        source_uri="/f", source_id="b", clip_id=clip_id, stage=Stage.DECODE, code=ErrorCode.CORRUPT_MEDIA, message="m"
    )


def make_table(clips: tuple[Clip, ...] | None = None, header: bytes | None = None, **changes: object) -> pa.Table:
    values: dict[str, object] = {
        "request_id": "r",
        "media_type": MediaType.VIDEO,
        "clips": good_clips() if clips is None else clips,
        "decoders": ("pyav",) * len(good_clips() if clips is None else clips),
        "failures": (make_failure("f"),),
        "decode_seconds": 0.5,
    }
    meta = RequestMeta(**(values | changes))
    buffer = np.zeros(meta.layout.num_bytes, np.uint8)
    buffer[: meta.layout.rows_start] = meta.layout.header().view(np.uint8)
    if header is not None:
        buffer[: len(header)] = np.frombuffer(header, np.uint8)
    return wrap_request(meta, buffer)


def with_column(name: str, values: list[object], kind: pa.DataType | None = None) -> Callable[[], pa.Table]:
    def change() -> pa.Table:
        table = make_table()
        index = table.schema.get_field_index(name)
        column = pa.array(values, kind or REQUEST_SCHEMA.field(name).type)
        return table.set_column(index, name, column)

    return change


def with_clip(**changes: object) -> Callable[[], pa.Table]:
    def change() -> pa.Table:
        first, second = good_clips()
        table = make_table()
        clips = [{**first.to_values(), **changes}, second.to_values()]
        index = table.schema.get_field_index("clips")
        return table.set_column(index, "clips", pa.array([clips], REQUEST_SCHEMA.field("clips").type))

    return change


def words(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def nested_nulls() -> pa.Table:
    table = make_table()
    buffer = pa.array([[None] * len(table["buffer"].chunk(0).flatten())], pa.large_list(pa.uint8()))
    return table.set_column(table.schema.get_field_index("buffer"), "buffer", buffer)


BROKEN: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "no row": (lambda: make_table().slice(0, 0), "expected one request, found 0 rows"),
    "two rows": (lambda: pa.concat_tables([make_table()] * 2), "expected one request, found 2 rows"),
    "a missing column": (lambda: make_table().drop_columns(["buffer"]), "expected one column 'buffer'"),
    "a column twice": (
        lambda: make_table().append_column("request_id", pa.array(["r"])),
        "expected one column 'request_id'",
    ),
    "wider pixels": (
        with_column("buffer", [[0, 300]], pa.large_list(pa.int32())),
        r"column 'buffer': expected large_list<item: uint8>, found large_list<item: int32>",
    ),
    "pixels as floats": (with_column("buffer", [[0.5]], pa.large_list(pa.float32())), "column 'buffer': expected"),
    "pixels as text": (with_column("buffer", ["x"], pa.string()), "column 'buffer': expected"),
    "null pixels": (nested_nulls, "expected bytes, found nulls"),
    "no buffer": (with_column("buffer", [None]), "column 'buffer' is null"),
    "no clips": (with_column("clips", [None]), "column 'clips' is null"),
    "a null clip": (with_column("clips", [[None]]), "one of its values cannot be read"),
    "another layout version": (
        with_column("layout_version", [VERSION + 1]),
        "layout version 2: this Patchwire reads 1",
    ),
    "an unknown medium": (with_column("media_type", ["audio"]), "'audio' is not a valid MediaType"),
    "another medium than its clips": (
        lambda: make_table(media_type=MediaType.IMAGE),
        "a clip of media type video in a request of image",
    ),
    "a buffer too short": (with_column("buffer", [[0] * 100]), r"expected \d+ bytes, got 100"),
    "an empty buffer": (with_column("buffer", [[]]), r"expected \d+ bytes, got 0"),
    "another magic": (lambda: make_table(header=words(7)), "header word 0 is 7"),
    "a header of more patches": (
        lambda: make_table(header=words(MAGIC, VERSION, 1536, 999)),
        "header word 3 is 999",
    ),
    "a grid larger than the buffer": (with_clip(grid_thw=[2**31 - 1, 2**30, 2**30]), "request buffer|one \\(h, w\\)"),
    "a negative grid": (with_clip(grid_thw=[-2, -4, 6]), "one \\(h, w\\)|request buffer"),
    "a grid of two numbers": (with_clip(grid_thw=[2, 4]), "cannot be read"),
    "no grid": (with_clip(grid_thw=None), "cannot be read"),
    "a null in a grid": (with_clip(grid_thw=[None, 4, 6]), "cannot be read"),
    "grids that are not the clips'": (with_column("grid_thw", [[[2, 4, 6]]]), "grid_thw is"),
    "sequence ends that do not follow": (with_column("cu_seqlens", [[0, 24]]), "cu_seqlens does not follow"),
    "fewer decoders than clips": (with_column("decoders", [["pyav"]]), "1 decoders of 2 clips"),
    "an endless time": (with_column("decode_seconds", [math.inf]), "decode_seconds is inf"),
    "an unknown failure": (
        with_column("failures", [[{"code": "tired", "stage": "decode"}]]),
        "'tired' is not a valid ErrorCode",
    ),
    "a clip without an id": (with_clip(clip_ids=[]), "0 clip ids for 1 source URIs"),
    "a clip twice": (lambda: make_table((good_clips()[0],) * 2), "a clip id is in it twice"),
    "a failed clip that is there": (
        lambda: make_table(failures=(make_failure(good_clips()[0].clip_ids[0]),)),
        "a clip id is in it twice",
    ),
    "places of other paths": (
        with_clip(byte_ranges=[{"start": 0, "num_bytes": 1}] * 2),
        "2 byte ranges for 1 source URIs",
    ),
    "frame numbers that decrease": (with_clip(frame_indices=[3, 2, 1, 0]), "that never decrease"),
    "a frame number that is not there": (with_clip(frame_indices=[0, 1, 2, 30]), "from 0 to 29"),
    "a negative frame number": (with_clip(frame_indices=[-1, 0, 1, 2]), "from 0 to 29"),
    "no frame numbers": (with_clip(frame_indices=[]), "from 0 to 29"),
    "a null frame number": (with_clip(frame_indices=[None, 1]), "cannot be read"),
    "more frames than patches": (with_clip(frame_indices=list(range(6))), "6 frames do not make 2 temporal patches"),
    "a size that is not the grid's": (with_clip(resized_height=128), "which is not 22 x 32 patches|which is not"),
    "too few timestamps": (with_clip(timestamps_seconds=[0.0]), "1 timestamps for 2"),
    "a time that is no number": (with_clip(timestamps_seconds=[0.0, math.nan]), "not a finite number"),
    "an end that is no number": (with_clip(end_seconds=math.inf), "not a finite number"),
    "no width": (with_clip(width=0), "width is 0"),
    "a negative clip index": (with_clip(clip_index=-1), "clip_index is -1"),
}


def test_a_good_request_passes_and_is_not_copied() -> None:
    table = make_table()
    request = checked_request(table, "P")
    assert request.address == table["buffer"].chunk(0).flatten().buffers()[1].address


@pytest.mark.parametrize("name", BROKEN)
def test_a_request_that_is_broken_is_refused_in_words_that_name_the_file(name: str) -> None:
    table, message = BROKEN[name]
    with pytest.raises(RequestError, match=message) as caught:
        checked_request(table(), "P/requests/r.arrow")
    assert str(caught.value).startswith("P/requests/r.arrow: ")


def test_a_request_must_hold_the_clips_that_were_planned_in_it() -> None:
    first, second = good_clips()
    third = make_clip("/c", "b2-c", num_frames=30, **SMALL)
    failed = (make_failure(third.clip_ids[0]),)
    request = checked_request(make_table(failures=failed), "P")
    check_planned(request, RequestPlan(request_id="r", clips=(first, third, second)), "P")
    moved = replace(second, byte_ranges=(ByteRange(start=0, num_bytes=1),))
    for plan, message in (
        (RequestPlan(request_id="q", clips=(first, second, third)), "expected request 'q', found 'r'"),
        (RequestPlan(request_id="r", clips=(first, second)), "was not planned in it"),
        (RequestPlan(request_id="r", clips=(first, third)), "was not planned in it"),
        (RequestPlan(request_id="r", clips=(first, moved, third)), "is not as it was planned"),
        (
            RequestPlan(request_id="r", clips=(first, second, third, make_clip("/d", "b2-d"))),
            "neither in it nor among its failures",
        ),
    ):
        with pytest.raises(RequestError, match=message):
            check_planned(request, plan, "P")


def written() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, REQUEST_SCHEMA) as writer:
        writer.write_table(make_table())
    return sink.getvalue()


@given(at=st.integers(-6000, 6000), change=st.binary(min_size=1, max_size=8))
def test_no_damage_to_a_file_ends_otherwise_than_as_an_error_or_as_other_pixels(at: int, change: bytes) -> None:
    data = bytearray(written())
    at %= len(data)  # what describes the buffer lies before and behind it
    data[at : at + len(change)] = change[: len(data) - at]
    with suppress(RequestError, pa.ArrowException, OSError, ValueError):
        checked_request(pa.ipc.open_file(pa.BufferReader(bytes(data))).read_all(), "P")
