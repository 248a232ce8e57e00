"""What of a listing lies outside the output: a run's own tables are no media, and each run would find more of them.

Compared are real places: an output that is named with `..` or through a link is the folder that the sources are in,
and a link to one of its files is that file. In a store two spellings of a URL are one.
"""

import functools
import os
from collections.abc import Callable

from pipeline.media.inside import container_of
from pipeline.media.location import local_path, path_uri
from pipeline.sink.output import OutputFolder
from pipeline.sources.listing import Listing


def outside(listing: Listing, folder: OutputFolder) -> Listing:
    """Leave out what lies in the output.

    Raises: OutputError for a store that cannot be opened. Cost: one `lstat` a local file, and one look at each folder.
    """
    inside = real_uri(_place(folder)).rstrip("/") + "/"
    real_folder = functools.lru_cache(maxsize=1)(os.path.realpath)  # files of one folder are listed one after another

    def is_outside(uri: str) -> bool:
        return not real_uri(container_of(uri), real_folder).startswith(inside)

    return Listing(
        items=tuple(item for item in listing.items if is_outside(item.uri)),
        failures=tuple(failure for failure in listing.failures if is_outside(failure.uri)),
    )


def real_uri(uri: str, real_folder: Callable[[bytes], bytes] = os.path.realpath) -> str:
    """The URI of the same file with `..` and links resolved; a URL as it is. It need not exist."""
    found = local_path(uri)
    if found is None:
        return uri
    path = os.fsencode(found)
    if os.path.islink(path):  # noqa: PTH114  bytes: exact for any name
        return path_uri(os.path.realpath(path))
    parent, name = os.path.split(path)
    return path_uri(os.path.realpath(path) if name in (b"", b".", b"..") else os.path.join(real_folder(parent), name))  # noqa: PTH118


def _place(folder: OutputFolder) -> str:
    """The output's URI as listings spell it."""
    if folder.local is not None:
        return folder.uri
    store, root = folder.store()
    return str(store.unstrip_protocol(root))
