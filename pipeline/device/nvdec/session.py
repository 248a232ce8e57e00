"""One decoder of the GPU, fed with packets: of all pictures only the wanted ones are mapped and copied.

The parser calls back while it is being fed: a picture is ready to be decoded (in decode order), or to be shown. A
picture that nothing refers to and nobody wants is not decoded at all, which is what the CPU decoder's exact skipping
does. Shown pictures come with the frame number that their packet was fed with, so numbering is the index's.

What cannot be had right is refused, and the CPU decodes the clip: another format than 8-bit 4:2:0 frames, a size that
changes, a picture that the hardware concealed errors in, a wanted frame that is never shown.
"""

import ctypes
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pipeline.device.nvdec.cuvid import (
    BAD_STATUSES,
    CHROMA_420,
    CODECS,
    END_OF_PICTURE,
    END_OF_STREAM,
    HAS_TIMESTAMP,
    CreateInfo,
    Cuvid,
    DecodeCallback,
    DisplayCallback,
    DisplayInfo,
    ParserParams,
    PictureParams,
    ProcessingParams,
    SequenceCallback,
    SourcePacket,
    VideoFormat,
)
from pipeline.device.nvdec.driver import Driver, DriverError, Rectangle

NOT_SHOWN = -1
_SPARE_SURFACES = 4  # pictures that may wait to be shown while later ones are decoded
_DISPLAY_DELAY = 4
_NO_TIME_CLOCK = 1000  # timestamps are frame numbers; the parser only carries them
_OUTPUT_SURFACES = 2
_MOST_IDLE_DECODERS = 2


class RefusedError(Exception):
    """This clip is not for the device; the text says why."""


class _Decoder:
    """A decoder of the library for one format, used again for later videos of that format."""

    def __init__(self, cuvid: Cuvid, video: VideoFormat, key: tuple[int, ...]) -> None:
        self.key = key
        self.handle = ctypes.c_void_p()
        self._cuvid = cuvid
        info = CreateInfo(
            width=video.coded_width,
            height=video.coded_height,
            num_decode_surfaces=video.min_num_decode_surfaces + _SPARE_SURFACES,
            codec=video.codec,
            chroma_format=video.chroma_format,
            max_width=video.coded_width,
            max_height=video.coded_height,
            target_width=video.coded_width,
            target_height=video.coded_height,
            num_output_surfaces=_OUTPUT_SURFACES,
        )
        try:
            cuvid.call("cuvidCreateDecoder", ctypes.byref(self.handle), ctypes.byref(info))
        except DriverError as error:  # frames below or above what the hardware takes, or no memory for them
            raise RefusedError(f"no decoder for {video.coded_width}x{video.coded_height}: {error}") from None

    def close(self) -> None:
        self._cuvid.call("cuvidDestroyDecoder", self.handle)


class Session:
    """Decodes clip after clip; for one thread, which has entered the driver's context.

    Args:
        cuvid: the library.
        driver: the device.
        step_seconds: the threads of a process map their pictures at the same multiples of this. Mapping takes a kernel,
            and each time the device changes from one process's kernels to another's it stands still: with every
            thread mapping when it liked, an encoder beside them lost a tenth of its speed.
    """

    def __init__(self, cuvid: Cuvid, driver: Driver, step_seconds: float = 0.0) -> None:
        self._cuvid, self._driver, self._step_seconds = cuvid, driver, step_seconds
        self._stream = driver.new_stream()
        self._idle: list[_Decoder] = []

    def open(self, codec: str, size: tuple[int, int], targets: dict[int, int]) -> "ClipDecoding":
        """Begin a clip.

        Args:
            codec: FFmpeg's name.
            size: width and height that frames must have, in pixels.
            targets: for each wanted frame number the address that its NV12 planes are to be written to: luma rows of
                `width` bytes, then half as many rows of chroma.
        """
        return ClipDecoding(self, codec, size, targets)

    def check(self) -> None:
        """Make sure that the device still works after an error. Raises: DriverError."""
        self._driver.wait(self._stream)

    def wait_for_step(self) -> None:
        """Sleep until the threads map."""
        if self._step_seconds:
            time.sleep(self._step_seconds - time.monotonic() % self._step_seconds)

    def take(self, video: VideoFormat) -> _Decoder:
        """A decoder for a format, an idle one if there is one."""
        key = (video.codec, video.coded_width, video.coded_height, video.min_num_decode_surfaces)
        for decoder in self._idle:
            if decoder.key == key:
                self._idle.remove(decoder)
                return decoder
        while len(self._idle) >= _MOST_IDLE_DECODERS:
            self._idle.pop(0).close()
        return _Decoder(self._cuvid, video, key)

    def give_back(self, decoder: _Decoder) -> None:
        """Keep a decoder for the next clip."""
        self._idle.append(decoder)


