"""What the fuzz scenario starts from, a small file of every kind that is read, and how it damages it."""

import random
from pathlib import Path
from typing import Any

from tests.media_factory import make_animation, make_image, make_video

MOST_SEED_BYTES = 2_000_000
_IMAGES = ("png", "jpg", "gif", "webp", "bmp", "tiff", "jp2", "ppm", "avif")
_FAST = {"deadline": "realtime", "cpu-used": "8"}
_VIDEOS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "fragmented.mp4": {"muxer_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": {"codec": "libx265"},
    "h264.mkv": {},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "vp8.webm": {"codec": "libvpx", "options": _FAST},
    "vp9.webm": {"codec": "libvpx-vp9", "options": _FAST},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.ts": {},
    "mpeg2.ts": {"codec": "mpeg2video"},
    "h264.flv": {},
}
_NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0")


def make_seeds(folder: Path) -> list[Path]:
    """Images, animations and videos of all kinds; the first one is a plain image."""
    images = [make_image(folder / f"s.{kind}") for kind in _IMAGES]
    animations = [make_animation(folder / f"a.{kind}") for kind in ("gif", "png", "webp")]
    return [*images, *animations, *(make_video(folder / name, num_frames=8, **how) for name, how in _VIDEOS.items())]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Some bytes, numbers or stretches changed, half of them in the header; sometimes the end cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 4, 16, 64))):
        if not data:
            return b""
        place = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))
        kind = rng.random()
        if kind < 0.5:
            data[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind < 0.8:
            data[place : place + 4] = rng.choice(_NUMBERS)
        else:
            length = rng.randrange(1, 64)
            data[place : place + length] = data[place + length : place + 2 * length]
    return bytes(data[: rng.randrange(1, len(data) + 1)] if data and rng.random() < 0.2 else data)
