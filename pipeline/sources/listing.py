"""From what the user named to a sorted list of media: the first step of every run.

The same sources give the same listing in any order of arguments, on any file system: entries are sorted by code
point (media inside one file by where they lie in it, which is the order to read them in), never by the order a folder
returns them in, and what two arguments both reach is listed once.
"""

import os
from collections.abc import Iterator, Sequence

from pipeline.config import SourcesConfig
from pipeline.errors import UsageError
from pipeline.media.addresses import check_address
from pipeline.media.inside import inside_of
from pipeline.media.location import local_path, path_uri
from pipeline.sources.containers import examine_uri, expand
from pipeline.sources.entries import list_local_manifest, list_remote_manifest
from pipeline.sources.items import Found, Listing, SourceFailure, SourceItem, absolute_path, has_scheme
from pipeline.sources.local import list_local
from pipeline.sources.manifest import is_manifest
from pipeline.sources.remote import list_remote
from pipeline.sources.tables import holds_media

__all__ = ["Listing", "SourceFailure", "SourceItem", "list_sources"]


def list_sources(specs: Sequence[str], config: SourcesConfig) -> Listing:
    """List every medium that the arguments name.

    Args:
        specs: each a file, a folder, a glob (where no such path exists), a manifest (by its suffix, when named
            directly), an fsspec URL of a file, a folder, a glob or a manifest, or the URI of a medium inside a shard or
            a table. Local paths may carry undecodable bytes as Python does (surrogateescape).
        config: which files of a folder count, and whether links and manifests may leave theirs.
    Raises: UsageError for an argument that matches nothing, a malformed manifest or a refused address.
    Cost: one stat a file; nothing but manifests, shards and tables is opened (see containers.py).

    """
    if not specs:
        raise UsageError("sources: expected at least one file, folder, glob, manifest or URL, got none")
    items: set[SourceItem] = set()
    failures: dict[tuple[str, str], SourceFailure] = {}
    for spec in specs:
        for found in (medium for file in _list_spec(spec, config) for medium in expand(file, config)):
            if isinstance(found, SourceItem):
                items.add(found)
            else:
                failures.setdefault((found.uri, found.code), found)
    ordered = _one_a_span(items)
    # A link that a folder may not follow is still a medium where the user also names it directly.
    usable = {item.uri for item in ordered}
    return Listing(
        items=tuple(ordered),
        failures=tuple(failures[key] for key in sorted(failures) if key[0] not in usable),
    )


def _list_spec(spec: str, config: SourcesConfig) -> Iterator[Found]:
    if not spec:
        raise UsageError(f"source {spec!r}: expected a file, folder, glob, manifest or URL")
    if inside_of(spec) is not None:
        return iter([examine_uri(spec, config)])
    named = local_path(spec) if has_scheme(spec) else spec
    if named is None:
        check_address(spec, allow_loopback=config.follow_outside)
        names_media = is_manifest(spec) and not holds_media(spec)
        return list_remote_manifest(spec, config) if names_media else list_remote(spec, config)
    path = absolute_path(os.fsencode(named))
    names_media = os.path.isfile(path) and is_manifest(os.fsdecode(path)) and not holds_media(path_uri(path))  # noqa: PTH113
    return list_local_manifest(path, config) if names_media else list_local(path, config)


def _one_a_span(items: set[SourceItem]) -> list[SourceItem]:
    """Sorted, and once each even where a file changed between two arguments that reach it."""
    ordered = sorted(items, key=lambda item: (*_place(item), item.modified_ns, item.num_bytes))
    latest = {_place(item): item for item in ordered}
    return list(latest.values())


def _place(item: SourceItem) -> tuple[str, int, str, float, float]:
    """Sort by this: an open start before 0, an open end after every other."""
    start = -1.0 if item.start_seconds is None else item.start_seconds
    end = float("inf") if item.end_seconds is None else item.end_seconds
    inside = inside_of(item.uri)
    if inside is None:
        return item.uri, 0, "", start, end
    position = item.byte_range.start if item.byte_range is not None else (inside.cell or ("", 0))[1]
    return inside.container, position, inside.name, start, end
