"""The actor that holds the encoder: one a GPU, or one on the CPU."""

import gc

import pyarrow as pa

from actors.share import ShareDesk
from pipeline.config import Config
from pipeline.errors import PatchwireError
from pipeline.plan.schema import unpacked_request
from pipeline.stages.prepared import Load


class EncodeActor:
    """Encodes requests where they lie in the object store.

    Ray hands the block over as a view of its shared mapping; the stage never copies it on the CPU, and copies it
    once on CUDA. A checkpoint that cannot be served is told by the first call: what a constructor raises, Ray tries
    again and then hands on as text.
    """

    def __init__(
        self,
        config: Config,
        model: str,
        attempts_uri: str | None = None,
        share: ShareDesk | None = None,
        *,
        takes_planes: bool = False,
    ) -> None:
        from pipeline.stages.encode import Encode  # torch: two seconds and 170 MB, and a driver names this class only

        self._refusal: PatchwireError | None = None
        self._share = share
        self._has_settled = False
        try:
            self._stage = Encode(
                config,
                model,
                takes_deferred=share is not None,
                takes_planes=takes_planes,
                attempts_uri=attempts_uri,
                on_decoded=self._decoded,
            )
        except PatchwireError as error:
            self._refusal = error
            return
        if share is not None:
            share.open(self._stage.num_device_requests)

    def __call__(self, request: pa.Table) -> pa.Table:
        """One row of REQUEST_SCHEMA to one row of ENCODED_SCHEMA."""
        if self._refusal is not None:
            raise self._refusal
        if self._share is not None:
            self._share.open(self._stage.num_device_requests)
        encoded = self._stage(request)
        if not self._has_settled:
            self._has_settled = True
            _keep_objects()
        return encoded

    def _decoded(self, request_id: str) -> None:
        if self._share is not None:
            self._share.release(request_id, self._stage.num_device_requests)


def _keep_objects() -> None:
    """Leave what is there after the first request, kernels compiled and all, out of later garbage collections.

    A full one stops every thread of a process with torch and Triton in it for 0.2 s, in which nothing is queued: seen
    every hundred requests or so, and the GPU had nothing to do meanwhile.
    """
    gc.collect()
    gc.freeze()


class EncodePreparedActor(EncodeActor):
    """Encodes prepared requests where they lie in their mapped files; what comes through Ray is plan rows."""

    def __init__(self, config: Config, model: str, prepared_uri: str) -> None:
        super().__init__(config, model)
        self._load = Load(prepared_uri)

    def __call__(self, plan: pa.Table) -> pa.Table:
        """One packed row of PLAN_SCHEMA to one row of ENCODED_SCHEMA."""
        return super().__call__(self._load(unpacked_request(plan)))
