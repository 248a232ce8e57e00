"""Decoding on the GPU: a plan row's videos become patch rows in device memory, and never were anywhere else.

Clips of a request are decoded side by side, as many at once as there are decoders. A clip that these cannot have right,
or that finds no device memory, is decoded on the CPU here, in a killable process as everywhere, and its rows are copied
over. The order of the clips, the rows' bytes and what becomes of bad media are those of `build_request`.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import torch

from pipeline.config import Config
from pipeline.device.nvdec.clip import distinct_frames
from pipeline.device.nvdec.process import DeviceDecoders
from pipeline.device.nvdec.session import RefusedError
from pipeline.device.nvdec.worker_process import EndedError
from pipeline.device.row_queue import RowQueue
from pipeline.device.rows import Frames, colour_lookup
from pipeline.device.transfer import Transfer
from pipeline.device.turns import MemoryTurns
from pipeline.errors import MediaError, Stage
from pipeline.media.attempts import Attempts, Death
from pipeline.media.colour import colour_tables
from pipeline.plan.schema import Clip, Failure, RequestPlan
from pipeline.request.build import build_request, clip_job
from pipeline.request.table import Request, RequestMeta, unwrap_request
from pipeline.sources.version import require_unchanged
from pipeline.stages.decode import make_sandbox

_LOG = logging.getLogger(__name__)
DECODER = "nvdec"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceRequest:
    """A request whose rows lie on the device: uint8 (num_patches, 1536), clip after clip."""

    meta: RequestMeta
    rows: torch.Tensor
    num_copies: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """One clip of it, on the device or as the CPU has decoded it, or why it is not there."""

    rows: torch.Tensor | Request | None
    decoder: str
    failures: tuple[Failure, ...] = ()


class CpuDecode:
    """The CPU's decoders on the machine of an encoder, for what no GPU decodes; for any number of threads.

    Nothing is started before it is wanted.

    Args:
        config: the run's settings.
        attempts_uri: where deaths of decoders are written down.
    """

    def __init__(self, config: Config, attempts_uri: str | None = None) -> None:
        # One lasting thread: the decoder process ends with the thread that started it.
        self._thread = ThreadPoolExecutor(1, "cpu-clip")
        self._sandbox = make_sandbox(config, attempts_uri)

    def __call__(self, plan: RequestPlan) -> pa.Table:
        """A plan row to one row of REQUEST_SCHEMA; a bad clip is among its failures."""
        return self._thread.submit(build_request, plan, self._sandbox).result()

    def close(self) -> None:
        """End the decoder process, if there is one."""
        self._thread.shutdown()
        self._sandbox.close()


class DeviceDecode:
    """Decodes requests on one GPU; for any number of threads.

    Args:
        config: the run's settings.
        device: where the rows are wanted.
        decoders: give frames there; ended with this.
        transfer: brings over what had to be decoded on the CPU.
        rows: makes them of the decoders' frames.
        attempts_uri: where deaths of decoders are written down, the GPU's and the CPU's.
        in_turns: who shares the device's memory with it.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        decoders: DeviceDecoders,
        transfer: Transfer,
        rows: RowQueue,
        attempts_uri: str | None = None,
        in_turns: MemoryTurns | None = None,
    ) -> None:
        self._decoders = decoders
        self._device = device
        self._in_turns = in_turns or MemoryTurns()
        self._rows = rows
        self._clips = ThreadPoolExecutor(decoders.num_decoders, "nvdec-clip")
        self._transfer = transfer
        self._on_cpu = CpuDecode(config, attempts_uri)
        self._attempts = None if attempts_uri is None else Attempts(attempts_uri, on_device=True)

    @property
    def num_requests(self) -> int:
        """How many requests may be handed over at once; 0 after the decoders' process has ended too often."""
        return 0 if self._decoders.is_down else self._decoders.num_decoders

    def __call__(self, plan: RequestPlan) -> DeviceRequest:
        """Decode a plan row.

        Raises: RequestError where its rows do not fit into the device's memory, even by themselves.
        Cost: no host-to-device copy of pixels, but for clips that the CPU had to decode.
        """
        parts = list(self._clips.map(self._decode, plan.clips))
        kept = [(clip, part) for clip, part in zip(plan.clips, parts, strict=True) if part.rows is not None]
        meta = RequestMeta(
            request_id=plan.request_id,
            media_type=plan.media_type,
            clips=tuple(clip for clip, _ in kept),
            decoders=tuple(part.decoder for _, part in kept),
            failures=tuple(failure for part in parts for failure in part.failures),
            decode_seconds=0.0,  # of the decode actors' time
        )
        there = [part.rows for part in parts if part.rows is not None]
        rows, num_copies = self._in_turns(lambda: self._join(there), plan.request_id)
        return DeviceRequest(meta=meta, rows=rows, num_copies=num_copies)

    def close(self) -> None:
        """End both decoder processes."""
        self._clips.shutdown()
        self._on_cpu.close()
        self._decoders.close()

    def _decode(self, clip: Clip) -> _Part:
        try:
            return _Part(rows=self._decode_here(clip), decoder=DECODER)
        except (RefusedError, MediaError) as error:
            if isinstance(error, EndedError) and self._attempts is not None:
                self._attempts.record(Death(uri=clip.sources[0].uri, code=error.code, message=str(error)))
            _LOG.info("nvdec_refused source=%s reason=%s", clip.source_uris[0], error)
        return self._decode_on_cpu(clip)

    def _decode_here(self, clip: Clip) -> torch.Tensor:
        """Raises: RefusedError; MediaError for a file that is gone or changed, or that has ended the GPU's decoders."""
        item = clip.sources[0]
        if self._attempts is not None:
            self._attempts.require_allowed(item.uri, Stage.DECODE)
        require_unchanged(item, clip.source_id)
        job = clip_job(clip, item)
        places = {number: place for place, number in enumerate(distinct_frames(job))}
        order = [places[number] for number in job.frame_indices]
        with self._decoders.frames(job, (clip.width, clip.height)) as frames:
            tables = colour_tables(frames.colours)
            if tables is None:
                raise RefusedError(f"colours {frames.colours}")
            try:
                lent = Frames(
                    planes=frames.planes.view(len(places), -1),
                    height=clip.height,
                    width=clip.width,
                    tables=colour_lookup(tables, self._device),
                    takes_turns=True,
                )
                return self._rows.make(lent, order, job.resized_height, job.resized_width)
            except torch.OutOfMemoryError as error:
                raise RefusedError(f"no device memory for its rows: {error}") from None

    def _decode_on_cpu(self, clip: Clip) -> _Part:
        request = unwrap_request(self._on_cpu(RequestPlan.of([clip])))
        if not request.meta.clips:
            return _Part(rows=None, decoder="", failures=request.meta.failures)
        return _Part(rows=request, decoder=request.meta.decoders[0])

    def _join(self, parts: Sequence[torch.Tensor | Request]) -> tuple[torch.Tensor, int]:
        """All clips' rows on the device, one after the other, and the number of copies from the host that it took.

        Raises: torch.OutOfMemoryError; it may be called again.
        """
        if len(parts) == 1 and isinstance(parts[0], torch.Tensor):
            return parts[0], 0
        tensors: list[torch.Tensor] = []
        num_copies = 0
        for part in parts:
            if isinstance(part, torch.Tensor):
                tensors.append(part)
                continue
            arrived, layout = self._transfer(part), part.meta.layout
            tensors.append(arrived.join()[layout.rows_start :].view(layout.num_patches, layout.row_bytes))
            num_copies += arrived.num_copies
        return torch.cat(tensors or [torch.empty(0, dtype=torch.uint8, device=self._device)]), num_copies
