"""An open video that decodes from where it stands, so that the next clip of a file can go on where the last one ended.

Exact skipping: packets are fed from the last place where decoding may begin up to each wanted frame; between them,
frames that no other frame refers to are skipped (`skip_frame='NONREF'`), and what lies between a wanted frame and the
next such place is not decoded at all.

Going on: draining brings the last frames out and leaves a decoder that can only start anew. Where another clip follows
in the same stretch, packets are fed until the last wanted frame comes out by itself instead, and the decoder is left as
it is. That the frames are those of a decode of the clip alone follows from the format for a valid stream, and for a
damaged one it does not: what stands in for lost blocks may come from whatever was decoded before. So a reading that
has seen anything wrong (a packet or a picture that the decoder complains of in its log, a packet that the index does
not hold) is not gone on with, and a clip that meets something wrong while it goes on is decoded again by itself. Nor
are readings of decoders that do not tell (_TELLING_CODECS), and of containers that time packets by counting them: after
damage, seeking finds other packets under the same time than reading on does. Random damage found each of these.

A clip that begins at a known safe start is held to the same rules, because nothing of what is before it was looked at.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.config import LimitsConfig
from pipeline.media.container import FileFormat, open_video
from pipeline.media.doubt import DoubtError, MissedError, listening
from pipeline.media.index import NO_TIME, PacketIndex, codec_name, has_complete_index, read_index
from pipeline.media.packets import read_packets
from pipeline.media.safe_start import SafeStart, packets_at

# Decoders that honour skip_frame packet by packet; dav1d reads it only when it opens.
_SKIPPING_CODECS = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
# Here every packet's time is written down, so that seeking and reading on find the same ones.
_TIMED_DEMUXERS = frozenset({"mov", "matroska"})
# FFmpeg's HEVC decoder leaves blocks of a damaged picture as they were in its memory and says nothing; VP8 and MPEG-4
# take over, at a keyframe, what they knew before it.
_TELLING_CODECS = frozenset({"h264", "vp9", "av1"})
PROGRESSIVE = (0, 1)  # AVFieldOrder unknown, progressive; a field may be a packet of its own in the others
# Reading a packet costs some 20 microseconds, seeking in an MP4 a few times that.
_NEAR_PACKETS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """An open file, known to be a video, and what may be asked of it."""

    file: BinaryIO
    uri: str
    file_format: FileFormat
    limits: LimitsConfig


def decode_packet(context: VideoCodecContext, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
    """Frames that come out when a packet goes in (None drains); none if the decoder rejects it."""
    try:
        return context.decode(packet)
    except MemoryError:
        raise
    except av.FFmpegError:
        return []


def _decode_watchfully(
    context: VideoCodecContext, packet: "Packet[VideoStream] | None"
) -> tuple[list[VideoFrame], bool]:
    """What `decode_packet` gives, and whether the decoder had nothing to say about it.

    What it conceals in a picture it says at once, at level INFO; the picture's own flag comes when others that refer to
    it may have been shown already.
    """
    try:
        with listening() as said:
            frames = context.decode(packet)
    except MemoryError:
        raise
    except av.FFmpegError:
        return [], False
    return frames, not said and not any(frame.is_corrupt for frame in frames)


class Reading:
    """A video's container and decoder, and where both stand; close it. Not for several threads.

    Packets are numbered in decode order from the start of the stream.
    """

    def __init__(self, source: VideoSource) -> None:
        """Open the file from its beginning. Raises: MediaError as `open_video` does."""
        self.source = source
        self._is_clean = True
        source.file.seek(0)
        with ExitStack() as stack:
            opened = open_video(source.file, source.uri, source.file_format, source.limits)
            self._container, self._stream = stack.enter_context(opened)
            self._stack = stack.pop_all()
        self._context = self._stream.codec_context
        codec = codec_name(self._stream)
        self._can_skip = codec in _SKIPPING_CODECS and int(self._context.field_order) in PROGRESSIVE
        self._is_sound = codec in _TELLING_CODECS and self._container.format.name in _TIMED_DEMUXERS
        self._packets: Iterator[Packet[VideoStream]] | None = read_packets(self._container, self._stream)
        self._next_number = 0
        self._is_fed = False
        self._fed_from: int | None = None  # the decoder has had every packet from here to the next one
        self._waiting: list[VideoFrame] = []
        self._last_wanted = -1
        self._is_watched = self._is_strict = False
        self._origin: SafeStart | None = None

    def close(self) -> None:
        """Free the decoder, and the file if it is this reading's."""
        self._stack.close()

    def own_file(self) -> None:
        """Have the file closed with this reading."""
        self._stack.callback(self.source.file.close)

    @property
    def can_go_on(self) -> bool:
        """Whether another clip may be read with it."""
        return self._is_clean and self._is_sound

    def read_index(self, first_frame: int, last_frame: int, origin: SafeStart | None) -> PacketIndex:
        """Read the packets around two frames, as `read_index` does, of a video just opened."""
        self._packets, self._origin = None, origin
        return read_index(self._container, self._stream, first_frame, last_frame, origin)

    @property
    def can_begin(self) -> bool:
        """Whether packets can be had from any start: the file was just opened, or seeking is exact."""
        return (
            self._packets is not None
            or self._origin is not None
            or (self._container.format.name == "mov" and has_complete_index(self._container, self._stream))
        )

    def frames(
        self, index: PacketIndex, wanted: Sequence[int], following: Sequence[int] = (), *, is_strict: bool = False
    ) -> Iterator[VideoFrame]:
        """Decode each stretch from a safe start to its last wanted packet.

        Args:
            index: of the file's packets around the wanted frames, ordered.
            wanted: frame numbers, never decreasing. Take no more frames than up to the last one.
            following: what the next clip will want; if that lies in the last stretch, the decoder is left standing.
            is_strict: nothing may be wrong; the reading has served a clip before, or the index begins at a known start.
        Yields: frames in presentation order, among them the wanted ones that were not rejected.
        Raises: MissedError where nothing leads to a start; DoubtError.
        """
        self._is_watched, self._is_strict = is_strict or (bool(following) and self.can_go_on), is_strict
        if wanted[0] <= self._last_wanted:
            self._fed_from = None
        self._last_wanted = wanted[-1]
        targets = np.unique(index.numbers[np.asarray(wanted) - index.first_number])
        starts = starts_before(index, targets)
        for start in np.unique(starts).tolist():
            in_stretch = frozenset((index.first_number + targets[starts == start]).tolist())
            self._go_to(index, start)
            yield from self._feed(index, in_stretch, max(in_stretch) + 1)
            if start == starts[-1] and following and self.can_go_on:
                yield from self._feed_on(index, start, following)
            yield from self._drain()

    def _go_to(self, index: PacketIndex, start: int) -> None:
        """Stay in the stretch that begins at `start` of the index, or begin it."""
        number = index.first_number + start
        if self._fed_from == number:
            return
        if self._is_fed:
            self._context.flush_buffers()
        self._fed_from = None
        self._waiting.clear()
        if not self._is_ahead(index, number):
            self._seek(index, start)
        while self._next_number < number and self._take(index) is not None:
            pass
        self._fed_from = number

    def _is_ahead(self, index: PacketIndex, number: int) -> bool:
        """Whether to read on to a packet: always inside a clip, and to the next clip if it is near.

        From a known start there is no way but to read on.
        """
        if self._packets is None:
            return False
        if not self._is_strict:
            return self._is_fed or number == 0
        near = _NEAR_PACKETS if index.origin is None else len(index.pts)
        return index.first_number <= self._next_number <= number <= self._next_number + near

    def _seek(self, index: PacketIndex, start: int) -> None:
        self._packets = packets_from(self._container, self._stream, index, start)
        self._next_number = index.first_number + start

    def _take(self, index: PacketIndex) -> "Packet[VideoStream] | None":
        """Read the next packet; it should be the one that the index has there."""
        assert self._packets is not None, "packets are taken after a start was found"
        packet = next(self._packets, None)
        place = self._next_number - index.first_number
        self._next_number += 1
        if packet is None or not 0 <= place < len(index.pts) or _pts(packet) != index.pts[place]:
            self._doubt()
        return packet

    def _doubt(self) -> None:
        self._is_clean = False
        if self._is_strict:
            raise DoubtError

    def _feed(self, index: PacketIndex, in_full: AbstractSet[int], stop: int) -> Iterator[VideoFrame]:
        """Decode up to packet `stop`, those in `in_full` for sure and others if something refers to them."""
        yield from self._out()
        while self._next_number < stop:
            if self._can_skip:
                self._context.skip_frame = "DEFAULT" if self._next_number in in_full else "NONREF"
            packet = self._take(index)
            if packet is None:
                return
            self._decode(packet)
            yield from self._out()

    def _feed_on(self, index: PacketIndex, start: int, following: Sequence[int]) -> Iterator[VideoFrame]:
        """Decode beyond the clip, inside the stretch, if the next clip is in it."""
        ahead = [number for number in following if number < index.num_frames]
        if not ahead or not index.covers(ahead[0], ahead[0]):
            return
        targets = index.numbers[np.asarray(ahead) - index.first_number]
        if starts_before(index, targets[:1])[0] != start:
            return
        self._is_strict = True
        later_starts = np.flatnonzero(index.is_start[start + 1 :])
        stop = start + 1 + int(later_starts[0]) if len(later_starts) else len(index.pts)
        yield from self._feed(index, frozenset((index.first_number + targets).tolist()), index.first_number + stop)

    def _drain(self) -> Iterator[VideoFrame]:
        """Bring out what the decoder holds; after that it can only begin anew."""
        self._fed_from = None
        self._decode(None)
        yield from self._out()

    def _decode(self, packet: "Packet[VideoStream] | None") -> None:
        self._is_fed = True
        if not self._is_watched:
            self._waiting += decode_packet(self._context, packet)
            return
        frames, is_clean = _decode_watchfully(self._context, packet)
        if not is_clean:
            self._doubt()
        self._waiting += frames

    def _out(self) -> Iterator[VideoFrame]:
        while self._waiting:
            yield self._waiting.pop(0)


