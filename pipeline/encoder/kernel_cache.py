"""Where kernels for Hopper are kept between processes.

quack and FlashAttention load what they compiled before from a folder below /tmp whose name anybody can guess, and so
could load what somebody else put there. A folder of the user's own stands in for it, unless one was chosen. Triton's
kernels lie in the home folder by themselves.
"""

import logging
import os
from pathlib import Path

_LOG = logging.getLogger(__name__)
_PLACES = {
    "quack": ("QUACK_CACHE_DIR", "QUACK_CACHE_ENABLED"),
    "flash-attention": ("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"),
}


def keep_kernels() -> None:
    """Tell the packages, before they are imported, to keep kernels in `$XDG_CACHE_HOME/patchwire` (`~/.cache/...`).

    Where no folder can be made, they keep none: each process compiles its own.
    """
    for name, (place, enabled) in _PLACES.items():
        if place in os.environ:
            os.environ.setdefault(enabled, "1")
            continue
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchwire" / name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:
            _LOG.warning("kernels_not_kept package=%s error=%s", name, error)
            os.environ[enabled] = "0"
        else:
            os.environ[place] = str(folder)
            os.environ.setdefault(enabled, "1")
