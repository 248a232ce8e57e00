"""Files, folders and globs that fsspec reaches: object stores, http and whatever has a driver installed.

fsspec is imported when the first URL is met. A store's own errors become values: a missing object is a wrong
command, a refusal is an error row that another try can mend.
Cost: one request a file, or one listing a folder.
"""

import datetime
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from pipeline.config import SourcesConfig
from pipeline.errors import ErrorCode, UsageError
from pipeline.media.addresses import check_address, http_options
from pipeline.sources.items import SourceFailure, SourceItem
from pipeline.sources.selection import Selection

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_MAGIC = frozenset("*?[")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MODIFIED_KEYS = ("mtime", "LastModified", "last_modified", "modified", "updated", "timeModified", "created")


def open_store(url: str, config: SourcesConfig) -> tuple["AbstractFileSystem", str]:
    """Open the file system and find the path in it that a URL names.

    Raises: UsageError for a refused address, an unknown scheme, or a driver that is not installed.
    """
    from fsspec.core import url_to_fs

    check_address(url, allow_loopback=config.follow_outside)
    try:
        store, path = url_to_fs(url, **http_options(url))
    except (ValueError, ImportError, TypeError) as error:
        raise UsageError(f"source {url!r}: {error}") from error
    return store, path


def list_remote(url: str, config: SourcesConfig) -> Iterator[SourceItem | SourceFailure]:
    """List an object, a folder (recursively) or, where no such object exists, a glob.

    Raises: UsageError when nothing is there or the URL cannot be served.
    """
    store, path = open_store(url, config)
    try:
        entries = _entries(store, path, config)
    except FileNotFoundError as error:
        # fsspec's http (2026.9) says "not found" for every failure; the cause's status tells a 404 from the rest.
        if isinstance(error.__cause__, Exception) and getattr(error.__cause__, "status", None) != HTTPStatus.NOT_FOUND:
            yield _unreadable(url, error.__cause__)
            return
        raise UsageError(f"source {url!r}: no such object or folder, and as a glob it matches nothing") from None
    except UsageError:
        raise
    except Exception as error:  # every store's driver has its own errors
        yield _unreadable(url, error)
        return
    if not entries:
        raise UsageError(f"source {url!r}: matches nothing")
    for name, entry in entries.items():
        yield _item(store.unstrip_protocol(name), entry)


def examine_remote(
    url: str, config: SourcesConfig, start_seconds: float | None = None, end_seconds: float | None = None
) -> SourceItem | SourceFailure:
    """Look at one object without reading it. Raises: UsageError as `open_store` does."""
    store, path = open_store(url, config)
    try:
        entry = store.info(path)
    except Exception as error:  # every store's driver has its own errors
        return _unreadable(url, error)
    if entry.get("type") == "directory":
        return SourceFailure(uri=url, code=ErrorCode.NOT_A_FILE, message=f"{url!r}: expected an object, got a folder")
    return _item(store.unstrip_protocol(path), entry, start_seconds, end_seconds)


def _entries(store: "AbstractFileSystem", path: str, config: SourcesConfig) -> dict[str, Mapping[str, object]]:
    selection = Selection.of(config)
    try:
        entry = store.info(path)
    except FileNotFoundError:
        if not _MAGIC & set(path) or path.startswith(("http://", "https://")):
            raise
        return _glob(store, path, selection)
    if entry.get("type") == "directory":
        return _folder(store, path, selection)
    return {path: entry}


def _glob(store: "AbstractFileSystem", path: str, selection: Selection) -> dict[str, Mapping[str, object]]:
    try:
        matches = store.glob(path, detail=True)
    except ValueError as error:
        raise UsageError(f"source {store.unstrip_protocol(path)!r}: not a glob: {error}") from error
    base = path[: min(path.index(sign) for sign in _MAGIC & set(path))].rpartition("/")[0]
    found: dict[str, Mapping[str, object]] = {}
    for name in sorted(matches):
        below = name.removeprefix(base).strip("/").split("/")
        if "/." not in path and not all(map(selection.enters, below)):
            continue
        if matches[name].get("type") == "file":
            found[name] = matches[name]
        else:
            found.update(_folder(store, name, selection))
    return found


def _folder(store: "AbstractFileSystem", path: str, selection: Selection) -> dict[str, Mapping[str, object]]:
    root = path.rstrip("/") + "/"
    return {
        name: entry
        for name, entry in store.find(path, detail=True).items()
        if entry.get("type") == "file" and _taken(name.removeprefix(root), selection)
    }


def _taken(below: str, selection: Selection) -> bool:
    *folders, name = below.split("/")
    return all(selection.enters(folder) for folder in folders) and selection.takes_file(name)


def _item(
    url: str, entry: Mapping[str, object], start_seconds: float | None = None, end_seconds: float | None = None
) -> SourceItem | SourceFailure:
    num_bytes = entry.get("size")
    if not isinstance(num_bytes, int):
        # Without a size no limit can be checked before the bytes arrive.
        message = f"{url!r}: expected an object with a size, got none from the server"
        return SourceFailure(uri=url, code=ErrorCode.UNREADABLE, message=message)
    return SourceItem(
        uri=url,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        num_bytes=num_bytes,
        modified_ns=_modified_ns(entry),
    )


def _modified_ns(entry: Mapping[str, object]) -> int:
    """Nanoseconds since 1970, in whole microseconds (what the drivers' own types hold); 0 where there is none."""
    value = next((entry[key] for key in _MODIFIED_KEYS if entry.get(key) is not None), None)
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return 0
    if isinstance(value, datetime.datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)
        return (aware - _EPOCH) // datetime.timedelta(microseconds=1) * 1000
    return round(value * 1e6) * 1000 if isinstance(value, int | float) else 0


def _unreadable(url: str, error: Exception) -> SourceFailure:
    message = f"{url!r}: cannot be read: {type(error).__name__}: {error}"
    return SourceFailure(uri=url, code=ErrorCode.UNREADABLE, message=message)
