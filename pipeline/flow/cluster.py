"""The same stages on Ray Data: windowing, backpressure, restarts and placement are Ray's.

One request is one row, one block and one task's output. The plan is handed over as one-row blocks and the target
block size is set below any real request, so that Ray never merges or splits rows; the block a consumer gets is
then a view of the object store's mapping. Measured with Ray 2.60; the settings and their reasons:

- `target_max_block_size` 1 MiB: with the default 128 MiB, sixteen requests arrived in three calls.
- the blocks are looked at here (`from_blocks`). `from_arrow` has a task of a whole core look at each: 4,000 requests
  took 18 to 23 s instead of 4 to 6 before the first one ran, and 450 MB instead of 274 in the driver; and a cluster
  that adds nodes was asked for all of them at once, whatever the run was waiting for.
- the stages may fill 0.8 of the store (half by default), and a tenth of that is kept for each stage's own outputs (half
  by default, a third of it each): of 15 decode workers 6 to 9 were at work for want of room that nothing else wanted.
- a Ray that is started here spills from 0.95 of its store on. By default it is 0.8, where a run always is: the next
  requests were written to disk and read back (a stall of 0.7 to 1.2 s, then 0.15 s a request).
- eight requests in flight per encode actor: the executor polls every 100 ms, and two starve a fast GPU. For the same
  reason a writer is given 32: with the two that are usual, ten requests a second were all that it could write.
- `max_errored_blocks` stays 0: it would drop rows. Bad media are rows already; anything else must stop the run.
- `actor_init_retry_on_errors`: else a failing restart of an actor is fatal.
- `raise_original_map_exception`: else an error of ours arrives as text inside one of Ray Data's.
"""

import gc
import logging
import os
import signal
import subprocess
import threading
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.data.context import DataContext

from actors.decode import DecodeActor, Decoders, PrepareActor, ProbeActor
from actors.encode import EncodeActor, EncodePreparedActor
from actors.share import ShareDesk
from actors.write import WriteActor
from pipeline.config import Config, Device, RayConfig
from pipeline.device.store_size import num_gpus_here, suggested_store_bytes
from pipeline.errors import PatchwireError, RunError, UsageError
from pipeline.flow.address import require_answer
from pipeline.flow.local import probe_one_by_one
from pipeline.flow.room import CPU_ENCODER_CORES, READER_CORES, WRITER_CORES, Room, most_decode_workers
from pipeline.flow.runner import Capacity, Job, MainRun
from pipeline.media.location import local_path
from pipeline.media.shared_template import SharedTemplate
from pipeline.plan.probe import ProbeResult, items_table, results_of
from pipeline.plan.schema import RequestPlan, packed_request
from pipeline.sink.output import Kind
from pipeline.sink.receipt import Receipt, receipts_of
from pipeline.sources.listing import SourceItem

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 20
_STORE_SHARE = 0.8
SPILL_FROM = 0.95
_SPILL_VARIABLE = "RAY_object_spilling_threshold"
_RESERVED_SHARE = 0.1
_SOURCES_PER_BLOCK = 32
_FEW_SOURCES = 64
_FEW_BYTES = 256 << 20
_VIDEO_ROW_BYTES = 1536
_READER_PATIENCE_SECONDS = 1.0
_MOST_REQUESTS = 16_384  # of one pass through the pools: 26 KB of the driver's memory each, until it ends
_CALLS_PER_GPU_ACTOR = 2  # one request is encoded while the next one is copied
_CALLS_PER_WRITER = 4  # a put into an object store is mostly waiting; tokens are hundreds of megabytes each
_REQUESTS_PER_WRITER = 32


