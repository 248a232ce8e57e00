"""Images by Pillow: always one RGB picture of 8 bits a channel, upright, whole, within the limits.

Every rule here is a decision that Pillow leaves open. Transparency is laid over a stated background
(`convert('RGB')` would show whatever colour lies under it); 16-bit gray is divided by 257
(`convert('RGB')` would saturate it to white); a picture that breaks off is an error, not gray below
the break; EXIF orientation is applied; an animation is its first frame, or a video if asked.
Bit errors that still decode cannot be seen in JPEG, and are not.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import FileFormat, MediaInfo, MediaType

_MOST_GRAY = 65_535
_EXIF_ORIENTATION = 0x0112
_NOT_UPRIGHT = range(2, 9)
_TURNED = range(5, 9)
_DEEP_GRAY = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MILLISECONDS = 1000.0
_STILL: tuple[float, ...] = (0.0,)


@contextmanager
def _open(file: BinaryIO, uri: str, file_format: FileFormat, limits: LimitsConfig) -> Iterator[Image.Image]:
    """Open an image by its sniffed format and check its header; errors inside become MediaError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=(file_format.name,)) as image:
                _require_pixels(uri, image, limits)
                yield image
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            bound = f"limits.max_image_pixels is {limits.max_image_pixels}"
            raise MediaError(ErrorCode.LIMIT_EXCEEDED, f"{uri}: {bound}: {error}") from error
        except UnidentifiedImageError as error:
            raise MediaError(
                ErrorCode.CORRUPT_MEDIA, f"{uri}: expected a {file_format.name} header, found a broken one"
            ) from error
        except (MediaError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise whatever their parsing runs into, asserts too
            is_cut = "truncated" in str(error).lower()
            code = ErrorCode.TRUNCATED_MEDIA if is_cut else ErrorCode.CORRUPT_MEDIA
            raise MediaError(
                code, f"{uri}: expected whole {file_format.name} data: {type(error).__name__}: {error}"
            ) from error


def _require_pixels(uri: str, image: Image.Image, limits: LimitsConfig) -> None:
    num_pixels = image.width * image.height
    if num_pixels > limits.max_image_pixels:
        raise MediaError(
            ErrorCode.LIMIT_EXCEEDED,
            f"{uri}: {image.width}x{image.height} = {num_pixels} pixels; "
            f"limits.max_image_pixels is {limits.max_image_pixels}",
        )


def allow_pixels(limits: LimitsConfig) -> None:
    """Let Pillow's own alarm ring where `limits.max_image_pixels` does; call once a process."""
    Image.MAX_IMAGE_PIXELS = limits.max_image_pixels


def probe_image(
    file: BinaryIO,
    uri: str,
    file_format: FileFormat,
    images: ImagesConfig,
    limits: LimitsConfig,
    *,
    with_times: bool = False,
) -> MediaInfo:
    """Describe an image from its header.

    An animation is a video where `images.animated` says so; its frames are then all looked at.
    Raises: MediaError LIMIT_EXCEEDED, CORRUPT_MEDIA, TRUNCATED_MEDIA, UNSUPPORTED_MEDIA.
    """
    with _open(file, uri, file_format, limits) as image:
        _require_mode(uri, image)
        width, height = image.size
        if _orientation(image) in _TURNED:
            width, height = height, width
        num_frames, durations = 1, _STILL
        if images.animated == "video" and file_format.can_animate:
            num_frames, durations = _read_timing(uri, image, limits)
        is_video = num_frames > 1
        seconds = sum(durations)
        return MediaInfo(
            media_type=MediaType.VIDEO if is_video else MediaType.IMAGE,
            width=width,
            height=height,
            num_frames=num_frames,
            fps=num_frames / seconds if is_video and seconds > 0 else None,
            frame_times_seconds=_start_times(durations) if is_video and with_times else None,
            codec=file_format.name.lower(),
        )


def _read_timing(uri: str, image: Image.Image, limits: LimitsConfig) -> tuple[int, tuple[float, ...]]:
    """Number of frames, and seconds that each is shown."""
    num_frames = int(getattr(image, "n_frames", 1))
    if num_frames > limits.max_video_frames:
        raise MediaError(
            ErrorCode.LIMIT_EXCEEDED,
            f"{uri}: {num_frames} frames; limits.max_video_frames is {limits.max_video_frames}",
        )
    durations = []
    for number in range(num_frames):
        image.seek(number)
        image.load()  # WebP and AVIF know a frame's duration only then
        durations.append(float(image.info.get("duration", 0)) / _MILLISECONDS)
    return num_frames, tuple(durations)


def _start_times(durations: Sequence[float]) -> tuple[float, ...]:
    return (0.0, *(float(time) for time in np.cumsum(durations)[:-1]))


def read_image(
    file: BinaryIO, uri: str, file_format: FileFormat, images: ImagesConfig, limits: LimitsConfig
) -> NDArray[np.uint8]:
    """Decode an image, the first frame of an animation: uint8 (H, W, 3) RGB, upright, contiguous.

    Raises: MediaError LIMIT_EXCEEDED, CORRUPT_MEDIA, TRUNCATED_MEDIA, UNSUPPORTED_MEDIA.
    """
    with _open(file, uri, file_format, limits) as image:
        return _to_rgb(uri, image, images)


def read_animation(
    file: BinaryIO,
    uri: str,
    file_format: FileFormat,
    images: ImagesConfig,
    limits: LimitsConfig,
    frame_indices: Sequence[int],
) -> Iterator[NDArray[np.uint8]]:
    """Yield the wanted frames of an animation, uint8 (H, W, 3) RGB; indices never decrease.

    Raises: as `read_image`, and TRUNCATED_MEDIA where the animation has no such frame.
    """
    with _open(file, uri, file_format, limits) as image:
        last, frame = -1, np.empty((0, 0, 3), np.uint8)
        for number in frame_indices:
            if number != last:
                _seek(uri, image, number)
                frame, last = _to_rgb(uri, image, images), number
            yield frame


def _seek(uri: str, image: Image.Image, number: int) -> None:
    try:
        image.seek(number)
    except EOFError as error:
        raise MediaError(
            ErrorCode.TRUNCATED_MEDIA, f"{uri}: expected frame {number}, the animation ends before it"
        ) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is still to be applied, from the header.

    Pillow turns TIFF by itself. A PNG's that follows the pixels is not looked for: it would cost a decode.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    found = image.getexif().get(_EXIF_ORIENTATION, 1)
    return found if isinstance(found, int) else 1  # a tag of another type says nothing


def _require_mode(uri: str, image: Image.Image) -> None:
    if image.mode == "F":
        raise MediaError(
            ErrorCode.UNSUPPORTED_MEDIA, f"{uri}: expected integer pixels, found floating point ones of unknown range"
        )


def _to_rgb(uri: str, image: Image.Image, images: ImagesConfig) -> NDArray[np.uint8]:
    _require_mode(uri, image)
    is_upright = _orientation(image) not in _NOT_UPRIGHT
    image.load()
    if not is_upright:
        image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_GRAY:
        return _scale_deep_gray(uri, image, images)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        under = Image.new("RGBA", layer.size, (*images.background, 255))
        image = Image.alpha_composite(under, layer)
    return np.ascontiguousarray(image if image.mode == "RGB" else image.convert("RGB"), np.uint8)


def _scale_deep_gray(uri: str, image: Image.Image, images: ImagesConfig) -> NDArray[np.uint8]:
    """Gray of 16 bits to 8, 65535 to 255, rounded to nearest, thrice; a transparent gray is covered."""
    deep = np.asarray(image).astype(np.int64)
    if deep.min() < 0 or deep.max() > _MOST_GRAY:
        raise MediaError(
            ErrorCode.UNSUPPORTED_MEDIA,
            f"{uri}: expected gray of at most 16 bits, found values from {deep.min()} to {deep.max()}",
        )
    gray = ((deep + 128) // 257).astype(np.uint8)
    rgb = np.repeat(gray[:, :, None], 3, axis=2)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        rgb[deep == transparent] = images.background
    return rgb
