"""What a medium is, from its header and index: the planner's only look at a file.

One frame of a video is decoded, the first that can be: only a decoded frame says how the picture is
turned, and a file that shows nothing is refused here instead of in the middle of a run. Everything
else comes from the container (see index.py for what is read to count frames).
"""

import sys
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.config import ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import FileFormat, MediaInfo, MediaType, identify, open_video
from pipeline.media.image import probe_image
from pipeline.media.index import (
    NO_TIME,
    IndexBuilder,
    codec_name,
    count_indexed_frames,
    has_complete_index,
    read_index,
)
from pipeline.media.orientation import orientation_of
from pipeline.media.packets import read_packets
from pipeline.media.reading import can_begin_inside, decode_packet
from pipeline.media.safe_start import SafeStart

_MICROSECOND = 1e-6  # the unit of a container's own duration
# Reading a packet costs some 20 microseconds: nearer starts would save little and fill the plan.
_FRAMES_BETWEEN_STARTS = 64


def probe_media(
    file: BinaryIO,
    uri: str,
    images: ImagesConfig,
    limits: LimitsConfig,
    *,
    with_times: bool = False,
    with_keyframes: bool = False,
) -> MediaInfo:
    """Describe an open file.

    Raises: MediaError: UNSUPPORTED_MEDIA, NO_VIDEO_STREAM, CORRUPT_MEDIA, TRUNCATED_MEDIA, LIMIT_EXCEEDED.
    Cost: a header, an index and a frame for MP4 and AVI; one read of the file without decoding for other
        containers, for VP8 and VP9, and for `with_times`; another one for `with_keyframes`.
    """
    file_format = identify(file, uri)
    if file_format.media_type is MediaType.IMAGE:
        return probe_image(file, uri, file_format, images, limits, with_times=with_times)
    info = _probe_video(file, uri, file_format, limits, with_times)
    return replace(info, keyframes=_keyframes(file, uri, file_format, limits)) if with_keyframes else info


def _keyframes(file: BinaryIO, uri: str, file_format: FileFormat, limits: LimitsConfig) -> tuple[int, ...]:
    file.seek(0)
    with open_video(file, uri, file_format, limits) as (container, stream):
        return read_index(container, stream, 0, sys.maxsize).keyframes


def _probe_video(
    file: BinaryIO, uri: str, file_format: FileFormat, limits: LimitsConfig, with_times: bool
) -> MediaInfo:
    with open_video(file, uri, file_format, limits) as (container, stream):
        _require_length(uri, _header_seconds(container, stream) or 0.0, 0, limits)
        counts_packets = with_times or not has_complete_index(container, stream)
        survey = _Survey(uri, stream, limits)
        for packet in read_packets(container, stream, survey.doubts):
            survey.add(packet)
            if survey.first_frame is not None and not counts_packets:
                break
        first = survey.finish()
        num_frames = survey.num_frames if counts_packets else count_indexed_frames(stream)
        if num_frames < 1:
            raise MediaError(ErrorCode.CORRUPT_MEDIA, f"{uri}: expected frames, found an index that shows none")
        fps = survey.fps(container) if counts_packets else _average_fps(stream)
        _require_length(uri, num_frames / fps if fps else 0.0, num_frames, limits)
        width, height = orientation_of(first).size(first.width, first.height)
        return MediaInfo(
            media_type=MediaType.VIDEO,
            width=width,
            height=height,
            num_frames=num_frames,
            fps=fps,
            frame_times_seconds=survey.times_seconds(fps) if with_times else None,
            codec=codec_name(stream),
            safe_starts=survey.safe_starts() if can_begin_inside(container, stream) else (),
        )