class ClipDecoding:
    """The wanted frames of one clip; a context manager.

    Errors inside a callback cannot pass through the library: the first one is kept and raised after the call.
    """

    def __init__(self, session: Session, codec: str, size: tuple[int, int], targets: dict[int, int]) -> None:
        self._session = session
        self._cuvid, self._driver, self._stream = session._cuvid, session._driver, session._stream
        self._size, self._targets = size, dict(targets)
        self._codec = CODECS[codec]
        self._error: Exception | None = None
        self._decoder: _Decoder | None = None
        self._corner = (0, 0)
        self._undecoded: set[int] = set()
        self._unchecked: set[int] = set()
        self._keeps_current = True
        self._params = ParserParams(
            codec=self._codec,
            max_num_decode_surfaces=1,
            clock_rate=_NO_TIME_CLOCK,
            max_display_delay=_DISPLAY_DELAY,
            on_sequence=SequenceCallback(self._guarded(self._begin_sequence)),
            on_decode=DecodeCallback(self._guarded(self._decode)),
            on_display=DisplayCallback(self._guarded(self._show)),
        )
        self._parser = ctypes.c_void_p()

    def __enter__(self) -> "ClipDecoding":
        self._cuvid.call("cuvidCreateVideoParser", ctypes.byref(self._parser), ctypes.byref(self._params))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cuvid.call("cuvidDestroyVideoParser", self._parser)
        if self._decoder is not None and kind is None:
            self._session.give_back(self._decoder)
        elif self._decoder is not None:  # who knows what it still holds
            self._decoder.close()

    def feed(self, data: bytes, frame_number: int, *, is_wanted: bool) -> None:
        """Decode one picture's packet, and write what comes to be shown.

        Args:
            data: in the form of a byte stream (Annex B).
            frame_number: when the picture is shown, or NOT_SHOWN.
            is_wanted: False: it may be left out where no other picture needs it.
        Raises: RefusedError; DriverError.
        """
        self._keeps_current = is_wanted
        flags = HAS_TIMESTAMP | END_OF_PICTURE
        self._parse(SourcePacket(flags=flags, payload_size=len(data), payload=data, timestamp=frame_number))

    def drain(self) -> None:
        """Show what is still waiting; the next packet begins anew. Raises: RefusedError; DriverError."""
        self._parse(SourcePacket(flags=END_OF_STREAM))
        for picture_index in sorted(self._unchecked):
            self._check(picture_index)

    def require_all(self) -> None:
        """Every wanted frame has been written. Raises: RefusedError."""
        if self._targets:
            raise RefusedError(f"frames {sorted(self._targets)[:3]} did not appear")

    def _parse(self, packet: SourcePacket) -> None:
        try:
            self._cuvid.call("cuvidParseVideoData", self._parser, ctypes.byref(packet))
        finally:
            if self._error is not None:  # the cause, where the library tells of its effect, too
                raise self._error

    def _guarded(self, handle: Callable[[Any], int]) -> Callable[[object, Any], int]:
        def guarded(_: object, pointer: Any) -> int:
            if self._error is not None:
                return 0
            try:
                return handle(pointer)
            except Exception as error:  # nothing may pass through the library
                self._error = error
                return 0

        return guarded

    def _begin_sequence(self, pointer: "ctypes._Pointer[VideoFormat]") -> int:
        video = pointer.contents
        area = video.display_area
        found = (area.right - area.left, area.bottom - area.top)
        if video.chroma_format != CHROMA_420 or video.bit_depth_luma_minus8 or video.bit_depth_chroma_minus8:
            raise RefusedError("not 8-bit 4:2:0")
        if found != self._size:
            raise RefusedError(f"frames of {found}, expected {self._size}")
        if area.left % 2 or area.top % 2:
            raise RefusedError("chroma is cut in the middle")
        decoder = self._session.take(video) if self._decoder is None else self._decoder
        self._decoder, self._corner = decoder, (area.left, area.top)
        if decoder.key[:3] != (video.codec, video.coded_width, video.coded_height):
            raise RefusedError("the coded size changes")
        if decoder.key[3] < video.min_num_decode_surfaces:
            raise RefusedError("more reference frames are wanted later on")
        return decoder.key[3] + _SPARE_SURFACES

    def _decode(self, pointer: "ctypes._Pointer[PictureParams]") -> int:
        assert self._decoder is not None
        picture = pointer.contents
        if picture.field_pic_flag:
            raise RefusedError("a field of its own")
        if picture.picture_index in self._unchecked:
            self._check(picture.picture_index)
        if not self._keeps_current and not picture.ref_pic_flag:
            self._undecoded.add(picture.picture_index)
            return 1
        self._undecoded.discard(picture.picture_index)
        self._cuvid.call("cuvidDecodePicture", self._decoder.handle, pointer)
        self._unchecked.add(picture.picture_index)
        return 1

    def _show(self, pointer: "ctypes._Pointer[DisplayInfo]") -> int:
        if not pointer:
            return 1
        shown = pointer.contents
        address = self._targets.pop(shown.timestamp, None)
        if address is None:
            return 1
        if shown.picture_index in self._undecoded:
            raise RefusedError(f"frame {shown.timestamp} was taken for another one")
        self._write(shown.picture_index, address)
        self._check(shown.picture_index)
        return 1

    def _write(self, picture_index: int, address: int) -> None:
        """Copy the two planes of a decoded picture, and wait for it: what is mapped must be given back soon."""
        assert self._decoder is not None
        decoder, (width, height), (left, top) = self._decoder.handle, self._size, self._corner
        self._session.wait_for_step()
        mapped, pitch = ctypes.c_ulonglong(), ctypes.c_uint()
        params = ProcessingParams(progressive_frame=1, output_stream=self._stream)
        self._cuvid.call(
            "cuvidMapVideoFrame64",
            decoder,
            ctypes.c_int(picture_index),
            ctypes.byref(mapped),
            ctypes.byref(pitch),
            ctypes.byref(params),
        )
        try:
            luma = mapped.value + top * pitch.value + left
            chroma = mapped.value + (self._decoder.key[2] + 1) // 2 * 2 * pitch.value + top // 2 * pitch.value + left
            for start, rows, target in ((luma, height, address), (chroma, height // 2, address + width * height)):
                plane = Rectangle(address=start, pitch_bytes=pitch.value, width_bytes=width, height=rows)
                self._driver.copy(plane, target, self._stream)
            self._driver.wait(self._stream)
        finally:
            self._cuvid.call("cuvidUnmapVideoFrame64", decoder, mapped)

    def _check(self, picture_index: int) -> None:
        """Raises: RefusedError where the hardware had to conceal errors in the picture that a surface holds."""
        assert self._decoder is not None
        self._unchecked.discard(picture_index)
        if self._cuvid.picture_status(self._decoder.handle, picture_index) in BAD_STATUSES:
            raise RefusedError("the decoder concealed errors")
