"""A cluster runner whose encode actor decodes on a device, for machines without one: the CPU stands in for it."""

from typing import Any

import torch
from ray.data import ActorPoolStrategy

from actors.encode import EncodeActor
from actors.share import ShareDesk
from pipeline.config import Config
from pipeline.device.row_queue import RowQueue
from pipeline.device.transfer import make_transfer
from pipeline.flow.cluster import RayRunner
from pipeline.stages.device_decode import DeviceDecode
from tests.device.nvdec_factories import CpuDecoders

ROOM = 2


class StandInEncodeActor(EncodeActor):
    """An encode actor on the CPU, with decoders."""

    def __init__(
        self, config: Config, model: str, attempts_uri: str | None, share: ShareDesk, *, takes_planes: bool
    ) -> None:
        super().__init__(config, model, attempts_uri, share, takes_planes=takes_planes)
        cpu = torch.device("cpu")
        decoders = CpuDecoders(refused=["1.mp4"])
        transfer = make_transfer(cpu, num_slots=1)
        self._stage._device_decode = DeviceDecode(config, cpu, decoders, transfer, RowQueue(cpu), attempts_uri)


class EarlyDesk(ShareDesk):
    """Has room before the encode actor is there, so that the first requests are deferred whoever is the faster."""

    @classmethod
    def start(cls) -> "EarlyDesk":
        desk = super().start()
        desk.open(ROOM)
        return desk


class StandInRunner(RayRunner):
    """Places that encode actor as one on a GPU is placed, but for the GPU."""

    _shares_decoding = True

    def _encode_placement(self) -> dict[str, Any]:
        pool = ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2 + ROOM, enable_true_multi_threading=True)
        return {"num_cpus": 0.5, "compute": pool}
