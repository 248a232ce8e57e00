"""What passes from `encode` to `write`: a request's meta values and its vectors, one Arrow row."""

import pyarrow as pa

from pipeline.request.table import META_SCHEMA

ENCODED_SCHEMA = pa.schema(
    [
        *META_SCHEMA,
        pa.field("vectors", pa.large_binary()),
        pa.field("deepstack", pa.large_binary()),
        pa.field("vector_counts", pa.list_(pa.int64())),
        pa.field("vector_dim", pa.int32()),
        pa.field("num_deepstack", pa.int32()),
        pa.field("num_device_copies", pa.int64()),
        pa.field("transfer", pa.string()),
        pa.field("encode_seconds", pa.float64()),
        pa.field("start_seconds", pa.float64()),
    ]
)
