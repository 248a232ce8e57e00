"""Wanted frames of a video by PyAV, decoding as little as gives the same bytes as decoding everything.

Packets that no wanted frame needs are skipped (reading.py says how): measured at 0.4-0.7 of the CPU time of decoding in
order, with equal frames on every valid file tried. One thread: more clips at once use the cores better than threads
inside one. The index is read from the container that then decodes, where seeking back is exact; where the next clip is
known to come from the same file, its reading is kept open, and the clip goes on from there. Where probing found a
safe start for the clip (safe_start.py), nothing before that is read.

Damage: a packet that the decoder rejects is passed over. The first wanted frame that fails to appear
ends the skipping, and the clip is decoded again plainly from its start, so that what stands in for a
missing frame never depends on what was skipped. The rule for missing frames is `_stand_in`'s.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import open_video
from pipeline.media.doubt import DoubtError, MissedError
from pipeline.media.index import PacketIndex
from pipeline.media.orientation import orientation_of
from pipeline.media.packets import read_packets
from pipeline.media.reading import Reading, VideoSource, decode_packet
from pipeline.media.safe_start import SafeStart

MAX_MISSING_AT_END = 2

_Key = tuple[str, int, int]


class IndexCache:
    """The last video's packet index, so that the clips of one long video read it once, and its reading.

    An index that turns out too short is read anew at twice its length: a video's clips together read
    each packet a bounded number of times, whatever their number. A reading is kept from one clip to the next
    only if that was announced; it holds a file, a decoder and the decoder's frames, and is closed by whatever
    other clip comes instead.
    """

    def __init__(self) -> None:
        self._key: _Key | None = None
        self._index: PacketIndex | None = None
        self._kept: Reading | None = None
        self._kept_key: _Key | None = None

    def get(
        self, source: VideoSource, first_frame: int, last_frame: int, origin: SafeStart | None = None
    ) -> PacketIndex:
        """The index of a file's packets around two frames, from memory if it is the last one's.

        It begins at `origin`, if one is given and serves.
        """
        try:
            index, reading = self.look_up(source, first_frame, last_frame, last_frame, origin)
        except MissedError:
            index, reading = self.look_up(source, first_frame, last_frame, last_frame)
        if reading is not None:
            reading.close()
        return index

    def look_up(
        self, source: VideoSource, first_frame: int, last_frame: int, reach: int, origin: SafeStart | None = None
    ) -> tuple[PacketIndex, Reading | None]:
        """What `get` gives, read up to frame `reach` if it must be read, and a reading that was opened for it.

        Raises: MissedError where it was to be read from `origin` on, and that does not serve.
        """
        key = _key(source)
        known = self._index if self._key == key else None
        if known is not None and origin is None and known.origin is not None:
            known = None
        if known is not None and known.covers(first_frame, last_frame):
            return known, None
        if known is not None and (origin is None or origin == known.origin):
            reach = max(reach, 2 * known.num_frames - known.first_number)
        reading = Reading(source)
        try:
            index = reading.read_index(first_frame, reach, origin)
            if not index.covers(first_frame, last_frame) and index.first_number:
                if origin is not None:
                    raise MissedError
                reading.close()
                reading = Reading(source)
                index = reading.read_index(0, reach, None)
        except BaseException:
            reading.close()
            raise
        self._key, self._index = key, index
        return index, reading

    def keep(self, reading: Reading) -> None:
        """Leave a reading of the file that was looked up last, and the file itself, to the next clip."""
        reading.own_file()
        self._kept, self._kept_key = reading, self._key

    def keeps(self, file: BinaryIO) -> bool:
        """Whether this file was left here and is to stay open."""
        return self._kept is not None and self._kept.source.file is file

    def take(self, source: VideoSource) -> Reading | None:
        """Hand over the reading that was kept, if it is of this very file; any other is closed."""
        kept = self._kept
        if kept is not None and (self._kept_key != _key(source) or kept.source.file.closed):
            self.drop()
        kept, self._kept = self._kept, None
        return kept

    def drop(self) -> None:
        """Close what was kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _key(source: VideoSource) -> _Key:
    """What a file is known by. Moves the file's position: not for one that is being read."""
    return source.uri, source.file.seek(0, os.SEEK_END), _modified_ns(source.file)


def _modified_ns(file: BinaryIO) -> int:
    try:
        return os.fstat(file.fileno()).st_mtime_ns
    except (OSError, AttributeError):  # a remote file has no handle
        return 0


