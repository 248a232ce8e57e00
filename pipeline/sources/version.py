"""Whether a source is still the one that was planned: its vectors are named by what its bytes hashed to."""

import os

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.location import local_path
from pipeline.sources.content_id import content_id
from pipeline.sources.items import SourceItem


def require_unchanged(uri: str, source_id: str, num_bytes: int, modified_ns: int) -> None:
    """Make sure that a local file holds what was planned.

    The plan's size and modification time settle it; where they differ (a file that was touched, another path of
    equal bytes) the content is hashed again. An object in a store is not looked at: it is replaced whole and read
    through one handle, and another request a clip would cost more than it tells.
    Raises: MediaError(CHANGED_MEDIA). A file that is gone passes here: opening it says so better.
    Cost: one stat, and reading the file where that differs.
    """
    path = local_path(uri)
    if path is None:
        return
    try:
        status = os.stat(path)  # noqa: PTH116  bytes: pathlib has no exact form for undecodable names
    except OSError:
        return
    if (status.st_size, status.st_mtime_ns) == (num_bytes, modified_ns):
        return
    found = content_id(SourceItem(uri=uri, num_bytes=status.st_size, modified_ns=status.st_mtime_ns))
    if found != source_id:
        raise MediaError(
            ErrorCode.CHANGED_MEDIA, f"{uri}: planned with content {source_id}, found {found}", Stage.DECODE
        )
