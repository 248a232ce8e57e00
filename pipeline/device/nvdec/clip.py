"""One clip by a decoder of the GPU: the CPU's own choice of frames and packets, decoded and left in device memory.

Containers, packet indices, frame numbers and the places where decoding may begin are those of the CPU decoder
(`video_pyav.py`), so the same frames come out. A clip's first picture is decoded on the CPU as well: only the decoder
knows what a stream says of colours, interlacing and orientation, and one picture costs some milliseconds.
"""

from dataclasses import dataclass
from typing import BinaryIO

import av
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.config import LimitsConfig
from pipeline.device.nvdec.cuvid import CODECS
from pipeline.device.nvdec.session import NOT_SHOWN, RefusedError, Session
from pipeline.device.nvdec.stretches import FedPacket, read_stretches
from pipeline.media.colour import ColourSpace, planar_problem
from pipeline.media.container import ClipJob, MediaType, identify, open_video
from pipeline.media.doubt import MissedError
from pipeline.media.grid import frame_bytes
from pipeline.media.index import PacketIndex, codec_name
from pipeline.media.reading import PROGRESSIVE, VideoSource, decode_packet
from pipeline.media.video_pyav import IndexCache


def distinct_frames(job: ClipJob) -> tuple[int, ...]:
    """The wanted frames, each once, in order: what is decoded and written."""
    return tuple(dict.fromkeys(job.frame_indices))


def decode_clip(
    job: ClipJob, file: BinaryIO, size: tuple[int, int], address: int, session: Session, tools: "ClipTools"
) -> ColourSpace:
    """Decode a clip's distinct frames.

    Args:
        job: what the CPU would be given.
        file: the medium; read, and left to the caller.
        size: width and height of a frame in pixels, as planned.
        address: device memory for the frames, NV12 without gaps.
        session: the thread's decoder.
        tools: the thread's index cache, and the limits.
    Returns: what the frames' colours mean.
    Raises: RefusedError, where the CPU has to decode the clip; MediaError, where it would fail there, too; DriverError.
    """
    file_format = identify(file, job.uri)
    if file_format.media_type is not MediaType.VIDEO:
        raise RefusedError("no video")
    source = VideoSource(file=file, uri=job.uri, file_format=file_format, limits=tools.limits)
    wanted = distinct_frames(job)
    index = tools.cache.get(source, wanted[0], wanted[-1], job.origin)
    if not index.is_ordered or wanted[-1] >= index.num_frames:
        raise RefusedError("frames cannot be found by their times")
    num_bytes = frame_bytes(*size)
    targets = {number: address + place * num_bytes for place, number in enumerate(wanted)}
    file.seek(0)
    with open_video(file, job.uri, file_format, tools.limits) as (container, stream):
        codec = _checked_codec(stream, size)
        stretches = read_stretches(container, stream, index, wanted)
        with session.open(codec, size, targets) as decoding:
            feeding = _Feeding(stream, codec, index, size)
            try:
                for fed in stretches:
                    if fed.packet is None:
                        decoding.drain()
                    else:
                        number = feeding.frame_number(fed)
                        decoding.feed(feeding.byte_stream(fed), number, is_wanted=fed.is_wanted)
            except MissedError:
                raise RefusedError("seeking does not lead to the index's keyframe") from None
            decoding.require_all()
    assert feeding.colours is not None, "a clip has a first packet"
    return feeding.colours


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTools:
    """What a decoding thread keeps from clip to clip."""

    cache: IndexCache
    limits: LimitsConfig


class _Feeding:
    """Packets as NVDEC wants them, and what the CPU's decoder says of the first one."""

    def __init__(self, stream: VideoStream, codec: str, index: PacketIndex, size: tuple[int, int]) -> None:
        self._stream = stream
        self._size = size
        self._filter = av.BitStreamFilterContext(f"{codec}_mp4toannexb", stream)
        self._numbers = {int(number): index.first_number + rank for rank, number in enumerate(index.numbers)}
        self.colours: ColourSpace | None = None

    def frame_number(self, fed: FedPacket) -> int:
        """When the packet's picture is shown."""
        return self._numbers.get(fed.number, NOT_SHOWN)

    def byte_stream(self, fed: FedPacket) -> bytes:
        """The packet's data with start codes, parameter sets before a keyframe. Raises: RefusedError."""
        assert fed.packet is not None
        if self.colours is None:
            self.colours = self._look_at(fed.packet)
        return b"".join(bytes(packet) for packet in self._filter.filter(fed.packet))

    def _look_at(self, packet: "Packet[VideoStream]") -> ColourSpace:
        """Decode the first packet here. Raises: RefusedError where pictures are not stored as they are shown."""
        context = self._stream.codec_context
        frames = decode_packet(context, packet) or decode_packet(context, None)
        if not frames:
            raise RefusedError("the first packet is no picture of its own")
        frame = frames[0]
        width, height = self._size
        problem = planar_problem(frame, height, width)
        if problem is not None:
            raise RefusedError(problem)
        return ColourSpace.of(frame)


def _checked_codec(stream: VideoStream, size: tuple[int, int]) -> str:
    codec = codec_name(stream)
    if codec not in CODECS:
        raise RefusedError(f"codec {codec}")
    if int(stream.codec_context.field_order) not in PROGRESSIVE:
        raise RefusedError("interlaced")
    if size[0] % 2 or size[1] % 2:
        raise RefusedError("odd sides")
    return codec
