"""Where kernels for Hopper are kept between processes.

quack and FlashAttention load what they compiled before from a folder below /tmp whose name anybody can guess, and so
could load what somebody else put there. A folder of the user's own stands in for it, unless one was chosen. They take
its locks and write to it without a thought of failure, at import or in the middle of a run: a folder in which that does
not work is not used, and each process compiles its own kernels. Triton's lie in the home folder by themselves.
"""

import fcntl
import logging
import os
import platform
import stat
import tempfile
from pathlib import Path

_LOG = logging.getLogger(__name__)
_PLACES = {
    "quack": ("QUACK_CACHE_DIR", "QUACK_CACHE_ENABLED"),
    "flash-attention": ("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"),
}
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def keep_kernels() -> None:
    """Tell the packages, before they are imported, to keep kernels in `$XDG_CACHE_HOME/patchwire` (`~/.cache/...`)."""
    for name, (place, enabled) in _PLACES.items():
        if place in os.environ:
            os.environ.setdefault(enabled, "1")
            continue
        try:
            # Host code is among it, and machines of several kinds may share a home.
            folder = _caches() / "patchwire" / platform.machine() / name
            _make_own(folder)
        except (OSError, RuntimeError) as error:
            _LOG.warning("kernels_not_kept package=%s error=%s", name, error)
            os.environ[enabled] = "0"
        else:
            os.environ[place] = str(folder)
            os.environ.setdefault(enabled, "1")


def _caches() -> Path:
    """The user's cache folder; a relative XDG_CACHE_HOME counts for nothing, as its specification says."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return configured if configured.is_absolute() else Path.home() / ".cache"


def _make_own(folder: Path) -> None:
    """Make a folder, and its two parents, in which this user alone can write, and lock.

    Raises: OSError where that is not so.
    """
    for path in (folder.parent.parent, folder.parent, folder):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
            raise PermissionError(f"{path}: others can write there")
    with tempfile.TemporaryFile(dir=folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
