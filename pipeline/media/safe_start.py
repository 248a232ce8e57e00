"""Places inside a video where decoding may begin, found while probing, so that no clip reads what comes before it.

Matroska (and WebM) only: its packets are written with their times, and from the beginning of a cluster on all can be
read, so the packets from there on are the same whether or not those before were read. Starts are given for files in
which probing found nothing wrong: no word of the demuxer, every frame with a time of its own, and in order. Then the
number of a frame, and the start that its decoding begins at, are those that reading from the beginning gives.

A clip's plan row carries one start. The decoder goes to its cluster by position, which needs no Cues, and takes it only
if the packet that it finds there has the same time, place and size; the packets from there on are indexed as from the
beginning. If anything is said or does not fit on the way, the clip is read from the file's beginning (video_pyav.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Self

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.media.doubt import DoubtError, MissedError
from pipeline.media.packets import read_packets


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeStart:
    """A packet at which decoding may begin, and before which every packet is a frame that is shown earlier.

    `number` is its position in decode order, which is its frame's number too; `pts` is in the stream's time base.
    `cluster_position` and `position` are bytes from the beginning of the medium: where reading begins, and the
    packet's own place; `num_bytes` is the packet's size.
    """

    number: int
    pts: int
    cluster_position: int
    position: int
    num_bytes: int

    def to_values(self) -> dict[str, int]:
        """As plain values: the arguments that make it again."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any] | None) -> Self | None:
        """From `to_values`; None stays None."""
        return None if values is None else cls(**values)

    def is_at(self, packet: "Packet[VideoStream]") -> bool:
        """Whether this is the packet that was found while probing."""
        found = packet.pts, packet.pos, packet.size, packet.is_keyframe
        return found == (self.pts, self.position, self.num_bytes, True)


def packets_at(container: InputContainer, stream: VideoStream, start: SafeStart) -> Iterator["Packet[VideoStream]"]:
    """Go to a start, and give the packets from there on.

    Raises: MissedError where it is not there; DoubtError, here and while packets are taken, when anything is said.
    Cost: reads the cluster up to the start; without Cues the first group of pictures, too.
    """
    packets = _undoubted(container, stream)
    try:
        # Only between two clusters may the position be moved. Seeking by time leaves the demuxer there.
        container.seek(stream.index_entries[0].timestamp, stream=stream)
        container.seek(start.cluster_position, unsupported_byte_offset=True, stream=stream)
    except (IndexError, av.FFmpegError) as error:
        raise MissedError from error
    for packet in packets:
        if packet.pts is None or packet.pts > start.pts:
            break
        if start.is_at(packet):
            return chain([packet], packets)
    raise MissedError


def _undoubted(container: InputContainer, stream: VideoStream) -> Iterator["Packet[VideoStream]"]:
    doubts: list[str] = []
    for packet in read_packets(container, stream, doubts):
        if doubts:
            raise DoubtError
        yield packet
    if doubts:
        raise DoubtError
