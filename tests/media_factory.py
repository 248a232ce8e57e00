"""Videos and images made on the spot, so that every media rule has a test without sample files."""

import io
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

QUIET = {"libx265": {"x265-params": "log-level=none"}}


class Unseekable(io.RawIOBase):
    """A pipe as a muxer sees it: what it has written it cannot correct, so no duration and no index."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        return self._file.write(data)


def picture(number: int, width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture that differs from its neighbours everywhere: moving waves, a moving box and a little noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [
        np.sin((columns + 3 * number) / 9),
        np.sin((rows + 2 * number) / 7),
        np.cos((rows + columns - number) / 11),
    ]
    image = 127 + 90 * np.stack(waves, axis=-1)
    top, left = (5 * number) % max(1, height - 8), (7 * number) % max(1, width - 8)
    image[top : top + 8, left : left + 8] = (255, 30 * (number % 8), 0)
    noise = np.random.default_rng(seed * 100_003 + number).integers(-6, 7, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def make_video(
    path: Path,
    *,
    num_frames: int = 24,
    width: int = 96,
    height: int = 64,
    fps: int = 25,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 12,
    options: Mapping[str, str] | None = None,
    rotation: int = 0,
    matrix: tuple[int, int, int, int] | None = None,
    ticks: Sequence[int] | None = None,
    container: str | None = None,
    muxer_options: Mapping[str, str] | None = None,
    is_seekable: bool = True,
    hidden: Sequence[int] = (),
) -> Path:
    """Encode a video and return its path.

    Args:
        ticks: when each frame is shown, in 1/fps seconds, increasing; None for an even rate.
        rotation: counterclockwise degrees that the container asks a player to turn the picture.
        matrix: a, b, c, d of the display matrix, where `rotation` is not enough.
        is_seekable: False writes as into a pipe.
        hidden: packets of VP8, or of VP9 keyframes, that are marked as not to be shown.
    """
    with path.open("wb") as file:
        target = file if is_seekable else Unseekable(file)
        name = container or {"mkv": "matroska", "ts": "mpegts"}.get(path.suffix[1:], path.suffix[1:])
        with av.open(target, "w", format=name, options=dict(muxer_options or {})) as output:
            stream = output.add_stream(codec, rate=fps, options={**QUIET.get(codec, {}), **(options or {})})
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = Fraction(1, fps)
            if matrix is not None:
                a, b, c, d = (65_536 * value for value in matrix)
                stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
            if rotation:
                stream.set_display_rotation(rotation)
            for number, packet in enumerate(_encode(stream, num_frames, width, height, ticks)):
                output.mux(_hide(packet, codec) if number in hidden else packet)
    return path


def _encode(stream: Any, num_frames: int, width: int, height: int, ticks: Sequence[int] | None) -> Iterator[Any]:
    for number in range(num_frames):
        frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
        frame.pts = number if ticks is None else ticks[number]
        frame.time_base = stream.codec_context.time_base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _hide(packet: Any, codec: str) -> Any:
    """Clear the show_frame bit of a VP8 frame, or of a VP9 keyframe of profile 0."""
    data = bytearray(packet)
    data[0] &= ~{"libvpx": 0x10, "libvpx-vp9": 0x02}[codec]
    copy = av.Packet(bytes(data))
    copy.pts, copy.dts, copy.duration, copy.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    copy.is_keyframe, copy.stream = packet.is_keyframe, packet.stream
    return copy


def remux(source: Path, target: Path, *, repeats: int = 1, is_seekable: bool = True, with_sound: bool = False) -> Path:
    """Copy the packets of an MP4's video into Matroska, `repeats` times one after the other, and return the target.

    `is_seekable` False writes as into a pipe: no Cues, no duration. `with_sound` puts sound between the packets.
    """
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = [packet.pts for packet in packets]
        length = max(times) - min(times) + packets[-1].duration
        with (
            target.open("wb") as file,
            av.open(file if is_seekable else Unseekable(file), "w", format="matroska") as output,
        ):
            copied = output.add_stream_from_template(stream)
            sound = output.add_stream("pcm_s16le", rate=8_000, layout="mono") if with_sound else None
            for turn in range(repeats):
                for number, packet in enumerate(packets):
                    output.mux(_copy(packet, copied, turn * length))
                    if sound is not None:
                        output.mux(_silence(sound, turn * len(packets) + number))
    return target


def _copy(packet: Any, stream: Any, shift: int) -> Any:
    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.duration = packet.pts + shift, packet.dts + shift, packet.duration
    copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, stream
    return copy


def _silence(stream: Any, number: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.pts = 8_000, 320 * number
    return stream.encode(frame)


def make_audio(path: Path) -> Path:
    """A file with one audio stream and nothing else."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16_000, layout="mono")
        for number in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, number * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def make_image(path: Path, *, width: int = 80, height: int = 56, mode: str = "RGB", seed: int = 0, **save: Any) -> Path:
    """Save a picture in a Pillow mode and return its path; `save` goes to Pillow."""
    Image.fromarray(picture(seed, width, height, seed)).convert(mode).save(path, **save)
    return path


def make_animation(
    path: Path, *, num_frames: int = 5, width: int = 40, height: int = 32, milliseconds: int = 100
) -> Path:
    """Save an animation (GIF, PNG or WebP by the name) and return its path."""
    frames = [Image.fromarray(picture(number, width, height)) for number in range(num_frames)]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, **lossless)
    return path


def decode_plainly(path: Path) -> list[NDArray[np.uint8]]:
    """Every frame that a sequential decode from the start shows, as displayed: the oracle for frames."""
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            image = frame.to_ndarray(format="rgb24")
            frames.append(np.ascontiguousarray(np.rot90(image, frame.rotation // 90)))
    return frames


def make_streams(path: Path, *kinds: str) -> Path:
    """An MP4 of several streams in that order: `video` (12 frames of 64x48), `small` (of 32x32), `art`, `audio`."""
    sizes = {"video": (64, 48), "small": (32, 32), "art": (320, 320)}
    with av.open(str(path), "w") as output:
        streams: dict[str, Any] = {}
        for kind in kinds:
            if kind == "audio":
                streams[kind] = output.add_stream("aac", rate=44_100, layout="mono")
                continue
            streams[kind] = output.add_stream("mjpeg" if kind == "art" else "libx264", rate=10)
            streams[kind].width, streams[kind].height = sizes[kind]
            streams[kind].pix_fmt = "yuvj420p" if kind == "art" else "yuv420p"
            if kind == "art":
                streams[kind].disposition = Disposition.attached_pic
        for kind, stream in streams.items():
            if kind == "audio":
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), format="fltp", layout="mono")
                sound.sample_rate, sound.pts = 44_100, 0
                output.mux(stream.encode(sound))
            for number in range({"audio": 0, "art": 1}.get(kind, 12)):
                width, height = sizes[kind]
                frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 20 * number, np.uint8), format="rgb24")
                frame.pts = number
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path
