"""What a manifest's rows lead to, and how far they may lead.

The rule: a relative row stays in the manifest's own folder and below, links resolved, because that is what it claims.
An absolute path in a local manifest says where it leads as plainly as an argument would, and is taken. A row that is a
URL may name any network store, because it opens nothing on this machine. Everything else (a relative path that leaves,
a scheme that reads local files, a chained URL, a path in a remote manifest) becomes an `outside_root` error row, unless
`sources.follow_outside` says that the manifest is trusted. For a medium inside a shard or a table the rule is about the
file that holds it.
"""

import os
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.config import SourcesConfig
from pipeline.errors import ErrorCode, UsageError
from pipeline.media.inside import container_of, inside_of
from pipeline.media.location import local_path, path_uri
from pipeline.sources.items import Found, SourceFailure, SourceItem, absolute_path, has_scheme
from pipeline.sources.local import examine, outside
from pipeline.sources.manifest import ManifestRow, read_manifest
from pipeline.sources.remote import examine_remote, open_store

_NETWORK_STORES = frozenset(
    {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss", "tos", "memory"}
)
_TRUST = "set sources.follow_outside=true if the manifest is trusted"
_REMOTE_LOOKUPS = 16


def list_local_manifest(path: bytes, config: SourcesConfig) -> Iterator[Found]:
    """List the rows of a manifest on a local disk. Raises: UsageError as `read_manifest` does."""
    path = absolute_path(path)
    found = examine(path)
    if isinstance(found, SourceFailure):
        raise UsageError(f"manifest {found.message}")
    with open(path, "rb") as file:  # noqa: PTH123  bytes: exact for names that are not UTF-8
        rows = read_manifest(file, path_uri(path))
    folder = os.path.dirname(path)  # noqa: PTH120
    root = os.path.realpath(folder)
    remote: list[ManifestRow] = []
    for row in rows:
        target = container_of(row.uri)
        local = _local_target(target, folder)
        if local is None:
            remote.append(row)
            continue
        may_leave = config.follow_outside or _is_absolute(target)
        escape = None if may_leave else outside(local, root, _TRUST)
        yield escape or _under_its_name(row, examine(local, row.start_seconds, row.end_seconds))
    yield from _examine_remote(remote, config)


def list_remote_manifest(url: str, config: SourcesConfig) -> Iterator[Found]:
    """List the rows of a manifest behind a URL. Raises: UsageError when it cannot be read or is malformed."""
    store, path = open_store(url, config)
    try:
        with store.open(path, "rb") as file:
            rows = read_manifest(file, url)
    except UsageError:
        raise
    except Exception as error:  # every store's driver has its own errors
        raise UsageError(f"manifest {url!r}: cannot be read: {type(error).__name__}: {error}") from error
    scheme, _, rest = url.rpartition("://")
    folder = posixpath.dirname(rest)
    remote: list[ManifestRow] = []
    for row in rows:
        target = container_of(row.uri)
        local = _local_target(target, None)
        joined = _below(folder, target)
        if local is not None and config.follow_outside:
            yield _under_its_name(row, examine(local, row.start_seconds, row.end_seconds))
        elif local is not None:
            yield _leaving(path_uri(local), f"a path on this machine, named by {url!r}")
        elif has_scheme(target):
            remote.append(row)
        elif joined is None:
            yield _leaving(f"{scheme}://{folder}/{target}", f"leaves the folder of {url!r}")
        else:
            remote.append(replace(row, uri=_in_file(row.uri, f"{scheme}://{joined}")))
    yield from _examine_remote(remote, config)


def _local_target(uri: str, folder: bytes | None) -> bytes | None:
    """Give the absolute path that a row names, or None for a URL (and for a relative path where there is no folder)."""
    if has_scheme(uri):
        path = local_path(uri)
        return None if path is None else absolute_path(os.fsencode(path))
    if uri.startswith("/"):
        return absolute_path(os.fsencode(uri))
    return None if folder is None else absolute_path(os.path.join(folder, os.fsencode(uri)))  # noqa: PTH118


def _is_absolute(uri: str) -> bool:
    return has_scheme(uri) or uri.startswith("/")


def _below(folder: str, name: str) -> str | None:
    joined = posixpath.normpath(posixpath.join(folder, name))
    return joined if joined.startswith(folder.rstrip("/") + "/") else None


def _in_file(uri: str, file: str) -> str:
    """The name of the same medium in another spelling of its file."""
    inside = inside_of(uri)
    return file if inside is None else replace(inside, container=file).uri


def _under_its_name(row: ManifestRow, found: Found) -> Found:
    """What is known of the file that a row leads to, under the name of the medium in it that the row means."""
    return found if isinstance(found, SourceFailure) else replace(found, uri=_in_file(row.uri, found.uri))


def _examine_remote(rows: list[ManifestRow], config: SourcesConfig) -> Iterator[Found]:
    if not rows:
        return
    with ThreadPoolExecutor(_REMOTE_LOOKUPS) as pool:
        yield from pool.map(lambda row: _examine_url(row, config), rows)


def _examine_url(row: ManifestRow, config: SourcesConfig) -> SourceItem | SourceFailure:
    file = container_of(row.uri)
    if file.partition("://")[0].lower() not in _NETWORK_STORES and not config.follow_outside:
        return _leaving(row.uri, "not a plain URL of a network store")
    return _under_its_name(row, examine_remote(file, config, row.start_seconds, row.end_seconds))


def _leaving(uri: str, what: str) -> SourceFailure:
    return SourceFailure(uri=uri, code=ErrorCode.OUTSIDE_ROOT, message=f"{uri!r}: {what}; {_TRUST}")