def can_begin_inside(container: InputContainer, stream: VideoStream) -> bool:
    """Whether a clip may be read from a known start: what is wrong shows, and no packet depends on those before.

    MP4 has no need of it, its header holds the whole index. MPEG-TS, FLV and AVI cut or count packets, as above.
    """
    return container.format.name == "matroska" and codec_name(stream) in _TELLING_CODECS


def _pts(packet: "Packet[VideoStream]") -> int:
    return NO_TIME if packet.pts is None else packet.pts


def packets_from(
    container: InputContainer, stream: VideoStream, index: PacketIndex, start: int
) -> Iterator["Packet[VideoStream]"]:
    """Seek, and give the packets from `start` of the index on. Raises: MissedError where that does not lead there."""
    if index.origin is not None:
        return _ahead(packets_at(container, stream, index.origin), int(index.pts[start]))
    by_pts = container.format.name == "matroska"
    timestamp = int(index.pts[start] if by_pts else index.dts[start])
    if timestamp == NO_TIME:
        raise MissedError
    container.seek(timestamp, stream=stream)
    return _ahead(read_packets(container, stream), int(index.pts[start]))


def _ahead(packets: Iterator["Packet[VideoStream]"], pts: int) -> Iterator["Packet[VideoStream]"]:
    for packet in packets:
        if packet.pts is None or packet.pts > pts:
            break
        if packet.pts == pts:
            return chain([packet], packets)
    raise MissedError


def starts_before(index: PacketIndex, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each wanted packet, the last place at or before it from which decoding gives the same frames.

    Raises: MissedError where there is none.
    """
    places = np.flatnonzero(index.is_start)
    if index.first_number == 0 and (not len(places) or places[0] != 0):
        places = np.concatenate(([0], places))
    found = np.searchsorted(places, targets, side="right") - 1
    if found.min() < 0:
        raise MissedError
    starts: NDArray[np.int64] = places[found]
    return starts
