"""Files that hold media become one source a medium.

Tar shards (shards.py) and tables with a column of bytes (tables.py), wherever they are found; everything else stays one
source. The one place that decides it, so that folders, globs, manifests and stores follow one rule.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

from pipeline.config import SourcesConfig
from pipeline.media.inside import TAR, inside_of
from pipeline.media.location import local_path
from pipeline.sources.items import Found, SourceFailure, absolute_path
from pipeline.sources.local import examine
from pipeline.sources.remote import examine_remote
from pipeline.sources.shards import is_shard, list_members, named_member
from pipeline.sources.tables import is_table, list_rows, named_row


def examine_uri(
    uri: str, config: SourcesConfig, start_seconds: float | None = None, end_seconds: float | None = None
) -> Found:
    """Look at one file by its URI, or for a medium inside one at the file that holds it, under the medium's name.

    Raises: UsageError for a URL that cannot be served. Cost: one stat, or one request to a store.
    """
    inside = inside_of(uri)
    container = uri if inside is None else inside.container
    path = local_path(container)
    if path is None:
        found = examine_remote(container, config, start_seconds, end_seconds)
    else:
        found = examine(absolute_path(os.fsencode(path)), start_seconds, end_seconds)
    if inside is None or isinstance(found, SourceFailure):
        return found
    return replace(found, uri=replace(inside, container=found.uri).uri)


def expand(found: Found, config: SourcesConfig) -> Iterator[Found]:
    """Give the media in a shard or a table, the one that was named in it, or anything else as it is.

    Args:
        found: a file; or a medium inside one, with the facts of the file.
        config: which members count.
    Raises: UsageError for a bad span in a table.
    Cost: for a shard its headers and the first bytes of members without a known suffix, once in order; for a table its
        footer and its spans (an Arrow file is read once); else none.
    """
    if isinstance(found, SourceFailure):
        yield found
        return
    inside = inside_of(found.uri)
    if inside is not None:
        yield named_member(found, inside) if inside.scheme == TAR else named_row(found, inside)
    elif is_shard(found.uri):
        yield from list_members(found, config)
    elif is_table(found.uri):
        yield from list_rows(found)
    else:
        yield found
