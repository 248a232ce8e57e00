"""Ctrl-C and SIGTERM end a command in order: workers are stopped, the lease is given back, a line says how to go on.

Either signal becomes an exception in the main thread, so every `with` block on the way out does its part; where it
comes up in a destructor or a callback, which lose exceptions, it is raised again a moment later. A second signal
changes nothing, but for a SIGTERM while Ray's library ends: that one kills. A way out that takes too long is cut short,
and then the kernel ends the decoders (they die with their parent) and Ray ends what it started for this process. When
everything of ours is put away and the line is written, the process ends there and then: what Python and Ray's library
do at exit was seen to crash after two signals (Ray 2.60), and the exit code was the crash's.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

from pipeline.errors import PatchwireError, RunError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LONGEST_END_SECONDS = 20.0
_PAUSE_SECONDS = 0.05


class _StopError(KeyboardInterrupt):
    """Like Ctrl-C, so that nothing on the way takes it for an error of its own."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a RunError that names the command to go on with. Only in the main thread."""
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    report = sys.unraisablehook
    sys.unraisablehook = partial(_stop_again, report)
    try:
        yield
    except KeyboardInterrupt as error:
        # Nor does one that comes while the process says so and ends: Python gives back its own handlers then.
        before = dict.fromkeys(_SIGNALS, signal.SIG_IGN)
        command = shlex.join(["patchwire", *sys.argv[1:]])
        raise RunError(f"stopped by {error or 'SIGINT'}; what is finished is kept. To go on: {command}") from error
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def was_stopped(error: PatchwireError) -> bool:
    """Whether a signal, and nothing that went wrong, ended the command."""
    return isinstance(error.__cause__, KeyboardInterrupt)


def end_at_once(code: int) -> NoReturn:
    """End the process with this code, its own output written and nothing else done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop(number: int, _frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _stopping)  # not SIG_IGN: Python prints a traceback for one that has come already
    timer = threading.Timer(_LONGEST_END_SECONDS, os._exit, (RunError.exit_code,))
    timer.daemon = True
    timer.start()
    raise _StopError(signal.Signals(number).name)


def _stop_again(report: Callable[["sys.UnraisableHookArgs"], object], lost: "sys.UnraisableHookArgs") -> None:
    if not isinstance(lost.exc_value, _StopError):
        report(lost)
        return
    number = signal.Signals[str(lost.exc_value)]
    signal.signal(number, _stop)
    threading.Timer(_PAUSE_SECONDS, _send_again, (number,)).start()  # raised now, it would be lost in this hook


def _send_again(number: signal.Signals) -> None:
    if signal.getsignal(number) is _stop:
        os.kill(os.getpid(), number)


def _stopping(_number: int, _frame: FrameType | None) -> None:
    pass