def read_frames(
    source: VideoSource,
    frame_indices: Sequence[int],
    cache: IndexCache,
    following: Sequence[int] = (),
    origin: SafeStart | None = None,
) -> Generator[VideoFrame]:
    """Yield one decoded frame for each wanted index, in order.

    Args:
        source: a video.
        frame_indices: frame numbers in presentation order, never decreasing.
        cache: the worker's, so that clips of one file share its index, and its reading.
        following: what the next clip will want of this file; `cache` may keep the file then (`keeps` says so).
        origin: a safe start at or before the first wanted frame, if one is known; it changes nothing but what is read.
    Yields: frames as they are stored; an index that repeats gives the same one again.
    Raises: MediaError CORRUPT_MEDIA or TRUNCATED_MEDIA.
    Cost: memory for the decoder's own frames and two of these. Reads from `origin` on; from the beginning without it,
        or where anything is wrong.
    """
    wanted = tuple(frame_indices)
    num_delivered = 0
    for start in dict.fromkeys((origin, None)):
        try:
            index, attempts = _look_up(source, wanted, cache, following, start)
        except MissedError:
            continue
        for attempt in attempts:
            try:
                for frame in islice(attempt.read(cache, index, wanted), num_delivered, None):
                    yield frame
                    num_delivered += 1
            except DoubtError:
                continue
            except MissedError:
                if attempt.is_strict:
                    continue
                break
            return
        if index.origin is None:
            break
    if index.first_number:
        index = IndexCache().get(source, 0, wanted[-1])
    yield from islice(_read_plainly(source, index, wanted), num_delivered, None)


def _look_up(
    source: VideoSource, wanted: Sequence[int], cache: IndexCache, following: Sequence[int], origin: SafeStart | None
) -> tuple[PacketIndex, Iterator["_Attempt"]]:
    """The index around the wanted frames, and the ways to read them by skipping: none if it does not hold them.

    Raises: MissedError where `origin` does not serve; MediaError TRUNCATED_MEDIA or CORRUPT_MEDIA.
    """
    kept = cache.take(source)
    with ExitStack() as stack:  # closes the kept reading if there will be no use for it
        stack.callback(_close, kept)
        index, opened = cache.look_up(source, wanted[0], wanted[-1], max((wanted[-1], *following)), origin)
        can_skip = index.is_ordered and wanted[-1] < index.num_frames
        if not can_skip or kept is not None or not (opened is None or opened.can_begin):
            _close(opened)
            opened = None
        if can_skip:
            stack.pop_all()
    if index.origin is None:
        _require_reached(source.uri, index, wanted[-1])
    return index, _attempts(source, index, kept, opened, following) if can_skip else iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One way to read a clip by skipping: with a reading that may have served clips before, or be left to the next."""

    reading: Reading
    following: Sequence[int]
    is_strict: bool

    def read(self, cache: IndexCache, index: PacketIndex, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """Yield the wanted frames, and close the reading or keep it. Raises: MissedError, DoubtError."""
        with ExitStack() as stack:
            stack.callback(self.reading.close)
            frames = self.reading.frames(index, wanted, self.following, is_strict=self.is_strict)
            yield from _match(((index_position(index, frame), frame) for frame in frames), wanted)
            if self.following and self.reading.can_go_on:
                stack.pop_all()
                cache.keep(self.reading)


def _attempts(
    source: VideoSource, index: PacketIndex, kept: Reading | None, opened: Reading | None, following: Sequence[int]
) -> Iterator[_Attempt]:
    """Go on from the last clip; else begin anew; else, if that went wrong beyond the clip, do not go beyond it."""
    begins_inside = index.origin is not None
    if kept is not None:
        yield _Attempt(reading=kept, following=following, is_strict=True)
    yield _Attempt(reading=opened or Reading(source), following=following, is_strict=begins_inside)
    yield _Attempt(reading=Reading(source), following=(), is_strict=begins_inside)


def _close(reading: Reading | None) -> None:
    if reading is not None:
        reading.close()


def _require_reached(uri: str, index: PacketIndex, last_wanted: int) -> None:
    if not index.reached_end:
        return
    if index.num_frames == 0:
        raise MediaError(ErrorCode.CORRUPT_MEDIA, f"{uri}: expected frames, found no packet of the video stream")
    if last_wanted - (index.num_frames - 1) > MAX_MISSING_AT_END:
        raise MediaError(
            ErrorCode.TRUNCATED_MEDIA,
            f"{uri}: expected frame {last_wanted}, the file ends after {index.num_frames} frames",
        )


def index_position(index: PacketIndex, frame: VideoFrame) -> float | None:
    """A frame's number by its time; halfway between two where no packet has that time."""
    if frame.pts is None:
        return None
    position = int(np.searchsorted(index.sorted_pts, frame.pts))
    is_exact = position < len(index.sorted_pts) and index.sorted_pts[position] == frame.pts
    return index.first_number + position - (0.0 if is_exact else 0.5)


