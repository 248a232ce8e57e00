"""What is left of a request when it has been written: a few numbers, from which progress and the summary are made."""

from dataclasses import asdict, dataclass

import pyarrow as pa

RECEIPT_SCHEMA = pa.schema(
    {
        "request_id": pa.string(),
        "num_clips": pa.int64(),
        "num_rows": pa.int64(),
        "num_failures": pa.int64(),
        "num_frames": pa.int64(),
        "num_patches": pa.int64(),
        "num_device_copies": pa.int64(),
        "transfer": pa.string(),
        "video_seconds": pa.float64(),
        "decode_seconds": pa.float64(),
        "encode_seconds": pa.float64(),
        "start_seconds": pa.float64(),
        "write_seconds": pa.float64(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One written request.

    `num_clips`, `num_rows` and `num_failures` count every path of a clip; `num_frames` counts sampled frames,
    `video_seconds` the clips' spans. Stage times are wall seconds inside the stage. `transfer` is how the request
    reached the device, and `start_seconds` what its encode worker needed before it could take a first one.
    """

    request_id: str
    num_clips: int
    num_rows: int
    num_failures: int
    num_frames: int
    num_patches: int
    num_device_copies: int
    transfer: str
    video_seconds: float
    decode_seconds: float
    encode_seconds: float
    start_seconds: float
    write_seconds: float

    def to_table(self) -> pa.Table:
        """One row in RECEIPT_SCHEMA."""
        return pa.Table.from_pylist([asdict(self)], schema=RECEIPT_SCHEMA)


def receipts_of(table: pa.Table) -> list[Receipt]:
    """The rows of receipt tables as values."""
    return [Receipt(**row) for row in table.to_pylist()]
