"""The stage that touches the device: one request in, its vectors out."""

import os
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.checkpoint import resolve_model
from pipeline.config import Config
from pipeline.device.results import to_host
from pipeline.device.transfer import make_transfer
from pipeline.encoder.counts import num_vectors
from pipeline.encoder.encode import Encoder
from pipeline.encoder.kernels import FLOAT8
from pipeline.request.table import META_SCHEMA, Request, unwrap_request
from pipeline.stages.encoded import ENCODED_SCHEMA

_WARM_UP_SIDE = 20  # merged patches: large enough for every attention kernel
NUM_SLOTS = 3  # one being filled, one on its way, one arrived


def encode_device(config: Config) -> torch.device:
    """Where the encoder runs here: the config's device, or CUDA where `auto` finds one."""
    name = config.encode.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def encode_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The encoder's arithmetic on a device."""
    if config.encode.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": FLOAT8}[config.encode.dtype]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OnHost:
    vectors: torch.Tensor
    deepstack: torch.Tensor | None
    num_copies: int
    way: str


class Encode:
    """Moves requests to the device and encodes them there; safe to call from two threads on CUDA.

    Args:
        config: the run's settings.
        model: what `resolve_model` takes.
    """

    def __init__(self, config: Config, model: str) -> None:
        started = time.perf_counter()
        device = encode_device(config)
        if device.type == "cpu":
            torch.set_num_threads(config.encode.threads or os.cpu_count() or 1)
        checkpoint = resolve_model(model)
        self._output = config.output
        register = config.encode.register_store == "auto"
        self._transfer = make_transfer(device, num_slots=NUM_SLOTS, register_store=register)
        self._encoder = Encoder(
            checkpoint,
            device=device,
            dtype=encode_dtype(config, device),
            max_patches=config.encode.max_patches,
            float8_least_cosine=config.encode.float8_least_cosine,
        )
        if device.type == "cuda":
            self._warm_up(device)
        self._start_seconds = time.perf_counter() - started

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of REQUEST_SCHEMA to one row of ENCODED_SCHEMA.

        Cost: one host-to-device copy and one device-to-host copy on CUDA, none on the CPU.
        """
        started = time.perf_counter()
        request = unwrap_request(table)
        grid_thw = request.meta.grid_thw
        result = self._encode(request) if grid_thw else self._nothing()
        merged = self._encoder.spec.merged_patches
        columns = {
            "vectors": _binary(result.vectors),
            "deepstack": pa.nulls(1, pa.large_binary()) if result.deepstack is None else _binary(result.deepstack),
            "vector_counts": pa.array(
                [[num_vectors(grid, self._output.level, merged_patches=merged) for grid in grid_thw]]
            ),
            "vector_dim": pa.array([result.vectors.shape[-1]]),
            "num_deepstack": pa.array([0 if result.deepstack is None else result.deepstack.shape[1]]),
            "num_device_copies": pa.array([result.num_copies]),
            "transfer": pa.array([result.way]),
            "encode_seconds": pa.array([time.perf_counter() - started]),
            "start_seconds": pa.array([self._start_seconds]),
        }
        arrays = {**dict(zip(META_SCHEMA.names, table.select(META_SCHEMA.names).columns, strict=True)), **columns}
        return pa.table(arrays).cast(ENCODED_SCHEMA)

    def _warm_up(self, device: torch.device) -> None:
        """Compile the kernels, or find them in a cache: the least and a large grid of a picture and of a video."""
        merge = self._encoder.spec.spatial_merge_size
        for row_bytes in self._encoder.row_bytes:
            for side in (merge, _WARM_UP_SIDE * merge):
                rows = torch.zeros((side * side, row_bytes), dtype=torch.uint8, device=device)
                to_host(self._encoder.encode(rows, [(1, side, side)], self._output).vectors)

    def _encode(self, request: Request) -> _OnHost:
        layout = request.meta.layout
        arrived = self._transfer(request)
        rows = arrived.buffer[layout.rows_start :].view(layout.num_patches, layout.row_bytes)
        encoded = self._encoder.encode(rows, request.meta.grid_thw, self._output)
        on_host = _OnHost(
            vectors=to_host(encoded.vectors),
            deepstack=None if encoded.deepstack is None else to_host(encoded.deepstack),
            num_copies=arrived.num_copies,
            way=arrived.way,
        )
        # The vectors are here, so the request's bytes have been read: the object store may have them back.
        self._transfer.reap()
        return on_host

    def _nothing(self) -> _OnHost:
        """Every clip of the request failed to decode."""
        return _OnHost(vectors=torch.empty(0, self._encoder.vector_dim), deepstack=None, num_copies=0, way="none")


def _binary(values: torch.Tensor) -> pa.Array:
    """A tensor's bytes as one large_binary value, wrapped where they lie."""
    data = values.contiguous().numpy().reshape(-1).view(np.uint8)
    offsets = pa.py_buffer(np.array([0, data.size], dtype=np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
