"""The command line: it reads arguments, calls `flow`, draws what comes back, and picks the exit code."""

import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Run the command. Ctrl-C ends it in words also while it is being loaded, which takes a second."""
    before = signal.signal(signal.SIGINT, _stop_loading)
    try:
        from pipeline.cli.app import main as run
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None stands for a handler that is not Python's
    run()


def _stop_loading(_number: int, _frame: FrameType | None) -> NoReturn:
    """At once: an exception would come out of whatever native module is being loaded, as anything."""
    os.write(2, b"patchwire: stopped by SIGINT; nothing was begun\n")
    os._exit(1)
