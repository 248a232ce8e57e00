"""Which packets of a video are its frames, in what order, and where decoding may begin.

Counting: MP4 and AVI carry an index, and where it is complete nothing else is read. Other containers
are read once, packet by packet, without decoding (0.5-1 ms of CPU a second of video). VP8 and VP9 are
always read, because their packets can be hidden frames: a valid VP9 file in MP4 was seen with 3,628
packets that show 3,400 frames.

Locating: frame i is the i-th shown packet by presentation time. The order is only used where every
packet has a time, no two share one, and none moves further than decoders reorder; otherwise
`is_ordered` is False and frames are counted while decoding. An index is read no further than the last
wanted frame needs. In MP4 it begins one group of pictures before the first wanted one, and where a safe start is
known (safe_start.py) it begins there.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.media.bitstream import HIDDEN_FRAME_CODECS, is_random_access, is_shown
from pipeline.media.packets import read_packets
from pipeline.media.safe_start import SafeStart, packets_at

_INDEXED_DEMUXERS = frozenset({"mov", "avi"})
# H.264 and HEVC keep at most 16 frames waiting; anything beyond this is a jump in the clock.
_MAX_REORDERED_PACKETS = 64
NO_TIME = np.iinfo(np.int64).min


def codec_name(stream: VideoStream) -> str:
    """The codec by FFmpeg's canonical name, whichever decoder serves it."""
    return str(stream.codec_context.codec.canonical_name)


