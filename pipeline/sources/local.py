"""Files, folders and globs on local disks, by exact bytes.

Every regular file in a folder counts, whatever its name: what it is only its bytes can say. Nothing is opened here,
so a pipe cannot block a listing. A link to a file counts as a file under the link's own path, if its target lies in
the folder that was named. Links to folders are never followed: inside the folder their files are found anyway, and
outside it they are reported, so that nothing is left out in silence.
Cost: one scandir a folder, one stat and one access check a file.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.config import SourcesConfig
from pipeline.errors import ErrorCode, UsageError
from pipeline.media.location import path_uri
from pipeline.sources.items import Found, SourceFailure, SourceItem, absolute_path, failure_of
from pipeline.sources.selection import Selection

_MAGIC = frozenset("*?[")


def list_local(path: bytes, config: SourcesConfig) -> Iterator[Found]:
    """List a file, a folder (recursively) or, where no such path exists, a glob.

    Raises: UsageError when nothing is there, or the glob is malformed or matches nothing.
    """
    path = absolute_path(path)
    if os.path.isdir(path):  # noqa: PTH112  a link that the user named is followed
        yield from _list_folder(path, os.path.realpath(path), config)
    elif os.path.lexists(path):
        yield examine(path)
    else:
        yield from _list_glob(path, config)


def examine(path: bytes, start_seconds: float | None = None, end_seconds: float | None = None) -> Found:
    """Look at one absolute path, following links, without opening it."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return _failure(path, ErrorCode.UNREADABLE, f"expected a file, got: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return _failure(path, ErrorCode.NOT_A_FILE, f"expected a regular file, got {_kind(status.st_mode)}")
    if not os.access(path, os.R_OK):
        return _failure(path, ErrorCode.UNREADABLE, "this user may not read it")
    return SourceItem(
        uri=path_uri(path),
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        num_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )


def outside(path: bytes, root: bytes, advice: str) -> SourceFailure | None:
    """Give a failure unless `path`, links resolved, is `root` (a resolved folder) or below it by whole names."""
    target = os.path.realpath(path)
    if target == root or target.startswith(root.rstrip(b"/") + b"/"):
        return None
    uri, folder = path_uri(target), path_uri(root)
    return _failure(path, ErrorCode.OUTSIDE_ROOT, f"leads to {uri!r}, outside {folder!r}; {advice}")


def _list_folder(folder: bytes, root: bytes, config: SourcesConfig) -> Iterator[Found]:
    selection = Selection.of(config)
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            with os.scandir(current) as entries:
                batch = list(entries)
        except OSError as error:
            yield _failure(current, ErrorCode.UNREADABLE, f"the folder cannot be listed: {error.strerror}")
            continue
        for entry in batch:
            name = os.fsdecode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if selection.enters(name):
                    waiting.append(entry.path)
            elif selection.takes_file(name):
                yield from _examine_entry(entry.path, entry.is_symlink(), root, config)


def _examine_entry(path: bytes, is_link: bool, root: bytes, config: SourcesConfig) -> Iterator[Found]:
    """One entry of a folder or a glob that is no folder itself; `root` is the resolved folder it must not leave."""
    if not is_link or not os.path.exists(path):  # noqa: PTH110  a dangling link is examined to say why
        yield examine(path)
        return
    escape = outside(path, root, "name the target itself, or set sources.follow_outside=true")
    if escape is not None and not config.follow_outside:
        yield escape
    elif not os.path.isdir(path):  # noqa: PTH112
        yield examine(path)
    elif escape is not None:
        yield _failure(path, ErrorCode.NOT_A_FILE, "a link to a folder, which is not followed; name the folder itself")


def _list_glob(path: bytes, config: SourcesConfig) -> Iterator[Found]:
    text = os.fsdecode(path)
    parts = Path(text).parts
    first = next((index for index, part in enumerate(parts) if _MAGIC & set(part)), None)
    if first is None:
        raise UsageError(f"source {path_uri(path)!r}: no such file or folder")
    base, root = Path(*parts[:first]), os.path.realpath(os.fsencode(Path(*parts[:first])))
    matches = sorted(_expand(base, parts[first:], config.hidden, text))
    if not matches:
        raise UsageError(f"source {path_uri(path)!r}: no such path, and as a glob it matches nothing")
    for match in matches:
        found = os.fsencode(match)
        if match.is_dir() and not match.is_symlink():
            yield from _list_folder(found, root, config)
        else:
            # A folder link in the middle of a pattern leaves the root as much as a link at its end.
            yield from _examine_entry(found, True, root, config)


def _expand(base: Path, pattern: tuple[str, ...], hidden: bool, text: str) -> Iterable[Path]:
    try:
        # pathlib and not glob: its `**` does not follow links, so a loop of links cannot multiply the matches.
        matches = list(base.glob("/".join(pattern)))
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f"source {path_uri(os.fsencode(text))!r}: not a glob: {error}") from error
    asked = any(part.startswith(".") for part in pattern)
    return [
        match
        for match in matches
        if hidden or asked or not any(name.startswith(".") for name in match.relative_to(base).parts)
    ]


def _kind(mode: int) -> str:
    names = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    return names.get(stat.S_IFMT(mode), "something else")


def _failure(path: bytes, code: ErrorCode, what: str) -> SourceFailure:
    return failure_of(path_uri(path), code, what)
