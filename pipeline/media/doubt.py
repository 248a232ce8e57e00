"""How reading says that something is wrong: two errors that stay inside this folder, and what FFmpeg says in its log.

FFmpeg repairs damage as it goes and returns no error: a demuxer looks for the next thing that it knows, a decoder puts
something in place of what is lost. Both say so in the log, from level INFO up, and say nothing of a sound file.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import av


class MissedError(Exception):
    """A wanted frame did not appear while others were being skipped, or a known start is not where it was."""


class DoubtError(MissedError):
    """Something is wrong, and what comes out may depend on what was read or decoded before."""


@contextmanager
def listening() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg says in this thread: (level, who, message). Cost: a microsecond."""
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as said:
            yield said
    finally:
        av.logging.set_level(None)
        av.logging.set_skip_repeated(True)