class RayRunner:
    """Runs the stages as Ray Data actor pools; starts a local Ray, or joins the cluster at `address`.

    A Ray that was already initialised in this process, or that RAY_ADDRESS names (as in a submitted job), is
    used and left running.
    """

    name = "ray"
    plans_ahead = True

    def __init__(self, config: Config, address: str | None = None, attempts_uri: str | None = None) -> None:
        self._config = config
        self._template = SharedTemplate()
        self._template_process: subprocess.Popen[bytes] | None = None
        self._decoders = Decoders(attempts_uri=attempts_uri, template=self._template)
        self._address = address
        self._started_here = False
        self._is_local = False
        self.capacity = Capacity(decode=1, encode=1)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self)  # what was started ends where the rest fails
            if not ray.is_initialized():
                _quiet_logging()
                self._started_here = True
                with _sigterm_kept():
                    self._connect()
            self._gpus = int(ray.cluster_resources().get("GPU", 0))
            self._node_cores = _node_cores()
            self.capacity = Capacity(
                decode=most_decode_workers(self._config.ray, sum(self._node_cores)), encode=self._encode_workers
            )
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._started_here:
                # A pipeline that was interrupted lives on in the error's frames. It goes while Ray is still there, or
                # it would ask a Ray that is gone what it has, and that starts another one.
                traceback.clear_frames(trace)
                # References to blocks lie in cycles, one a request. Another thread that collects them while Ray ends
                # would end the process, as in `tables_of`. Cost: 0.15 s.
                gc.collect()
                with _sigterm_kept():
                    ray.shutdown()
        finally:
            self._end_template()

    def probe(
        self, items: Sequence[SourceItem], config: Config, beside: MainRun | None = None
    ) -> Generator[ProbeResult]:
        """Read headers in parallel, a block of sources a task; few of them here, before actors would have started."""
        if beside is None and len(self._node_cores) == 1 and _are_few(items):
            self._start_template()
            with self._decoders.sandbox(config) as sandbox:
                yield from probe_one_by_one(items, config, sandbox)
            return
        blocks = [
            items_table(items[start : start + _SOURCES_PER_BLOCK]) for start in range(0, len(items), _SOURCES_PER_BLOCK)
        ]
        if beside is not None:
            yield from self._probe_beside(blocks, config, beside)
            return
        self._start_template()
        dataset = self._dataset(blocks).map_batches(
            ProbeActor,
            fn_constructor_args=(config, self._decoders),
            batch_format="pyarrow",
            batch_size=None,
            **self._decoder_pool(len(blocks)),
        )
        for table in tables_of(dataset):
            yield from results_of(table)

    def _probe_beside(self, blocks: Iterable[pa.Table], config: Config, main: MainRun) -> Generator[ProbeResult]:
        """Read headers with a quarter of the decode workers, or with as many as there are where the run waits for them.

        With actors of our own: of two pipelines Ray Data gives each half of the object store, whatever they need, and
        one cannot be left before it has a result.
        """
        room = self._room
        reader = ray.remote(num_cpus=READER_CORES, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")(
            ProbeActor
        )
        waiting = deque(blocks)
        idle: list[Any] = []
        busy: dict[Any, Any] = {}
        try:
            while waiting or busy:
                main.check()
                wanted = room.decode_workers if main.is_awaited else room.readers
                while waiting and len(busy) < wanted:
                    actor: Any = idle.pop() if idle else reader.remote(config, self._decoders)
                    busy[actor.__call__.remote(waiting.popleft())] = actor
                done, _ = ray.wait(list(busy), timeout=_READER_PATIENCE_SECONDS)
                for result in done:
                    idle.append(busy.pop(result))
                    yield from results_of(ray.get(result))
        except ray.exceptions.RayError as error:
            raise _cause(error) from error
        finally:
            for actor in [*idle, *busy.values()]:
                ray.kill(actor)

    def run(self, waves: Iterable[Sequence[RequestPlan]], job: Job) -> Generator[Receipt]:
        """Stream requests through the pools; a receipt for each as it has been written.

        The pools are made for the nodes that are there then. Cost: they start anew with every wave, and every
        _MOST_REQUESTS, which takes seconds.
        """
        for wave in waves:
            for start in range(0, len(wave), _MOST_REQUESTS):
                for table in tables_of(self._pipeline(wave[start : start + _MOST_REQUESTS], job)):
                    yield from receipts_of(table)
            del wave  # or its clips would still be here while the next one is planned

    def _pipeline(self, requests: Sequence[RequestPlan], job: Job) -> Dataset:
        self._node_cores = _node_cores()
        one_row: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": 1}
        blocks = [packed_request(request) for request in requests]
        decoders, encoders = one_row | self._decoder_pool(len(blocks)), dict(one_row)
        dataset = self._dataset(blocks)
        if job.prepared_uri is None:
            self._start_template()
        if job.makes is Kind.REQUESTS:
            prepare = (job.config, job.target, self._decoders)
            return dataset.map_batches(PrepareActor, fn_constructor_args=prepare, **decoders)
        if job.prepared_uri is None:
            self._require_room()
            share = ShareDesk.start() if self._shares_decoding else None
            decoders["fn_constructor_args"] = (job.config, self._decoders, share)
            decoders["fn_constructor_kwargs"] = {"with_planes": self._sends_planes}
            decoded = dataset.map_batches(DecodeActor, **decoders)
            encoders["fn_constructor_args"] = (job.config, job.model, self._decoders.attempts_uri, share)
            encoders["fn_constructor_kwargs"] = {"takes_planes": self._sends_planes}
            encoded = decoded.map_batches(EncodeActor, **encoders, **self._encode_placement())
        else:
            encoders["fn_constructor_args"] = (job.config, job.model, job.prepared_uri)
            encoded = dataset.map_batches(EncodePreparedActor, **encoders, **self._encode_placement())
        return encoded.map_batches(
            WriteActor,
            fn_constructor_args=(job.target,),
            num_cpus=WRITER_CORES,
            compute=ActorPoolStrategy(
                size=self._room.write_workers,
                max_concurrent_calls_per_actor=1 if self._config.output.level == "token" else _CALLS_PER_WRITER,
                enable_true_multi_threading=True,
                max_tasks_in_flight_per_actor=_REQUESTS_PER_WRITER,
            ),
            **one_row,
        )

    def _require_room(self) -> None:
        """Say at once what would else be a wait without a word. Raises: UsageError where no node can come."""
        lacks = None if self._config.ray.decode_cores is None else self._room.lacks
        if lacks is None:
            return
        if self._is_local:
            raise UsageError(f"{lacks}; leave ray.decode_cores unset, or set less")
        _LOG.warning("no_room_for_a_decode_worker reason=%s; the run waits for a node", lacks)

    def _decoder_pool(self, num_blocks: int) -> dict[str, Any]:
        sizes = self._room.decoder_pool(num_blocks)
        return {
            "num_cpus": self._room.cores_per_decoder,
            "compute": ActorPoolStrategy(min_size=sizes.least, max_size=sizes.most, initial_size=sizes.initial),
        }

    def _start_template(self) -> None:
        """Load what decoders need while their workers start, where those are sure to be like this process."""
        if self._template_process is None and self._is_local:
            with suppress(OSError):  # then each worker loads its own
                self._template_process = self._template.start(as_child=True)

    def _end_template(self) -> None:
        if self._template_process is None:
            self._template.end()
        else:
            self._template_process.kill()
            self._template_process.wait()

    def _dataset(self, blocks: list[pa.Table]) -> Dataset:
        context = DataContext.get_current()
        context.target_max_block_size = _BLOCK_BYTES
        context.override_object_store_memory_limit_fraction = _STORE_SHARE
        context.op_resource_reservation_ratio = _RESERVED_SHARE
        context.actor_init_retry_on_errors = True
        context.raise_original_map_exception = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        dataset: Dataset = ray.data.from_blocks(blocks)
        return dataset

    def _encode_placement(self) -> dict[str, Any]:
        if not self._on_gpu:
            return {"num_cpus": CPU_ENCODER_CORES, "compute": ActorPoolStrategy(size=self._encode_workers)}
        # A request that is being decoded on the GPU has a call of its own, so that the others go on being encoded.
        num_decoding = self._config.decode.gpu_decoders if self._shares_decoding else 0
        pool = ActorPoolStrategy(
            size=self._encode_workers,
            max_concurrent_calls_per_actor=_CALLS_PER_GPU_ACTOR + num_decoding,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=self._config.ray.requests_in_flight + num_decoding,
        )
        return {"num_gpus": 1, "num_cpus": 0, "compute": pool}

    @property
    def device(self) -> Device:
        """What encode actors run on. Raises: UsageError where the settings ask for a GPU and there is none."""
        return "cuda" if self._on_gpu else "cpu"

    @property
    def _on_gpu(self) -> bool:
        device = self._config.encode.device
        if device == "cuda" and not self._gpus:
            raise UsageError("encode.device=cuda: this Ray cluster has no GPU; use encode.device=auto or cpu")
        return device != "cpu" and self._gpus > 0

    @property
    def _shares_decoding(self) -> bool:
        return self._on_gpu and self._config.decode.gpu == "auto"

    @property
    def _sends_planes(self) -> bool:
        return self._config.decode.sends_planes(self.device)

    @property
    def _store_bytes(self) -> int | None:
        """With a GPU, a store small enough to be registered with CUDA; else Ray's own choice."""
        if self._config.encode.device == "cpu":
            return None
        num_workers = most_decode_workers(self._config.ray, self._config.ray.num_cpus or os.cpu_count() or 1)
        return suggested_store_bytes(self._config.request.max_patches * _VIDEO_ROW_BYTES, num_workers, num_gpus_here())

    @property
    def _encode_workers(self) -> int:
        return self._config.ray.encode_workers or (self._gpus if self._on_gpu else 1)

    @property
    def _room(self) -> Room:
        return Room(
            settings=self._config.ray,
            node_cores=self._node_cores,
            encode_workers=self._encode_workers,
            encoder_cores=0.0 if self._on_gpu else CPU_ENCODER_CORES,
        )

    def _connect(self) -> None:
        settings: RayConfig = self._config.ray
        address = self._address or os.environ.get("RAY_ADDRESS")
        try:
            if address and address != "local":
                require_answer(address)
                with _native_stderr_muted():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                return
            self._is_local = True
            with _native_stderr_muted():
                ray.init(
                    address="local",
                    num_cpus=settings.num_cpus,
                    object_store_memory=settings.object_store_bytes or self._store_bytes,
                    _system_config=None if _SPILL_VARIABLE in os.environ else {"object_spilling_threshold": SPILL_FROM},
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunError(f"ray at {address or 'local'}: {error}") from error


def _node_cores() -> tuple[float, ...]:
    """Cores of every node that is alive; where none has any yet, one of them counts as if it had."""
    cores = [float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return tuple(cores) if any(cores) else (1.0, *cores[1:])


def _are_few(items: Sequence[SourceItem]) -> bool:
    """Whether one decoder has read their headers, and bytes for their content ids, within a second or two."""
    if len(items) > _FEW_SOURCES or sum(item.num_bytes for item in items) > _FEW_BYTES:
        return False
    return all(local_path(item.uri) is not None for item in items)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself, and `ray.shutdown` leaves it to kill; the run's own handler is for both."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def tables_of(dataset: Dataset) -> Iterator[pa.Table]:
    """The blocks of a dataset as they are made; an error of ours comes out as itself.

    Not by `iter_batches`: where it is broken off, its threads are told to end and not waited for, and one that lets go
    of a block while `ray.shutdown` is at work ends the process there, with exit code 1 and no word (ray pull 19115). So
    ended 4 of 148 runs that were stopped with Ray 2.60, and none of 132 since.
    """
    try:
        for bundle in dataset.iter_internal_ref_bundles():
            for block in bundle.block_refs:
                yield ray.get(block)
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _cause(error: BaseException) -> PatchwireError:
    """What an actor raised, freed from Ray's wrappers: they are of its type too, with a stack for a message."""
    found: BaseException | None = error
    ours: PatchwireError | None = None
    while found is not None:
        if isinstance(found, PatchwireError):
            ours = found
        found = getattr(found, "cause", None) or found.__cause__
    return ours or RunError(f"ray: {error}")


@contextmanager
def _native_stderr_muted() -> Iterator[None]:
    """Keep native start-up chatter off the terminal; what goes wrong comes as an exception."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quiet_logging() -> None:
    """Ray and Ray Data log what they do to the terminal; a run has its own progress.

    The core worker's own complaint is about actors whose arguments lie in the object store, as Ray Data puts them
    (ray issue 53727); its logs stay in the session's folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
