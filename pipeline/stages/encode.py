"""The stage that touches the device: one request in, its vectors out."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.checkpoint import resolve_model
from pipeline.config import Config
from pipeline.device.nvdec.process import NvdecProcess
from pipeline.device.nvdec.worker_process import NvdecUnavailableError
from pipeline.device.results import ResultCopy
from pipeline.device.row_queue import RowQueue
from pipeline.device.transfer import Transfer, make_transfer
from pipeline.device.turns import MemoryTurns
from pipeline.encoder.counts import num_vectors
from pipeline.encoder.encode import DTYPES, Encoder
from pipeline.errors import UsageError
from pipeline.plan.schema import RequestPlan
from pipeline.request.deferred import deferred_plan
from pipeline.request.table import META_SCHEMA, Request, unwrap_request
from pipeline.stages.device_decode import CpuDecode, DeviceDecode
from pipeline.stages.encoded import ENCODED_SCHEMA

_LOG = logging.getLogger(__name__)
_WARM_UP_SIDE = 20  # merged patches: large enough for every attention kernel
NUM_SLOTS = 3  # one being filled, one on its way, one arrived


def encode_device(config: Config) -> torch.device:
    """Where the encoder runs here: the config's device, or CUDA where `auto` finds one.

    Raises: UsageError where the settings ask for a GPU and torch finds none.
    """
    name = config.encode.device
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "encode.device=cuda: expected a GPU, torch finds none on this machine; use encode.device=auto or cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def encode_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The encoder's arithmetic on a device."""
    return DTYPES[config.encode.arithmetic("cuda" if device.type == "cuda" else "cpu")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OnHost:
    vectors: torch.Tensor
    deepstack: torch.Tensor | None
    num_copies: int
    way: str


class Encode:
    """Moves requests to the device, or decodes them there, and encodes them; safe to call from many threads on CUDA.

    Args:
        config: the run's settings.
        model: what `resolve_model` takes.
        takes_deferred: start the GPU's decoders, where the settings want them.
        takes_planes: be ready for clips that come as planes.
        attempts_uri: where deaths of decoders are written down, the GPU's and the CPU's.
        on_decoded: told the id of each deferred request when its rows are there.
    """

    def __init__(
        self,
        config: Config,
        model: str,
        *,
        takes_deferred: bool = False,
        takes_planes: bool = False,
        attempts_uri: str | None = None,
        on_decoded: Callable[[str], None] | None = None,
    ) -> None:
        started = time.perf_counter()
        device = encode_device(config)
        if device.type == "cpu":
            torch.set_num_threads(config.encode.threads or os.cpu_count() or 1)
        checkpoint = resolve_model(model)
        self._output = config.output
        register = config.encode.register_store == "auto"
        self._transfer = make_transfer(device, num_slots=NUM_SLOTS, register_store=register)
        self._rows = RowQueue(device)
        self._to_host = ResultCopy(device)
        self._encoder = Encoder(
            checkpoint,
            device=device,
            dtype=encode_dtype(config, device),
            max_patches=config.encode.max_patches,
            float8_least_cosine=config.encode.float8_least_cosine,
        )
        self._in_turns = MemoryTurns()
        self._on_decoded = on_decoded
        self._device_decode: DeviceDecode | None = None
        self._cpu_decode = CpuDecode(config, attempts_uri)
        if device.type == "cuda":
            self._in_turns(lambda: self._warm_up(device), "that warms up")
            if takes_deferred and config.decode.gpu == "auto":
                self._device_decode = _device_decode(
                    config, device, self._transfer, self._rows, attempts_uri, self._in_turns
                )
            if takes_planes or self._device_decode is not None:
                self._rows.prepare()
        self._start_seconds = time.perf_counter() - started

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of REQUEST_SCHEMA, deferred or not, to one row of ENCODED_SCHEMA.

        Cost: on CUDA one host-to-device copy and one device-to-host copy (another for deepstack), on the CPU none.
        """
        plan = deferred_plan(table)
        if plan is not None:
            return self._decode_and_encode(plan)
        started = time.perf_counter()
        request = unwrap_request(table)
        result = self._nothing()
        if request.meta.grid_thw:
            result = self._in_turns(lambda: self._encode(request), request.meta.request_id)
        return self._encoded(table.select(META_SCHEMA.names), request.meta.grid_thw, result, started)

    @property
    def num_device_requests(self) -> int:
        """How many deferred requests this takes at once; 0 where there are no decoders, or no more."""
        return 0 if self._device_decode is None else self._device_decode.num_requests

    def close(self) -> None:
        """End the decoders' processes, where there are any."""
        if self._device_decode is not None:
            self._device_decode.close()
        self._cpu_decode.close()

    def _decode_and_encode(self, plan: RequestPlan) -> pa.Table:
        if self._device_decode is None:  # rows are deferred to any of a run's GPUs, and go to any
            request = self._cpu_decode(plan)
            self._tell_decoded(plan)
            return self(request)
        decoded = self._device_decode(plan)
        self._tell_decoded(plan)
        started = time.perf_counter()
        meta = decoded.meta
        result = self._nothing()
        if meta.grid_thw:
            result = self._in_turns(
                lambda: self._encode_rows(decoded.rows, meta.grid_thw, None, decoded.num_copies, "device"),
                meta.request_id,
            )
        table = pa.Table.from_pylist([meta.to_values()], schema=META_SCHEMA)
        return self._encoded(table, meta.grid_thw, result, started)

    def _tell_decoded(self, plan: RequestPlan) -> None:
        if self._on_decoded is not None:
            self._on_decoded(plan.request_id)

    def _encoded(
        self, meta: pa.Table, grid_thw: Sequence[tuple[int, int, int]], result: _OnHost, started: float
    ) -> pa.Table:
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
        arrays = {**dict(zip(META_SCHEMA.names, meta.columns, strict=True)), **columns}
        return pa.table(arrays).cast(ENCODED_SCHEMA)

    def _warm_up(self, device: torch.device) -> None:
        """Compile the kernels, or find them in a cache: the least and a large grid of a picture and of a video."""
        merge = self._encoder.spec.spatial_merge_size
        for row_bytes in self._encoder.row_bytes:
            for side in (merge, _WARM_UP_SIDE * merge):
                rows = torch.zeros((side * side, row_bytes), dtype=torch.uint8, device=device)
                encoded = self._encoder.encode(rows, [(1, side, side)], self._output)
                self._to_host(encoded.tensors, encoded.ready)

    def _encode(self, request: Request) -> _OnHost:
        arrived = self._transfer(request)
        num_copies, way = arrived.num_copies, arrived.way
        rows, ready = self._rows.of_request(arrived, request.meta.layout)
        del arrived  # of planes nothing is read any more when their rows are there
        on_host = self._encode_rows(rows, request.meta.grid_thw, ready, num_copies, way)
        # The vectors are here, so the request's bytes have been read: the object store may have them back.
        self._transfer.reap()
        return on_host

    def _encode_rows(
        self,
        rows: torch.Tensor,
        grid_thw: Sequence[tuple[int, int, int]],
        ready: torch.cuda.Event | None,
        num_copies: int,
        way: str,
    ) -> _OnHost:
        encoded = self._encoder.encode(rows, grid_thw, self._output, ready=ready)
        vectors, *deepstack = self._to_host(encoded.tensors, encoded.ready)
        return _OnHost(vectors=vectors, deepstack=deepstack[0] if deepstack else None, num_copies=num_copies, way=way)

    def _nothing(self) -> _OnHost:
        """Every clip of the request failed to decode."""
        return _OnHost(vectors=torch.empty(0, self._encoder.vector_dim), deepstack=None, num_copies=0, way="none")


def _device_decode(
    config: Config,
    device: torch.device,
    transfer: Transfer,
    rows: RowQueue,
    attempts_uri: str | None,
    in_turns: MemoryTurns,
) -> DeviceDecode | None:
    """The GPU's decoders, or None, with a line in the log, where it has none."""
    try:
        decoders = NvdecProcess(device, config.decode.gpu_decoders, config.decode, config.limits)
    except NvdecUnavailableError as error:
        _LOG.warning("nvdec_unavailable reason=%s", error)
        return None
    return DeviceDecode(config, device, decoders, transfer, rows, attempts_uri, in_turns)


def _binary(values: torch.Tensor) -> pa.Array:
    """A tensor's bytes as one large_binary value, wrapped where they lie."""
    data = values.contiguous().numpy().reshape(-1).view(np.uint8)
    offsets = pa.py_buffer(np.array([0, data.size], dtype=np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
