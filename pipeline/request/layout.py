"""The one buffer of a request: a small int32 header, then the patch rows. All offsets are computed here.

    byte 0      int32 [8]    magic, version, row_bytes, num_patches, num_clips, num_frames, grid_h, grid_w
    byte 32     int32 [C]    clip_frames: temporal patches of each clip
                int32 [C, 2] height and width of its frames, where any clip travels as planes; 0 where this one does not
                zeros up to the next multiple of 256 bytes
    rows_start  uint8 [P, B] patch rows: B = 1536 for video (C, T, 16, 16), 768 for images (T = 1)

C clips, P patches, B row_bytes. Rows run clip by clip and, within a clip, in the official order: t, block-row,
block-col, row in block, column in block. In place of its rows a clip may have its planes, as media/planes.py lays them
out. Header and rows share the buffer because the device needs both and each further copy would cost a launch; 256-byte
alignment is what CUDA's own allocator gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RequestError
from pipeline.media.container import MediaType
from pipeline.media.grid import ALIGNMENT, planes_bytes, row_bytes

MAGIC = 0x50575251  # "PWRQ"
VERSION = 1
FIXED_WORDS = 8
WORD_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLayout:
    """Sizes and offsets of a request's buffer, in bytes unless named otherwise, from plain integers.

    `plane_sizes` has the height and width in pixels of each clip that travels as planes, None for one that has its
    rows; it is empty where all have.
    """

    row_bytes: int
    grid_thw: tuple[tuple[int, int, int], ...]
    plane_sizes: tuple[tuple[int, int] | None, ...] = ()

    def __post_init__(self) -> None:
        shapes = {(h, w) for _, h, w in self.grid_thw}
        if len(shapes) > 1:
            raise RequestError(f"a request holds one (h, w); these clips have {sorted(shapes)}")
        if self.plane_sizes and len(self.plane_sizes) != len(self.grid_thw):
            raise RequestError(f"{len(self.plane_sizes)} plane sizes for {len(self.grid_thw)} clips")

    @classmethod
    def of(
        cls,
        media_type: MediaType,
        grid_thw: Sequence[Sequence[int]],
        plane_sizes: Sequence[tuple[int, int] | None] = (),
    ) -> Self:
        """The layout of clips of one media type with these grids."""
        return cls(
            row_bytes=row_bytes(media_type),
            grid_thw=tuple((t, h, w) for t, h, w in grid_thw),
            plane_sizes=tuple(plane_sizes) if any(plane_sizes) else (),
        )

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
        used = self.clip_frames_start + (self.num_clips + 2 * len(self.plane_sizes)) * WORD_BYTES
        return -(-used // ALIGNMENT) * ALIGNMENT

    @property
    def num_bytes(self) -> int:
        """Size of the whole buffer."""
        return self.clip_offset(self.num_clips)

    def clip_bytes(self, clip: int) -> int:
        """Size of a clip's rows or planes."""
        t, h, w = self.grid_thw[clip]
        plane_size = self.plane_sizes[clip] if self.plane_sizes else None
        return t * h * w * self.row_bytes if plane_size is None else planes_bytes(t, *plane_size)

    def clip_offset(self, clip: int) -> int:
        """Where the rows or planes of a clip begin."""
        return self.rows_start + sum(map(self.clip_bytes, range(clip)))

    def header(self) -> NDArray[np.int32]:
        """The header's words, padded: int32 (rows_start / 4,)."""
        words = np.zeros(self.rows_start // WORD_BYTES, dtype=np.int32)
        _, h, w = self.grid_thw[0] if self.grid_thw else (0, 0, 0)
        fixed = (MAGIC, VERSION, self.row_bytes, self.num_patches, self.num_clips, self.num_frames, h, w)
        words[:FIXED_WORDS] = fixed
        sizes = [side for size in self.plane_sizes for side in size or (0, 0)]
        listed = [t for t, _, _ in self.grid_thw] + sizes
        words[FIXED_WORDS : FIXED_WORDS + len(listed)] = listed
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
