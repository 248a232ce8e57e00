"""Whether a source is still the one that was planned: its vectors are named by what its bytes hashed to."""

from dataclasses import replace

from pipeline.errors import ErrorCode, MediaError, Stage
from pipeline.media.inside import container_of
from pipeline.media.location import file_version
from pipeline.media.sandbox import Sandbox
from pipeline.sources.content_id import content_id
from pipeline.sources.items import SourceItem


def require_unchanged(item: SourceItem, source_id: str, sandbox: Sandbox | None = None) -> None:
    """Make sure that a local file, or the place in it, holds what was planned.

    The plan's size and modification time settle it; where they differ (a file that was touched, another path of
    equal bytes) the content is hashed again, and only that counts: of a file above 64 MiB its samples.
    An object in a store is not looked at: it is replaced whole and read through one handle, and another request a clip
    would cost more than it tells. `sandbox` reads the cells of tables; None where there are none.
    Raises: MediaError(CHANGED_MEDIA). A file that is gone passes here: opening it says so better.
    Cost: one stat, and what `content_id` reads where that differs.
    """
    version = file_version(container_of(item.uri))
    if version is None or item.was_listed_in(*version):
        return
    num_bytes, modified_ns = version
    found = content_id(replace(item, num_bytes=num_bytes, modified_ns=modified_ns), sandbox)
    if found != source_id:
        raise MediaError(
            ErrorCode.CHANGED_MEDIA, f"{item.uri}: planned with content {source_id}, found {found}", Stage.DECODE
        )
