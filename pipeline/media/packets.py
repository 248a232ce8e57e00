"""A stream's packets, one after the other, and whether anything was wrong on the way."""

from collections.abc import Iterator

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.media.doubt import listening

_MAX_DEMUX_ERRORS = 50


def read_packets(
    container: InputContainer, stream: VideoStream, doubts: list[str] | None = None
) -> Iterator["Packet[VideoStream]"]:
    """The stream's packets that hold data; a damaged stretch is stepped over, up to 50 times.

    `doubts` is given the first thing that the demuxer says or raises, before the next packet comes.
    """
    for _ in range(_MAX_DEMUX_ERRORS):
        packets = container.demux(stream)
        try:
            while (packet := _next(packets, doubts)) is not None:
                if packet.size:
                    yield packet
        except MemoryError:
            raise
        except av.FFmpegError as error:
            if doubts is not None:
                doubts.append(str(error))
            continue
        return


def _next(packets: Iterator["Packet[VideoStream]"], doubts: list[str] | None) -> "Packet[VideoStream] | None":
    if doubts is None or doubts:
        return next(packets, None)
    with listening() as said:
        packet = next(packets, None)
    doubts += [message for _, _, message in said[:1]]
    return packet
