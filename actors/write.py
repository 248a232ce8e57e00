"""The actor that writes fragments, so that the encoder never waits for a disk."""

import pyarrow as pa

from pipeline.stages.write import Write, WriteTarget


class WriteActor:
    """Writes requests' vectors and errors, several at once: each has its own names."""

    def __init__(self, target: WriteTarget) -> None:
        self._stage = Write(target)

    def __call__(self, encoded: pa.Table) -> pa.Table:
        """One row of ENCODED_SCHEMA to one row of RECEIPT_SCHEMA."""
        return self._stage(encoded)
