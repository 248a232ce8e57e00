"""How many actors of each kind a cluster has room for: arithmetic over its cores, which needs no Ray.

Decode actors are the only ones that come and go. Ray Data adds some where all of them have work and more is waiting,
as far as cores are free, and takes idle ones away where less than half of them have any; the sizes of the pool are its
bounds. One that is taken away takes seconds to start when it is wanted again, and a GPU may have to wait for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import RayConfig

CPU_ENCODER_CORES = 0.5
WRITER_CORES = 0.05
READER_CORES = 0.01  # of headers, beside a run
_DECODERS_PER_READER = 4
_ENCODERS_PER_WRITER = 4
_LEAST_SHARE = 0.0001  # Ray's unit of a core


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSizes:
    """Bounds of the pool of decode actors, and how many of them start at once."""

    least: int
    initial: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A cluster's cores, node by node, and the encode actors that have a part of them."""

    settings: RayConfig
    node_cores: tuple[float, ...]
    encode_workers: int
    encoder_cores: float

    @property
    def decode_workers(self) -> int:
        """At most so many decode actors, however many nodes come."""
        return most_decode_workers(self.settings, sum(self.node_cores))

    @property
    def write_workers(self) -> int:
        """One for every four encode actors."""
        return math.ceil(self.encode_workers / _ENCODERS_PER_WRITER)

    @property
    def readers(self) -> int:
        """Of headers, beside a run: a quarter of the decode actors that have a core."""
        return math.ceil(min(self.decode_workers, sum(self.node_cores)) / _DECODERS_PER_READER)

    @property
    def cores_per_decoder(self) -> float:
        """As configured, or one core each, or less where the config asks for more workers than there are cores.

        On several nodes they reserve half of that: the workers of a lost node are started again on the others, and
        what they were doing waits for them until there is room.
        """
        if self.settings.decode_cores is not None:
            return self.settings.decode_cores
        share = min(1.0, self._cores_for_decoders / self.decode_workers)
        share = share / 2 if len(self.node_cores) > 1 else share
        return max(0.01, math.floor(share / _LEAST_SHARE) * _LEAST_SHARE)

    @property
    def lacks(self) -> str | None:
        """Why not even one decode actor has room beside writers and encoders, in words; None where one has."""
        others = self._cores_after_decoding
        if self._num_fitting(self.node_cores, others):
            return None
        return (
            f"ray.decode_cores={self.cores_per_decoder:g}: no node has so many cores beside the run's other actors, "
            f"which take {others:.2f}; the largest has {max(self.node_cores, default=0):g}"
        )

    def decoder_pool(self, num_blocks: int) -> PoolSizes:
        """As many at once as have room and leave it to the later stages; more come where nodes do.

        A pool that may shrink lets idle workers go where the encoder is the slower one, and starts them again when the
        store has run empty: a stand-in for a GPU at 60 ms a request took 72 ms, and 64 with the workers kept. So they
        are kept, but for those that must give up their cores where the largest of several nodes is lost: what is
        started again on the others, later stages among it, has no room there before.
        """
        most = min(self.decode_workers, num_blocks)
        initial = min(most, self._fitting(self.node_cores))
        _, *left = sorted(self.node_cores, reverse=True)
        if not any(left):
            left = list(self.node_cores)  # after the only one with cores, nothing is left to make room on
        return PoolSizes(least=min(initial, self._fitting(left)), initial=initial, most=most)

    @property
    def _cores_for_decoders(self) -> float:
        """What the others leave of the cores."""
        return sum(self.node_cores) - self._cores_for_others

    @property
    def _cores_for_others(self) -> float:
        """Those of writers, readers of the next shard's headers, and encoders without a GPU."""
        return self._cores_after_decoding + READER_CORES * self.readers

    @property
    def _cores_after_decoding(self) -> float:
        return WRITER_CORES * self.write_workers + self.encoder_cores * self.encode_workers

    def _fitting(self, node_cores: Sequence[float]) -> int:
        """Decode actors that these nodes are given: one at least, which may have to wait for a node."""
        return max(1, self._num_fitting(node_cores, self._cores_for_others))

    def _num_fitting(self, node_cores: Sequence[float], others: float) -> int:
        """Decode actors for which these nodes have room beside others' cores; none stands on two nodes."""
        together = (sum(node_cores) - others) / self.cores_per_decoder
        apart = sum(int(cores / self.cores_per_decoder + 1e-6) for cores in node_cores)
        return max(0, min(int(together + 1e-6), apart))


def most_decode_workers(settings: RayConfig, cores: float) -> int:
    """As configured, or one less than there are cores."""
    return settings.decode_workers or max(1, int(cores) - 1)
