"""What decoding processes have in common: what they are started with, and that they do not outlive their parents."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import pipeline.media

TOLD_TO_END = 3  # exit status of a template that was asked to end the one that it was forked from
# One thread a decoder, in the libraries that ask the environment: it also keeps a template fit for forking.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
_LAST_WORDS_BYTES = 2_000
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def start_module(
    module: str,
    arguments: Sequence[object],
    *,
    handles: Sequence[int],
    stderr: IO[bytes] | int,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Run a module of ours in a fresh interpreter that imports what this one can, and has these open handles.

    It is a session of its own: Ctrl-C is for the run, which then ends its children.
    """
    return subprocess.Popen(  # noqa: S603  # our own module, in our own interpreter
        [sys.executable, "-P", "-m", module, *map(str, arguments)],
        pass_fds=handles,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(_import_path())},
        start_new_session=True,
    )


def die_with(parent_pid: int) -> None:
    """Have the kernel end this process with the thread that started it, or end now if that is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def standing() -> dict[str, int]:
    """This process's niceness, and how soon the kernel ends it for want of memory: Ray sets both for its workers."""
    return {"niceness": os.getpriority(os.PRIO_PROCESS, 0), "oom_score": int(_OOM_SCORE.read_text(encoding="ascii"))}


def take_standing(niceness: int, oom_score: int) -> None:
    """Stand where another process does, as far as this one may: to step back is always allowed."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    with suppress(OSError):
        _OOM_SCORE.write_text(str(oom_score), encoding="ascii")


def set_name(name: str) -> None:
    """What `ps` and `top` call this process; at most 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode("ascii"))


def _import_path() -> list[str]:
    """Where a child finds this package, and then everything that this process can import."""
    package = Path(pipeline.media.__file__ or "").resolve().parents[2]
    return [str(package), *(entry for entry in sys.path if entry)]


def last_words(stderr: IO[bytes]) -> str:
    """The end of what a child said."""
    end = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, end - _LAST_WORDS_BYTES))
    return stderr.read().decode("utf-8", "replace").strip() or "it said nothing"