class _Survey:
    """Counts packets and frames of one stream, and decodes until a frame appears."""

    def __init__(self, uri: str, stream: VideoStream, limits: LimitsConfig) -> None:
        self._uri, self._stream, self._limits = uri, stream, limits
        self._codec = codec_name(stream)
        self._packets = IndexBuilder(stream)
        self._places: dict[int, tuple[int, int]] = {}  # byte position and size, of packets that may be starts
        self.doubts: list[str] = []
        self.first_frame: VideoFrame | None = None

    @property
    def num_packets(self) -> int:
        """Packets so far."""
        return self._packets.num_packets

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return self._packets.num_frames

    def add(self, packet: "Packet[VideoStream]") -> None:
        """Take the next packet in decode order."""
        if self._packets.add(packet) and packet.pos is not None:
            self._places[self.num_packets - 1] = packet.pos, packet.size
        if self.num_frames > self._limits.max_video_frames:
            _require_length(self._uri, 0.0, self.num_frames, self._limits)
        if self.first_frame is None:
            self._decode(packet)

    def safe_starts(self) -> tuple[SafeStart, ...]:
        """Where clips may begin, once all packets were taken; none unless nothing at all is wrong."""
        index = self._packets.build(reached_end=True)
        if self.doubts or not index.is_ordered:
            return ()
        clusters = {entry.timestamp: entry.pos for entry in self._stream.index_entries}
        starts: list[SafeStart] = []
        num_before = 0
        for number in np.flatnonzero(index.is_start).tolist():
            pts = int(index.pts[number])
            is_numbered = number < len(index.numbers) and index.numbers[number] == number
            if number >= num_before + _FRAMES_BETWEEN_STARTS and is_numbered and pts in clusters:
                position, num_bytes = self._places[number]
                starts.append(
                    SafeStart(
                        number=number,
                        pts=pts,
                        cluster_position=clusters[pts],
                        position=position,
                        num_bytes=num_bytes,
                    )
                )
                num_before = number
        return tuple(starts)

    def _decode(self, packet: "Packet[VideoStream]") -> None:
        context = self._stream.codec_context
        frames = decode_packet(context, packet)
        if not frames and packet.is_keyframe:  # push it out instead of waiting for what reordering holds back
            frames = decode_packet(context, None)
            context.flush_buffers()
        self.first_frame = next(iter(frames), None)

    def finish(self) -> VideoFrame:
        """The first frame. Raises MediaError TRUNCATED_MEDIA or CORRUPT_MEDIA if none was decoded."""
        if self.first_frame is None:
            self.first_frame = next(iter(decode_packet(self._stream.codec_context, None)), None)
        if self.first_frame is None:
            if not self.num_packets:
                raise MediaError(
                    ErrorCode.TRUNCATED_MEDIA, f"{self._uri}: expected frame data after the header, found none"
                )
            raise MediaError(
                ErrorCode.CORRUPT_MEDIA,
                f"{self._uri}: expected {self._codec} frames within limits.max_video_pixels; "
                f"none of {self.num_packets} packets could be decoded",
            )
        return self.first_frame

    def fps(self, container: InputContainer) -> float | None:
        """The container's average rate, or frames by duration where packets are not frames."""
        seconds = _header_seconds(container, self._stream)
        if self.num_frames != self.num_packets and seconds:
            return self.num_frames / seconds
        return _average_fps(self._stream)

    def times_seconds(self, fps: float | None) -> tuple[float, ...]:
        """Presentation times from 0; even ones where the container has none or repeats them."""
        index = self._packets.build(reached_end=True)
        times = sorted(set(index.sorted_pts[index.sorted_pts != NO_TIME].tolist()))
        if len(times) != self.num_frames or self._stream.time_base is None:
            return tuple(number / (fps or 24.0) for number in range(self.num_frames))
        return tuple(float((time - times[0]) * self._stream.time_base) for time in times)


def _average_fps(stream: VideoStream) -> float | None:
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def _header_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration * _MICROSECOND if container.duration else None


def _require_length(uri: str, seconds: float, num_frames: int, limits: LimitsConfig) -> None:
    for found, unit, name in (
        (seconds, "seconds", "max_video_seconds"),
        (num_frames, "frames", "max_video_frames"),
    ):
        limit = getattr(limits, name)
        if found > limit:
            raise MediaError(ErrorCode.LIMIT_EXCEEDED, f"{uri}: {found:g} {unit}; limits.{name} is {limit:g}")
