"""What a decoding session makes of the library's callbacks, with a library that only calls back."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipeline.device.nvdec.cuvid import (
    END_OF_STREAM,
    CreateInfo,
    DisplayInfo,
    ParserParams,
    PictureParams,
    SourcePacket,
    VideoFormat,
)
from pipeline.device.nvdec.driver import DriverError, Rectangle
from pipeline.device.nvdec.session import RefusedError, Session

SIZE = (96, 64)
PITCH = 128
FRAME_BYTES = 96 * 64 * 3 // 2
BASE = 1 << 20


@dataclass
class Scripted:
    """A library whose every packet is a picture in a surface of its own: decoded at once, shown when it ends.

    `data` of a packet says what it is: b"r" a reference, b"n" none, b"f" a field, b"e" one with concealed errors.
    """

    size: tuple[int, int] = SIZE
    bit_depth: int = 8
    fails: str = ""
    decoded: list[int] = field(default_factory=list)
    created: list[tuple[int, int]] = field(default_factory=list)
    num_destroyed: int = 0
    mapped: list[int] = field(default_factory=list)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    num_pictures: int = 0
    has_begun: bool = False

    def call(self, name: str, *arguments: Any) -> None:
        if name == self.fails:
            raise DriverError(f"{name}: CUDA error 1")
        handlers: dict[str, Callable[..., None]] = {
            "cuvidCreateVideoParser": self._create_parser,
            "cuvidParseVideoData": self._parse,
            "cuvidCreateDecoder": self._create_decoder,
            "cuvidDecodePicture": lambda _, picture: self.decoded.append(picture.contents.picture_index),
            "cuvidMapVideoFrame64": self._map,
            "cuvidDestroyDecoder": self._destroy,
        }
        if name in handlers:
            handlers[name](*arguments)

    def picture_status(self, _: object, picture_index: int) -> int:
        return self.statuses.get(picture_index, 2)

    def _create_parser(self, _: object, params: Any) -> None:
        self.params: ParserParams = params._obj
        self.has_begun = False

    def _create_decoder(self, _: object, info: Any) -> None:
        created: CreateInfo = info._obj
        self.created.append((created.width, created.height))

    def _destroy(self, _: object) -> None:
        self.num_destroyed += 1

    def _map(self, _: object, index: Any, address: Any, pitch: Any, __: object) -> None:
        self.mapped.append(index.value)
        address._obj.value, pitch._obj.value = BASE, PITCH

    def _parse(self, _: object, pointer: Any) -> None:
        packet: SourcePacket = pointer._obj
        if packet.flags & END_OF_STREAM:
            for index, timestamp in self.waiting:
                shown = DisplayInfo(picture_index=index, timestamp=timestamp)
                self.params.on_display(None, ctypes.pointer(shown))
            self.waiting.clear()
            return
        if not self.has_begun:
            self.has_begun = True
            self._begin()
        kind, self.num_pictures = packet.payload, self.num_pictures + 1
        index = self.num_pictures - 1
        self.statuses[index] = 9 if kind == b"e" else 2
        picture = PictureParams(picture_index=index, ref_pic_flag=kind == b"r", field_pic_flag=kind == b"f")
        if self.params.on_decode(None, ctypes.pointer(picture)):
            self.waiting.append((index, packet.timestamp))

    def _begin(self) -> None:
        video = VideoFormat(codec=4, coded_width=96, coded_height=64, chroma_format=1, min_num_decode_surfaces=4)
        video.bit_depth_luma_minus8 = self.bit_depth - 8
        video.display_area.right, video.display_area.bottom = self.size
        assert self.params.on_sequence(None, ctypes.pointer(video)) != 1


@dataclass
class Copies:
    """A driver that notes what is copied where."""

    made: list[tuple[Rectangle, int]] = field(default_factory=list)

    def new_stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p()

    def copy(self, source: Rectangle, target_address: int, _: object) -> None:
        self.made.append((source, target_address))

    def wait(self, _: object) -> None:
        pass


def run(library: Scripted, kinds: bytes, wanted: dict[int, int], driver: Copies | None = None) -> Session:
    session = Session(library, driver or Copies())
    decode(session, kinds, wanted)
    return session


def decode(session: Session, kinds: bytes, wanted: dict[int, int]) -> None:
    with session.open("h264", SIZE, wanted) as decoding:
        for number, kind in enumerate(kinds):
            decoding.feed(bytes([kind]), number, is_wanted=number in wanted)
        decoding.drain()
        decoding.require_all()


def test_only_references_and_wanted_pictures_are_decoded_and_only_wanted_ones_are_mapped():
    library = Scripted()
    run(library, b"rnnrnn", {2: 0, 3: FRAME_BYTES})
    assert library.decoded == [0, 2, 3]
    assert library.mapped == [2, 3]


def test_a_wanted_pictures_planes_are_copied_one_after_the_other():
    driver = Copies()
    run(Scripted(), b"rr", {1: 5_000}, driver)
    (luma, luma_target), (chroma, chroma_target) = driver.made
    assert (luma.address, luma.height, luma.width_bytes, luma.pitch_bytes) == (BASE, 64, 96, PITCH)
    assert (chroma.address, chroma.height) == (BASE + 64 * PITCH, 32)
    assert (luma_target, chroma_target) == (5_000, 5_000 + 96 * 64)


def test_a_decoder_serves_the_next_clip_of_its_format():
    library = Scripted()
    session = run(library, b"rr", {0: 0})
    decode(session, b"rr", {1: 0})
    assert (library.created, library.num_destroyed) == ([SIZE], 0)


def test_a_decoder_that_saw_an_error_serves_no_other():
    library = Scripted()
    session = Session(library, Copies())
    with pytest.raises(RefusedError, match="concealed"):
        decode(session, b"re", {1: 0})
    assert library.num_destroyed == 1


@pytest.mark.parametrize(
    ("library", "kinds", "wanted", "reason"),
    [
        (Scripted(size=(96, 62)), b"r", {0: 0}, "frames of"),
        (Scripted(bit_depth=10), b"r", {0: 0}, "8-bit"),
        (Scripted(), b"rf", {0: 0}, "field"),
        (Scripted(fails="cuvidCreateDecoder"), b"r", {0: 0}, "no decoder for"),
    ],
    ids=["size", "depth", "field", "hardware"],
)
def test_what_the_hardware_cannot_have_right_is_refused(library, kinds, wanted, reason):
    with pytest.raises(RefusedError, match=reason):
        run(library, kinds, wanted)


def test_errors_concealed_in_a_picture_that_others_refer_to_refuse_the_clip():
    library = Scripted()
    session = Session(library, Copies())
    with session.open("h264", SIZE, {1: 0}) as decoding, pytest.raises(RefusedError, match="concealed"):
        decoding.feed(b"r", 0, is_wanted=False)
        library.statuses[0] = 8
        decoding.feed(b"r", 1, is_wanted=True)
        library.statuses[0] = 8
        decoding.drain()


def test_a_wanted_frame_that_is_not_shown_refuses_the_clip():
    with pytest.raises(RefusedError, match="did not appear"):
        run(Scripted(), b"rr", {7: 0})


def test_a_callbacks_error_is_the_one_that_is_raised():
    library = Scripted(fails="cuvidDecodePicture")
    with pytest.raises(DriverError, match="cuvidDecodePicture"):
        run(library, b"r", {0: 0})
