"""What a file is, decided by its first bytes, and how a video is opened.

The name of a file is never believed: a playlist or a concat script named `.mp4` makes FFmpeg-based
readers open other files (seen with PyAV 18.1). The demuxer is therefore chosen here, from a closed
list, and named to PyAV, which then probes nothing; and no protocol is allowed, so a reference inside
a file leads nowhere. Still pictures go to Pillow even where FFmpeg could read them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO, Self

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pipeline.config import LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.byte_range import ByteRange
from pipeline.media.safe_start import SafeStart

SNIFF_BYTES = 4096
_BUFFER_BYTES = 32_768
_NAMES_SIZE = frozenset({"mov", "matroska", "avi"})
_TS_SYNC = 0x47
_TS_PACKET_BYTES = (188, 192, 204)
_TS_PACKETS_SEEN = 5


class MediaType(StrEnum):
    """What a medium becomes: patch rows of two frames each, or of one."""

    VIDEO = "video"
    IMAGE = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """What a probe tells the planner.

    Width and height are as displayed: after rotation and EXIF orientation. `num_frames` is what a
    sequential decode shows, 1 for an image. `fps` is the average rate, None for images and where a
    video has none. `frame_times_seconds` are presentation times minus the first one's, only if asked for. So are
    `keyframes`: the numbers, in order, of frames from which decoding may begin; none where times cannot be trusted.
    `safe_starts` are in order, some 64 frames apart at the least; none where a file is read from its beginning.
    """

    media_type: MediaType
    width: int
    height: int
    num_frames: int
    fps: float | None
    frame_times_seconds: tuple[float, ...] | None
    codec: str
    keyframes: tuple[int, ...] | None = None
    safe_starts: tuple[SafeStart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipJob:
    """One clip to turn into patch rows.

    `frame_indices` count shown frames from 0 in presentation order, never decrease, and may repeat;
    (0,) for an image. `num_source_frames` is what the plan's probe counted. The resized sides are
    multiples of 32 pixels. `byte_range` is where a member lies in its shard. `following` is what the next job
    wants of the same file, if it is known: it saves that job time and changes nothing else. So does `origin`, a safe
    start at or before the first wanted frame. `plane_size` is the height and width of the frames where they are wanted
    as planes (planes.py), if they can be had so; None: as patch rows.
    """

    uri: str
    media_type: MediaType
    frame_indices: tuple[int, ...]
    num_source_frames: int
    resized_height: int
    resized_width: int
    byte_range: ByteRange | None = None
    following: tuple[int, ...] = ()
    origin: SafeStart | None = None
    plane_size: tuple[int, int] | None = None

    def to_values(self) -> dict[str, Any]:
        """As plain values, for a message to a decoder process."""
        place = None if self.byte_range is None else self.byte_range.to_values()
        origin = None if self.origin is None else self.origin.to_values()
        return {**{name: getattr(self, name) for name in self.__slots__}, "byte_range": place, "origin": origin}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From a message that holds these values, whatever else is in it."""
        place = values["byte_range"]
        own = {name: values[name] for name in cls.__slots__}
        return cls(
            **{
                **own,
                "media_type": MediaType(values["media_type"]),
                "frame_indices": tuple(values["frame_indices"]),
                "following": tuple(values["following"]),
                "byte_range": None if place is None else ByteRange(**place),
                "origin": SafeStart.from_values(values["origin"]),
                "plane_size": values["plane_size"] and tuple(values["plane_size"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReport:
    """How a clip was made: which backend served it, bytes written, CPU seconds of the decoder process, and as what."""

    backend: str
    num_bytes: int
    decode_seconds: float
    is_planar: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """A format by its reader's name: an FFmpeg demuxer for videos, a Pillow plugin for images."""

    media_type: MediaType
    name: str
    can_animate: bool = False


def _video(name: str) -> FileFormat:
    return FileFormat(media_type=MediaType.VIDEO, name=name)


def _image(name: str, can_animate: bool = False) -> FileFormat:
    return FileFormat(media_type=MediaType.IMAGE, name=name, can_animate=can_animate)


_MAGIC: tuple[tuple[re.Pattern[bytes], FileFormat], ...] = tuple(
    (re.compile(pattern, re.DOTALL), file_format)
    for pattern, file_format in (
        (rb"\xff\xd8\xff", _image("JPEG")),
        (rb"\x89PNG\r\n\x1a\n", _image("PNG", can_animate=True)),
        (rb"GIF8[79]a", _image("GIF", can_animate=True)),
        (rb"RIFF....WEBP", _image("WEBP", can_animate=True)),
        (rb"BM.{4}\x00\x00\x00\x00", _image("BMP")),
        (rb"II\*\x00|MM\x00\*", _image("TIFF")),
        (rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _image("JPEG2000")),
        (rb"P[1-6]\s", _image("PPM")),
        (rb"....ftyp(avif|avis)", _image("AVIF", can_animate=True)),
        (rb"....ftyp(mif1|msf1|miaf).{0,64}avi[fs]", _image("AVIF", can_animate=True)),
        (rb"....ftyp(?!heic|heix|hevc|hevx|heim|heis|mif1|msf1|miaf)", _video("mov")),
        (rb"....(moov|mdat|moof|styp|sidx|wide|free|skip|pnot|uuid)", _video("mov")),
        (rb"\x1a\x45\xdf\xa3", _video("matroska")),
        (rb"RIFF....AVI[ X\x19]", _video("avi")),
        (rb"FLV\x01", _video("flv")),
        (rb"OggS", _video("ogg")),
        (rb"\x00\x00\x01\xba", _video("mpeg")),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _video("asf")),
        (rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", _video("mxf")),
        (rb"DKIF\x00\x00", _video("ivf")),
    )
)


def sniff(head: bytes) -> FileFormat | None:
    """Name the format that a file's first SNIFF_BYTES show, or None if it is none that is read here."""
    for pattern, file_format in _MAGIC:
        if pattern.match(head):
            return file_format
    return _sniff_transport_stream(head)


def _sniff_transport_stream(head: bytes) -> FileFormat | None:
    """Find MPEG-TS by its sync bytes; a recording cut in mid-packet begins with up to a packet of something else."""
    for packet_bytes in _TS_PACKET_BYTES:
        for start in range(packet_bytes):
            found = head[start::packet_bytes]
            if len(found) >= _TS_PACKETS_SEEN and set(found) == {_TS_SYNC}:
                return _video("mpegts")
    return None


def identify(file: BinaryIO, uri: str) -> FileFormat:
    """Sniff an open file and rewind it. Raises MediaError UNSUPPORTED_MEDIA."""
    head = file.read(SNIFF_BYTES)
    file.seek(0)
    file_format = sniff(head)
    if file_format is None:
        found = f"a file beginning {head[:16]!r}" if head else "no bytes"
        raise MediaError(ErrorCode.UNSUPPORTED_MEDIA, f"{uri}: expected a video or an image, found {found}")
    return file_format


@contextmanager
def open_video(
    file: BinaryIO, uri: str, file_format: FileFormat, limits: LimitsConfig
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video's container and its best video stream, ready to decode on one thread.

    Raises: MediaError CORRUPT_MEDIA, NO_VIDEO_STREAM, UNSUPPORTED_MEDIA (no decoder) or, before any
        frame is allocated, LIMIT_EXCEEDED.
    Source: https://ffmpeg.org/ffmpeg-formats.html (format_whitelist, protocol_whitelist); `max_pixels`
        also reaches the decoders that FFmpeg itself opens to learn about the stream.
    """
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": "mov,matroska,avi,flv,ogg,mpegts,mpeg,asf,mxf,ivf",
        "max_pixels": str(limits.max_video_pixels),
    }
    try:
        container = av.open(
            file,
            mode="r",
            format=file_format.name,
            options=options,
            metadata_errors="ignore",
            buffer_size=_BUFFER_BYTES,
        )
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            ErrorCode.CORRUPT_MEDIA,
            f"{uri}: expected a readable {file_format.name} container: {getattr(error, 'strerror', None) or error}",
        ) from error
    with container:
        stream = _best_video_stream(container, uri)
        _require_pixels(uri, file_format, stream, limits)
        context = stream.codec_context
        context.thread_count = 1
        context.thread_type = ThreadType.NONE
        context.options = {"max_pixels": str(limits.max_video_pixels)}
        yield container, stream


def _best_video_stream(container: InputContainer, uri: str) -> VideoStream:
    """FFmpeg's choice of stream, or the first other one where it chose cover art."""
    best = container.streams.best("video")
    candidates = [best, *container.streams.video] if best is not None else []
    for stream in candidates:
        if isinstance(stream, VideoStream) and not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise MediaError(
                    ErrorCode.UNSUPPORTED_MEDIA, f"{uri}: expected a known video codec; this one has no decoder"
                )
            return stream
    raise MediaError(ErrorCode.NO_VIDEO_STREAM, f"{uri}: expected a video stream, found {_describe_streams(container)}")


def _describe_streams(container: InputContainer) -> str:
    kinds = [stream.type for stream in container.streams]
    return f"streams of type {', '.join(kinds)}" if kinds else "no stream"


def _require_pixels(uri: str, file_format: FileFormat, stream: VideoStream, limits: LimitsConfig) -> None:
    """Refuse large frames; FFmpeg blanks the size that its own check refused, in headers that always name one."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width * height and file_format.name in _NAMES_SIZE:
        raise MediaError(
            ErrorCode.LIMIT_EXCEEDED,
            f"{uri}: expected frames within limits.max_video_pixels ({limits.max_video_pixels}), "
            "the header names a size that is not",
        )
    if width * height > limits.max_video_pixels:
        raise MediaError(
            ErrorCode.LIMIT_EXCEEDED,
            f"{uri}: frames of {width}x{height} = {width * height} pixels; "
            f"limits.max_video_pixels is {limits.max_video_pixels}",
        )
