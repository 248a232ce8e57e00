"""Which thread of a process crashed, in its own last words.

Python's faulthandler writes them inside the signal's handler, whoever holds the GIL, and a fault is handled by the
thread that made it. A thread that a library has started for itself is not known by its number.
"""

import faulthandler
import os
import re
from typing import IO

_CRASHED = re.compile(rb"^Current thread 0x([0-9a-f]+) ", re.MULTILINE)


def report_crashes() -> None:
    """Have a crash of this process told to what is its standard error now, even where that is redirected later."""
    faulthandler.enable(os.dup(2))


def crashed_thread(stderr: IO[bytes]) -> int | None:
    """`threading.get_ident()` of the thread that ended a process; None where nobody said so."""
    stderr.seek(0)
    found = _CRASHED.search(stderr.read())
    return None if found is None else int(found[1], 16)
