import mmap

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ErrorCode, RequestError, Stage
from pipeline.media.container import MediaType
from pipeline.plan.schema import Failure
from pipeline.request.table import REQUEST_SCHEMA, RequestMeta, unwrap_request, wrap_request
from tests.plan.factories import make_clip


def make_meta(**changes: object) -> RequestMeta:
    failure = Failure(
        source_uri="/bad", source_id="b", clip_id="c", stage=Stage.DECODE, code=ErrorCode.CORRUPT_MEDIA, message="m"
    )
    values: dict[str, object] = {
        "request_id": "r",
        "media_type": MediaType.VIDEO,
        "clips": (make_clip("/a", num_frames=30), make_clip("/b", num_frames=10)),
        "decoders": ("pyav", "decord"),
        "failures": (failure,),
        "decode_seconds": 0.5,
    }
    return RequestMeta(**(values | changes))


def make_buffer(meta: RequestMeta) -> np.ndarray:
    buffer = np.arange(meta.layout.num_bytes, dtype=np.uint64).astype(np.uint8)
    buffer[: meta.layout.rows_start] = meta.layout.header().view(np.uint8)
    return buffer


def address_of(buffer: np.ndarray) -> int:
    return buffer.__array_interface__["data"][0]


def test_a_request_comes_back_as_it_went_in_and_was_not_copied() -> None:
    meta = make_meta()
    buffer = make_buffer(meta)
    table = wrap_request(meta, buffer)
    assert table.schema.equals(REQUEST_SCHEMA)
    request = unwrap_request(table)
    assert request.meta == meta
    assert request.address == address_of(buffer)
    assert address_of(request.buffer) == address_of(buffer)
    assert not request.buffer.flags.writeable


def test_grids_and_sequence_ends_are_plain_lists() -> None:
    meta = make_meta()
    row = wrap_request(meta, make_buffer(meta)).drop_columns(["buffer"]).to_pylist()[0]
    assert row["grid_thw"] == [[2, 22, 40], [2, 22, 40]]
    assert row["cu_seqlens"] == [0, 880, 1760, 2640, 3520]


def test_arrow_keeps_the_memory_alive_as_long_as_the_request() -> None:
    meta = make_meta()
    memory = mmap.mmap(-1, meta.layout.num_bytes)
    memory[:] = make_buffer(meta).tobytes()
    request = unwrap_request(wrap_request(meta, memory))
    with pytest.raises(BufferError):
        memory.close()
    assert request.buffer[-1] == make_buffer(meta)[-1]


def test_a_slice_of_a_larger_table_is_read_where_it_begins() -> None:
    metas = [make_meta(request_id=name) for name in ("first", "second")]
    buffers = [make_buffer(metas[0]), 255 - make_buffer(metas[1])]
    buffers[1][: metas[1].layout.rows_start] = metas[1].layout.header().view(np.uint8)
    both = pa.concat_tables([wrap_request(*pair) for pair in zip(metas, buffers, strict=True)]).combine_chunks()
    request = unwrap_request(both.slice(1, 1))
    assert request.meta.request_id == "second"
    assert np.array_equal(request.buffer, buffers[1])


def test_another_layout_version_and_two_rows_are_refused() -> None:
    meta = make_meta()
    table = wrap_request(meta, make_buffer(meta))
    other = table.set_column(1, "layout_version", pa.array([2], pa.int32()))
    with pytest.raises(RequestError, match="layout version 2: this Patchwire reads 1"):
        unwrap_request(other)
    with pytest.raises(RequestError, match="expected one request in one chunk, got 2 rows"):
        unwrap_request(pa.concat_tables([table, table]))


def test_a_request_of_failures_alone_has_an_empty_buffer() -> None:
    meta = make_meta(clips=(), decoders=())
    request = unwrap_request(wrap_request(meta, make_buffer(meta)))
    assert request.meta.layout.num_patches == 0
    assert request.meta.failures == meta.failures
