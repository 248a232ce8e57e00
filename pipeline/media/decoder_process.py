"""A decoder process as its sandbox sees it: started when it is wanted, killed when it must be, replaced at once.

Behind it stands a template (template.py), a fresh interpreter and not a fork of this process: it survives being
started from a process full of threads, such as a Ray worker, and runs no `__main__` again. Decoders are forks of the
template. Should the template itself be killed, its decoder dies with it and the next start makes another.
"""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pipeline.media
from pipeline.errors import RunError
from pipeline.media.protocol import receive_message, send_message

_START_SECONDS = 120.0
_START_TRIES = 3
_ANSWER_SECONDS = 20.0
_LAST_WORDS_BYTES = 2_000
_PR_SET_PDEATHSIG = 1
# One thread a decoder, in the libraries that ask the environment: it also keeps the template fit for forking.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


class DecoderProcess:
    """Owns one template and at most one decoder; not for several threads at a time.

    Linux ends the template with the thread that started it, and so the decoder: use a lasting thread.

    Args:
        settings: plain values of the sections `decode`, `images` and `limits`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._channel: socket.socket | None = None
        self.pid: int | None = None

    def living_channel(self) -> socket.socket:
        """The channel to a decoder that runs, started now if need be: one that died idle is nobody's fault.

        Raises: RunError where none can be started.
        """
        if self._channel is not None and _has_hung_up(self._channel):
            self.end(at_once=False)
        for tries_left in reversed(range(_START_TRIES)):
            if self._channel is None:
                self._start(is_last=not tries_left)
        assert self._channel is not None
        return self._channel

    def end(self, *, at_once: bool) -> str:
        """End the decoder and say how it ended; the template stays. `at_once=False`: it is dying, see of what."""
        if self._channel is not None:
            self._channel.close()
            self._channel = self.pid = None
        try:
            status = int(self._ask({"do": "end", "at_once": at_once})["status"])
        except (EOFError, OSError):
            self.close()
            return signal.SIGKILL.name  # by the kernel, with its template
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def close(self) -> None:
        """Kill the template, and with it the decoder; a later job starts both again."""
        if self._channel is not None:
            self.end(at_once=True)
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._template is not None:
            self._template.kill()
            self._template.wait()
            self._template = None

    def _start(self, *, is_last: bool) -> None:
        """Start a decoder; a template that is killed meanwhile (for want of memory, say) is replaced."""
        with TemporaryFile() as stderr:
            try:
                if self._template is None:
                    self._load_template(stderr)
                self._fork()
            except (EOFError, OSError) as error:
                ended = self._bury_template()
                if is_last or ended != signal.SIGKILL.name:
                    raise RunError(f"the decoder process did not start ({ended}): {last_words(stderr)}") from error
            except BaseException:
                self.close()
                raise

    def _load_template(self, stderr: IO[bytes]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._control = ours
            self._template = subprocess.Popen(  # noqa: S603  # our own module, in our own interpreter
                [sys.executable, "-P", "-m", "pipeline.media.template", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(import_path())},
                start_new_session=True,  # Ctrl-C is for the run, which then ends its children
            )
        ours.settimeout(_START_SECONDS)
        send_message(ours, self._settings)
        receive_message(ours)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._channel = ours
            reply = self._ask({"do": "fork"}, theirs.fileno())
        if "error" in reply:
            raise RunError(
                f"the decoder process could not be forked: {reply['error']}; see `ulimit -u` and free memory"
            )
        self.pid = int(reply["pid"])

    def _ask(self, message: dict[str, Any], handle: int | None = None) -> dict[str, Any]:
        if self._control is None:
            raise EOFError("there is no template")
        self._control.settimeout(_ANSWER_SECONDS)
        send_message(self._control, message, handle)
        return receive_message(self._control)[0]

    def _bury_template(self) -> str:
        """How the template ended."""
        assert self._template is not None
        try:
            status = self._template.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        if self._channel is not None:
            self._channel.close()
            self._channel = self.pid = None
        self.close()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _has_hung_up(channel: socket.socket) -> bool:
    """Whether nobody is at the other end; costs a microsecond."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def die_with(parent_pid: int) -> None:
    """Have the kernel end this process with its parent, or end now if that is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def import_path() -> list[str]:
    """Where the child finds this package, and then everything that this process can import."""
    package = Path(pipeline.media.__file__ or "").resolve().parents[2]
    return [str(package), *(entry for entry in sys.path if entry)]


def last_words(stderr: IO[bytes]) -> str:
    """The end of what a child said."""
    end = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, end - _LAST_WORDS_BYTES))
    return stderr.read().decode("utf-8", "replace").strip() or "it said nothing"