def _match(frames: Iterator[tuple[float | None, VideoFrame]], wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """Pick the wanted frames. Raises MissedError as soon as one is passed by or the frames end."""
    position = 0
    for number, frame in frames:
        if number is None:
            continue
        if number > wanted[position]:
            raise MissedError
        while number == wanted[position]:
            yield frame
            position += 1
            if position == len(wanted):
                return
    raise MissedError


def _read_plainly(source: VideoSource, index: PacketIndex, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    source.file.seek(0)
    with open_video(source.file, source.uri, source.file_format, source.limits) as (container, stream):
        numbered = _number(_decode_all(container, stream), index)
        yield from _stand_in(source.uri, numbered, wanted, index)


def _decode_all(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    for packet in read_packets(container, stream):
        yield from decode_packet(stream.codec_context, packet)
    yield from decode_packet(stream.codec_context, None)


def first_frame(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    """The first frame that a plain decode shows, or None."""
    return next(_decode_all(container, stream), None)


def _number(frames: Iterator[VideoFrame], index: PacketIndex) -> Iterator[tuple[float | None, VideoFrame]]:
    """Number frames by their times, or by counting them where times cannot be trusted."""
    for count, frame in enumerate(frames):
        yield (index_position(index, frame) if index.is_ordered else float(count)), frame


def _stand_in(
    uri: str, frames: Iterator[tuple[float | None, VideoFrame]], wanted: Sequence[int], index: PacketIndex
) -> Iterator[VideoFrame]:
    """Pick the wanted frames of a plain decode, from its start.

    A wanted frame that never appears, though a later one does, is the last frame before it, or the
    first frame that appears if there is none. So are up to MAX_MISSING_AT_END frames at the very end.
    If more are missing there, the clip fails: CORRUPT_MEDIA where their packets exist and were
    rejected, TRUNCATED_MEDIA where the file has no packets for them.
    """
    position, last_number = 0, -1.0
    last: VideoFrame | None = None
    for number, frame in frames:
        if number is None or number <= last_number:
            continue
        while position < len(wanted) and wanted[position] < number:
            yield last or frame
            position += 1
        last, last_number = frame, number
        while position < len(wanted) and wanted[position] == number:
            yield frame
            position += 1
        if position == len(wanted):
            return
    if last is None:
        raise MediaError(
            ErrorCode.CORRUPT_MEDIA, f"{uri}: expected frame {wanted[position]}, the decoder produced no frame"
        )
    if wanted[-1] - int(last_number) > MAX_MISSING_AT_END:
        code = ErrorCode.CORRUPT_MEDIA if index.num_frames > wanted[-1] else ErrorCode.TRUNCATED_MEDIA
        raise MediaError(
            code, f"{uri}: expected frame {wanted[-1]}, the last frame that could be decoded is {int(last_number)}"
        )
    for _ in range(position, len(wanted)):
        yield last


def displayed_frames(frames: Iterator[VideoFrame]) -> Iterator[NDArray[np.uint8]]:
    """Frames as RGB, uint8 (H, W, 3), turned as they are shown; one that comes again is not converted again."""
    reformatter = VideoReformatter()
    last: VideoFrame | None = None
    image = np.empty((0, 0, 3), np.uint8)
    for frame in frames:
        if frame is not last:
            image, last = displayed(frame, reformatter), frame
        yield image


def displayed(frame: VideoFrame, reformatter: VideoReformatter | None = None) -> NDArray[np.uint8]:
    """A frame as RGB, uint8 (H, W, 3), turned as it is shown.

    One thread: swscale starts one a core by itself, in every decoder on the machine.
    """
    rgb = (reformatter or VideoReformatter()).reformat(frame, format="rgb24", threads=1).to_ndarray()
    return orientation_of(frame).apply(np.asarray(rgb, np.uint8))
