"""The actor that holds the encoder: one a GPU, or one on the CPU."""

import pyarrow as pa

from pipeline.config import Config
from pipeline.stages.encode import Encode


class EncodeActor:
    """Encodes requests where they lie in the object store.

    Ray hands the block over as a view of its shared mapping; the stage never copies it on the CPU, and copies it
    once on CUDA.
    """

    def __init__(self, config: Config, model: str) -> None:
        self._stage = Encode(config, model)

    def __call__(self, request: pa.Table) -> pa.Table:
        """One row of REQUEST_SCHEMA to one row of ENCODED_SCHEMA."""
        return self._stage(request)
