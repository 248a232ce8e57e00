"""The name of a medium's bytes: a hash of all of them, or of samples of large ones.

Up to 64 MiB every byte is hashed. Above, reading everything would cost as much as decoding, so it is the size and 4 MiB
of samples: the first and the last MiB, where containers keep the index that names the size of every frame, and 32
blocks of 64 KiB evenly between. Trade-off: large media of one size that differ only between the samples have one name.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipeline.digest import digest_bytes
from pipeline.media.byte_range import ByteRange

WHOLE_LIMIT_BYTES = 64 << 20
END_BYTES = 1 << 20
BLOCK_BYTES = 64 << 10
NUM_BLOCKS = 32
SAMPLED_BYTES = 2 * END_BYTES + NUM_BLOCKS * BLOCK_BYTES
_READ_BYTES = 1 << 20

ReadRange = Callable[[ByteRange], bytes]


def name_content(file: BinaryIO, num_bytes: int, read_sample: ReadRange | None = None) -> str:
    """Name the first `num_bytes` of a file: `b2-` (hashed whole) or `samples-` and 32 hex digits.

    `read_sample` is how a range of a large one is read; None reads it from the file.
    Raises: whatever reading does.
    """
    if num_bytes <= WHOLE_LIMIT_BYTES:
        return f"b2-{digest_bytes(_chunks(file, num_bytes))}"
    return f"samples-{digest_bytes(_samples(read_sample or (lambda place: _read(file, place)), num_bytes))}"


def sample_ranges(num_bytes: int) -> list[ByteRange]:
    """Where a file of more than WHOLE_LIMIT_BYTES is sampled: its two ends, and blocks evenly between them."""
    between = num_bytes - 2 * END_BYTES - BLOCK_BYTES
    starts = [END_BYTES + index * between // (NUM_BLOCKS - 1) for index in range(NUM_BLOCKS)]
    return [
        ByteRange(start=0, num_bytes=END_BYTES),
        *(ByteRange(start=start, num_bytes=BLOCK_BYTES) for start in starts),
        ByteRange(start=num_bytes - END_BYTES, num_bytes=END_BYTES),
    ]


def _samples(read: ReadRange, num_bytes: int) -> Iterator[bytes]:
    yield f"{num_bytes}:".encode("ascii")
    for place in sample_ranges(num_bytes):
        yield read(place)


def _read(file: BinaryIO, place: ByteRange) -> bytes:
    file.seek(place.start)
    return b"".join(_chunks(file, place.num_bytes))


def _chunks(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """At most `num_bytes`: a file that grows while it is read must not keep the reader."""
    while num_bytes > 0 and (chunk := file.read(min(_READ_BYTES, num_bytes))):
        num_bytes -= len(chunk)
        yield chunk
