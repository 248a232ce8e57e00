"""The one buffer of a request: a small int32 header, then the patch rows. All offsets are computed here.

    byte 0      int32 [8]    magic, version, row_bytes, num_patches, num_clips, num_frames, grid_h, grid_w
    byte 32     int32 [C]    clip_frames: temporal patches of each clip
                zeros up to the next multiple of 256 bytes
    rows_start  uint8 [P, B] patch rows: B = 1536 for video (C, T, 16, 16), 768 for images (T = 1)

C clips, P patches, B row_bytes. Rows run clip by clip and, within a clip, in the official order: t, block-row,
block-col, row in block, column in block. Header and rows share the buffer because the device needs both and
each further copy would cost a launch; 256-byte alignment is what CUDA's own allocator gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RequestError
from pipeline.media.container import MediaType
from pipeline.media.grid import row_bytes

MAGIC = 0x50575251  # "PWRQ"
VERSION = 1
ALIGNMENT = 256
FIXED_WORDS = 8
WORD_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLayout:
    """Sizes and offsets of a request's buffer, in bytes unless named otherwise, from plain integers."""

    row_bytes: int
    grid_thw: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        shapes = {(h, w) for _, h, w in self.grid_thw}
        if len(shapes) > 1:
            raise RequestError(f"a request holds one (h, w); these clips have {sorted(shapes)}")

    @classmethod
    def of(cls, media_type: MediaType, grid_thw: Sequence[Sequence[int]]) -> Self:
        """The layout of clips of one media type with these grids."""
        return cls(row_bytes=row_bytes(media_type), grid_thw=tuple((t, h, w) for t, h, w in grid_thw))

    @property
    def num_clips(self) -> int:
        """Clips in the buffer."""
        return len(self.grid_thw)

    @property
    def num_frames(self) -> int:
        """Temporal patches in the buffer."""
        return sum(t for t, _, _ in self.grid_thw)

    @property
    def num_patches(self) -> int:
        """Patch rows in the buffer."""
        return sum(t * h * w for t, h, w in self.grid_thw)

    @property
    def clip_frames_start(self) -> int:
        """Where the temporal patches per clip begin."""
        return FIXED_WORDS * WORD_BYTES

    @property
    def rows_start(self) -> int:
        """Where the patch rows begin."""
        used = self.clip_frames_start + self.num_clips * WORD_BYTES
        return -(-used // ALIGNMENT) * ALIGNMENT

    @property
    def num_bytes(self) -> int:
        """Size of the whole buffer."""
        return self.rows_start + self.num_patches * self.row_bytes

    def clip_offset(self, clip: int) -> int:
        """Where the rows of a clip begin."""
        return self.rows_start + sum(t * h * w for t, h, w in self.grid_thw[:clip]) * self.row_bytes

    def header(self) -> NDArray[np.int32]:
        """The header's words, padded: int32 (rows_start / 4,)."""
        words = np.zeros(self.rows_start // WORD_BYTES, dtype=np.int32)
        _, h, w = self.grid_thw[0] if self.grid_thw else (0, 0, 0)
        fixed = (MAGIC, VERSION, self.row_bytes, self.num_patches, self.num_clips, self.num_frames, h, w)
        words[:FIXED_WORDS] = fixed
        words[FIXED_WORDS : FIXED_WORDS + self.num_clips] = [t for t, _, _ in self.grid_thw]
        return words

    def check(self, buffer: NDArray[np.uint8]) -> None:
        """Compare a buffer's own header with this layout.

        Raises: RequestError that says which word differs, or that the buffer is too short.
        """
        if buffer.size != self.num_bytes:
            raise RequestError(f"request buffer: expected {self.num_bytes} bytes, got {buffer.size}")
        found, expected = buffer[: self.rows_start].view(np.int32), self.header()
        if not np.array_equal(found, expected):
            word = int(np.flatnonzero(found != expected)[0])
            raise RequestError(
                f"request buffer: header word {word} is {found[word]}, expected {expected[word]} "
                f"(layout version {VERSION})"
            )