def has_complete_index(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the header alone tells how many frames are shown."""
    return (
        container.format.name in _INDEXED_DEMUXERS
        and codec_name(stream) not in HIDDEN_FRAME_CODECS
        and len(stream.index_entries) == stream.frames > 0
    )


def count_indexed_frames(stream: VideoStream) -> int:
    """Frames of a complete index, less those that an edit list cuts away."""
    return sum(not entry.is_discard for entry in stream.index_entries)


def is_frame(codec: str, packet: "Packet[VideoStream]") -> bool:
    """Whether this packet is counted as a frame: neither hidden nor cut away by an edit list."""
    if packet.is_discard:
        return False
    return codec not in HIDDEN_FRAME_CODECS or is_shown(codec, memoryview(packet))


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """A run of packets in decode order.

    `first_number` is the decode position of the first one in the whole stream; it is above 0 only where
    decode positions and frame numbers are known to agree. Arrays have one entry a packet: `pts` and `dts`
    int64 in the stream's time base, `is_frame` bool, `is_keyframe` bool (the container calls it one), `is_start`
    bool (decoding may begin here as if from the start). `sorted_pts` are the frames' times in presentation order,
    `numbers` their packets. `origin` is the safe start that the run was read from, if one was known.
    """

    first_number: int
    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    is_frame: NDArray[np.bool_]
    is_keyframe: NDArray[np.bool_]
    is_start: NDArray[np.bool_]
    sorted_pts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    is_ordered: bool
    reached_end: bool
    origin: SafeStart | None = None

    @property
    def num_frames(self) -> int:
        """Frames counted from the start of the stream to the end of this run."""
        return self.first_number + len(self.numbers)

    @property
    def keyframes(self) -> tuple[int, ...]:
        """Numbers of the frames at which decoding may begin; none where the order of frames is not known."""
        if not self.is_ordered:
            return ()
        numbers = np.flatnonzero(self.is_start[self.numbers]) + self.first_number
        return tuple(numbers.tolist())

    def covers(self, first_frame: int, last_frame: int) -> bool:
        """Whether these frames lie inside the run, with what reordering may add, behind a place to start."""
        if self.first_number > first_frame or not (
            self.reached_end or last_frame + _MAX_REORDERED_PACKETS < self.num_frames
        ):
            return False
        if self.first_number == 0:
            return True
        if not self.is_ordered or first_frame >= self.num_frames:
            return False
        return bool(self.is_start[: self.numbers[first_frame - self.first_number] + 1].any())


class IndexBuilder:
    """Takes a stream's packets in decode order, and makes their index."""

    def __init__(self, stream: VideoStream, first_number: int = 0) -> None:
        self._stream, self._codec = stream, codec_name(stream)
        self._first_number = first_number
        self._pts, self._dts = array("q"), array("q")
        self._is_frame, self._is_keyframe, self._is_reset = bytearray(), bytearray(), bytearray()
        self.num_frames = first_number

    @property
    def num_packets(self) -> int:
        """Packets taken so far."""
        return len(self._pts)

    def add(self, packet: "Packet[VideoStream]") -> bool:
        """Take the next packet; whether decoding may begin at it, if it is closed."""
        shown = is_frame(self._codec, packet)
        self.num_frames += shown
        self._pts.append(NO_TIME if packet.pts is None else packet.pts)
        self._dts.append(NO_TIME if packet.dts is None else packet.dts)
        self._is_frame.append(shown)
        is_keyframe = packet.is_keyframe
        self._is_keyframe.append(is_keyframe)
        is_reset = is_keyframe and is_random_access(
            self._codec, self._stream.codec_context.extradata, memoryview(packet)
        )
        self._is_reset.append(is_reset)
        return is_reset

    def build(self, *, reached_end: bool, origin: SafeStart | None = None) -> PacketIndex:
        """Put what was taken in order."""
        pts, is_shown_frame = np.array(self._pts, np.int64), np.frombuffer(bytes(self._is_frame), np.bool_)
        in_decode_order = np.flatnonzero(is_shown_frame)
        order = np.argsort(pts[in_decode_order], kind="stable")
        sorted_pts = pts[in_decode_order][order]
        is_ordered = (
            len(order) > 0
            and sorted_pts[0] != NO_TIME
            and bool((np.diff(sorted_pts) > 0).all())
            and int(np.abs(order - np.arange(len(order))).max()) <= _MAX_REORDERED_PACKETS
        )
        return PacketIndex(
            first_number=self._first_number,
            pts=pts,
            dts=np.array(self._dts, np.int64),
            is_frame=is_shown_frame,
            is_keyframe=np.frombuffer(bytes(self._is_keyframe), np.bool_),
            is_start=np.frombuffer(bytes(self._is_reset), np.bool_) & _is_closed(pts),
            sorted_pts=sorted_pts,
            numbers=in_decode_order[order],
            is_ordered=is_ordered,
            reached_end=reached_end,
            origin=origin,
        )


def read_index(
    container: InputContainer,
    stream: VideoStream,
    first_frame: int,
    last_frame: int,
    origin: SafeStart | None = None,
) -> PacketIndex:
    """Read the packets that decide where frames `first_frame` to `last_frame` are.

    Raises: MissedError where `origin` is given and does not serve.
    Cost: reads the media data from its beginning, from `origin`, or in an MP4 with a complete index from one group of
        pictures before `first_frame`, to just after `last_frame`; decodes nothing.
    """
    if origin is None:
        first_number, packets = _packets_near(container, stream, first_frame)
    else:
        first_number, packets = origin.number, packets_at(container, stream, origin)
    builder = IndexBuilder(stream, first_number)
    wanted = last_frame + 1 + _MAX_REORDERED_PACKETS + 1
    for packet in packets:
        builder.add(packet)
        if builder.num_frames >= wanted:
            return builder.build(reached_end=False, origin=origin)
    return builder.build(reached_end=True, origin=origin)


def _is_closed(pts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where no later packet is presented earlier (leading pictures) and no earlier one later."""
    if not len(pts):
        return np.zeros(0, np.bool_)
    latest_before = np.concatenate(([NO_TIME], np.maximum.accumulate(pts)[:-1]))
    earliest_from = np.minimum.accumulate(pts[::-1])[::-1]
    closed: NDArray[np.bool_] = (latest_before < pts) & (earliest_from >= pts)
    return closed


def _packets_near(
    container: InputContainer, stream: VideoStream, first_frame: int
) -> tuple[int, Iterator["Packet[VideoStream]"]]:
    """Packets from a keyframe before `first_frame`, and the first one's decode position.

    Packet n of a complete MP4 index without cuts is frame n but for reordering, which stays inside a group
    of pictures; one more group is left as a margin for leading pictures. FFmpeg may land a keyframe earlier
    than asked (timestamps of the index are decode times), so where it landed is looked up.
    """
    keyframe = _keyframe_before(container, stream, first_frame)
    if keyframe is None:
        return 0, read_packets(container, stream)
    entries = stream.index_entries
    container.seek(entries[keyframe].timestamp, stream=stream)
    packets = read_packets(container, stream)
    landed = next(packets, None)
    if landed is not None and landed.dts is not None:
        number = entries.search_timestamp(landed.dts, any_frame=True)
        if 0 <= number <= keyframe and entries[number].timestamp == landed.dts:
            return number, chain([landed], packets)
    container.seek(entries[0].timestamp, stream=stream)
    return 0, read_packets(container, stream)


def _keyframe_before(container: InputContainer, stream: VideoStream, first_frame: int) -> int | None:
    if container.format.name != "mov" or not has_complete_index(container, stream):
        return None
    entries = stream.index_entries
    if len(entries) <= first_frame or any(entry.is_discard for entry in entries):
        return None
    keyframes = [number for number in range(first_frame + 1) if entries[number].is_keyframe]
    return keyframes[-2] if len(keyframes) > 2 else None
