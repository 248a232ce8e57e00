"""What a decoder of the GPU is fed with: the packets that the CPU's exact skipping reads, and no others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.media.index import PacketIndex
from pipeline.media.packets import read_packets
from pipeline.media.reading import packets_from, starts_before


@dataclass(frozen=True, slots=True, kw_only=True)
class FedPacket:
    """What a decoder is given next: a packet, by its place in the index, or None at the end of a stretch."""

    packet: "Packet[VideoStream] | None"
    number: int
    is_wanted: bool


def read_stretches(
    container: InputContainer, stream: VideoStream, index: PacketIndex, wanted: Sequence[int]
) -> Iterator[FedPacket]:
    """The packets of each stretch, from a safe start to its last wanted one, and where the stretch ends.

    Args:
        container: just opened.
        stream: of it.
        index: of the file's packets around the wanted frames, ordered.
        wanted: frame numbers, never decreasing.
    Raises: MissedError where nothing leads to a start.
    """
    targets = np.unique(index.numbers[np.asarray(wanted) - index.first_number])
    starts = starts_before(index, targets)
    first = int(starts[0])
    is_beginning = index.first_number + first == 0
    found = read_packets(container, stream) if is_beginning else packets_from(container, stream, index, first)
    packets = enumerate(found, first)
    for start in np.unique(starts):
        in_stretch = set(targets[starts == start].tolist())
        last = max(in_stretch)
        for number, packet in packets:
            if number < start:
                continue
            yield FedPacket(packet=packet, number=number, is_wanted=number in in_stretch)
            if number == last:
                break
        yield FedPacket(packet=None, number=last, is_wanted=False)
