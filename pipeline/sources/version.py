"""Whether a source is still the one that was planned: its vectors are named by what its bytes hashed to."""

import os

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.location import local_path


def require_unchanged(uri: str, num_bytes: int, modified_ns: int) -> None:
    """Compare a local file's size and modification time with the plan's.

    An object in a store is not looked at again: it is replaced whole and read through one handle, and another
    request a clip would cost more than it tells.
    Raises: MediaError(CHANGED_MEDIA). A file that is gone passes here: opening it says so better.
    Cost: one stat.
    """
    path = local_path(uri)
    if path is None:
        return
    try:
        status = os.stat(path)  # noqa: PTH116  bytes: pathlib has no exact form for undecodable names
    except OSError:
        return
    if (status.st_size, status.st_mtime_ns) != (num_bytes, modified_ns):
        raise MediaError(
            ErrorCode.CHANGED_MEDIA,
            f"{uri}: planned with {num_bytes} bytes, modified at {modified_ns} ns; "
            f"found {status.st_size} bytes, modified at {status.st_mtime_ns} ns",
            Stage.DECODE,
        )
