from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ErrorCode
from pipeline.sink.schema import embeddings_schema, errors_schema

from .factories import CONFIG_HASH, MODEL, finite_vectors, make_errors, make_failure

COLUMNS = [
    "clip_id",
    "request_id",
    "source_uri",
    "source_id",
    "media_type",
    "clip_index",
    "start_seconds",
    "end_seconds",
    "frame_timestamps_seconds",
    "width",
    "height",
    "grid_thw",
    "level",
    "position",
    "embedding",
    "decoder",
    "model_id",
    "model_revision",
    "config_hash",
]


def test_the_columns_of_both_tables_are_those_documented() -> None:
    schema = embeddings_schema(dim=8, dtype="float16", model=MODEL, config_hash=CONFIG_HASH)
    assert schema.names == COLUMNS
    assert schema.field("embedding").type.list_size == 8
    assert schema.field("embedding").type.value_type == pa.float16()
    assert schema.field("grid_thw").type.list_size == 3
    assert errors_schema(model=MODEL, config_hash=CONFIG_HASH).names == [
        *("source_uri", "source_id", "clip_id", "stage", "code", "message", "retryable")
    ]


def test_deepstack_adds_a_column_of_vectors_for_each_level() -> None:
    schema = embeddings_schema(dim=8, dtype="float32", model=MODEL, config_hash=CONFIG_HASH, num_deepstack=3)
    assert [name for name in schema.names if name not in COLUMNS] == ["deepstack_0", "deepstack_1", "deepstack_2"]
    assert schema.field("deepstack_2").type == schema.field("embedding").type


def test_a_table_says_that_its_weights_were_random(tmp_path: Path) -> None:
    pq.write_table(make_errors(), tmp_path / "x.parquet")
    metadata = pq.read_schema(tmp_path / "x.parquet").metadata
    assert metadata[b"patchwire.random_weights"] == b"true"
    assert metadata[b"patchwire.model_id"] == b"random:tiny"
    assert metadata[b"patchwire.layout"] == b"1"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_and_schema_round_trip_through_parquet(tmp_path: Path, dtype: str) -> None:
    schema = embeddings_schema(dim=5, dtype=dtype, model=MODEL, config_hash=CONFIG_HASH)  # type: ignore[arg-type]
    vectors = finite_vectors(3, 5, dtype)
    columns = {"embedding": vectors.cast(schema.field("embedding").type)}
    arrays = [columns.get(field.name, pa.nulls(3, field.type)) for field in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    read = pq.read_table(tmp_path / "x.parquet")
    assert read.schema.equals(schema, check_metadata=True)
    assert read["embedding"].combine_chunks().flatten().to_numpy().dtype == np.dtype(dtype)
    assert read.equals(table)


def test_an_error_row_carries_advice_and_survives_undecodable_messages() -> None:
    failure = make_failure("a", code=ErrorCode.DECODER_TIMEOUT)
    [row] = make_errors([failure]).to_pylist()
    assert row["retryable"] is True
    assert (row["stage"], row["code"], row["clip_id"]) == ("decode", "decoder_timeout", "clip-a")
    odd = type(failure)(
        source_uri="/a", source_id=None, clip_id=None, stage=failure.stage, code=failure.code, message="\udcff\n"
    )
    assert make_errors([odd]).to_pylist()[0]["message"] == "\\udcff\n"
