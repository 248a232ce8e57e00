"""How many patches, and how many bytes, a clip makes: plain integers, without torch or any decoder.

Every stage counts with these; only the decoder process makes the rows themselves.
"""

from pipeline.media.container import MediaType

PATCH_SIZE = 16
MERGE_SIZE = 2
NUM_CHANNELS = 3
ALIGNMENT = 256  # bytes, of what a request's buffer is made of: what CUDA's own allocator gives
TABLE_BYTES = 5 * 256 * 2  # colour tables of a clip that travels as planes


def temporal_size(media_type: MediaType) -> int:
    """Frames that one row holds: 2 for a video, 1 for an image."""
    return 2 if media_type is MediaType.VIDEO else 1


def row_bytes(media_type: MediaType) -> int:
    """Bytes of one patch row: 1,536 for a video, 768 for an image."""
    return NUM_CHANNELS * temporal_size(media_type) * PATCH_SIZE * PATCH_SIZE


def grid_of(media_type: MediaType, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(t, h, w) in patches. An odd number of frames counts its last one twice."""
    frames_per_row = temporal_size(media_type)
    return (num_frames + frames_per_row - 1) // frames_per_row, height // PATCH_SIZE, width // PATCH_SIZE


def frame_bytes(height: int, width: int) -> int:
    """Bytes of one 4:2:0 frame of even sides: luma, then half as many of chroma."""
    return height * width * 3 // 2


def planes_bytes(t: int, height: int, width: int) -> int:
    """Bytes of a video clip of `t` temporal patches that travels as planes (`media/planes.py`)."""
    used = TABLE_BYTES + t * temporal_size(MediaType.VIDEO) * frame_bytes(height, width)
    return -(-used // ALIGNMENT) * ALIGNMENT
