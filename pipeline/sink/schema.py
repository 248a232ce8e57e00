"""The tables a run leaves behind: one row a vector, one row an error.

Every file says in its schema's metadata which model made it and whether the weights were random, so that a fragment
that was copied away from its `run.json` cannot pass for real embeddings. Lists are named as Parquet names them, which
makes a schema equal to itself after a round trip.
"""

from collections.abc import Iterable
from typing import Literal

import pyarrow as pa

from pipeline.plan.schema import Failure
from pipeline.sink.run_record import ModelIdentity, patchwire_version

LAYOUT_VERSION = "1"
VECTOR_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


def embeddings_schema(
    *, dim: int, dtype: Literal["float16", "float32"], model: ModelIdentity, config_hash: str, num_deepstack: int = 0
) -> pa.Schema:
    """Make the schema of `embeddings/*.parquet`.

    `position` is 0 at level clip, the temporal patch at level frame and the merged token at level token; seconds are
    the source's; `width` and `height` are pixels and `grid_thw` patches. `decoder` is the backend that served the
    clip. Nulls: the three time columns of an image.

    Args:
        dim: values of one vector.
        dtype: of the stored vectors.
        model: what made them.
        config_hash: of the settings that decided them.
        num_deepstack: columns `deepstack_0..` beside each token's vector, each of `dim` values.

    """
    vector = _fixed_list(VECTOR_TYPES[dtype], dim)
    columns = {
        "clip_id": pa.string(),
        "request_id": pa.string(),
        "source_uri": pa.string(),
        "source_id": pa.string(),
        "media_type": pa.string(),
        "clip_index": pa.int32(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "frame_timestamps_seconds": pa.list_(pa.field("element", pa.float64())),
        "width": pa.int32(),
        "height": pa.int32(),
        "grid_thw": _fixed_list(pa.int32(), 3),
        "level": pa.string(),
        "position": pa.int32(),
        "embedding": vector,
        **{f"deepstack_{index}": vector for index in range(num_deepstack)},
        "decoder": pa.string(),
        "model_id": pa.string(),
        "model_revision": pa.string(),
        "config_hash": pa.string(),
    }
    return pa.schema(columns, metadata=_metadata(model, config_hash))


def errors_schema(*, model: ModelIdentity, config_hash: str) -> pa.Schema:
    """Make the schema of `errors/*.parquet`."""
    columns = {
        "source_uri": pa.string(),
        "source_id": pa.string(),
        "clip_id": pa.string(),
        "stage": pa.string(),
        "code": pa.string(),
        "message": pa.string(),
        "retryable": pa.bool_(),
    }
    return pa.schema(columns, metadata=_metadata(model, config_hash))


def errors_table(rows: Iterable[Failure], schema: pa.Schema) -> pa.Table:
    """Failures in Arrow, one row each; undecodable bytes in a message are written as escapes."""
    values = [
        {
            "source_uri": row.source_uri,
            "source_id": row.source_id,
            "clip_id": row.clip_id,
            "stage": row.stage.value,
            "code": row.code.value,
            "message": row.message.encode("utf-8", "backslashreplace").decode("utf-8"),
            "retryable": row.code.advice.retryable,
        }
        for row in rows
    ]
    return pa.Table.from_pylist(values, schema=schema)


def _fixed_list(item: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("element", item), length)


def _metadata(model: ModelIdentity, config_hash: str) -> dict[str, str]:
    return {
        "patchwire.layout": LAYOUT_VERSION,
        "patchwire.version": patchwire_version(),
        "patchwire.model_id": model.model_id,
        "patchwire.model_revision": model.model_revision,
        "patchwire.random_weights": "true" if model.random_weights else "false",
        "patchwire.config_hash": config_hash,
    }
