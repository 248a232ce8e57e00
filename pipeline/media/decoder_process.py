"""A decoder process as its sandbox sees it: started when it is wanted, killed when it must be, replaced at once.

Behind it stands a template (template.py), a fresh interpreter and not a fork of this process: it survives being
started from a process full of threads, such as a Ray worker, and runs no `__main__` again. Decoders are forks of the
template. Should the template itself be killed, its decoder dies with it and the next start makes another. Where many
workers decode on one machine the template is a fork, too, of one that they share (shared_template.py).
"""

import os
import select
import signal
import socket
import subprocess
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any

from pipeline.errors import RunError
from pipeline.media.child import ONE_THREAD, last_words, standing, start_module
from pipeline.media.protocol import receive_message, send_message
from pipeline.media.shared_template import SharedTemplate

_START_SECONDS = 120.0
_START_TRIES = 3
_ANSWER_SECONDS = 20.0


class DecoderProcess:
    """Owns one template and at most one decoder; not for several threads at a time.

    Linux ends the template with the thread that started it, and so the decoder: use a lasting thread. One that was
    forked from a shared template ends when this process does.

    Args:
        settings: plain values of the sections `decode`, `images` and `limits`.
        shared: what to have the template forked from; where that fails, and by default, one is loaded.
    """

    def __init__(self, settings: dict[str, Any], shared: SharedTemplate | None = None) -> None:
        self._settings = settings
        self._shared = shared
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
                if self._control is None:
                    self._find_template(stderr, alone=is_last)
                self._fork()
            except (EOFError, OSError) as error:
                ended = self._bury_template()
                if is_last or ended != signal.SIGKILL.name:
                    raise RunError(f"the decoder process did not start ({ended}): {last_words(stderr)}") from error
            except BaseException:
                self.close()
                raise

    def _find_template(self, stderr: IO[bytes], *, alone: bool) -> None:
        if self._shared is None or alone:
            self._load_template(stderr)
        else:
            self._control = self._shared.connect()
            self._greet(self._control)

    def _load_template(self, stderr: IO[bytes]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._control = ours
            self._template = start_module(
                "pipeline.media.template",
                (theirs.fileno(), os.getpid()),
                handles=[theirs.fileno()],
                stderr=stderr,
                environment=ONE_THREAD,
            )
        self._greet(ours)

    def _greet(self, control: socket.socket) -> None:
        control.settimeout(_START_SECONDS)
        send_message(control, {**self._settings, "standing": standing()})
        receive_message(control)

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
        """How the template ended, if it was a child; one that was forked elsewhere counts as killed."""
        status = -signal.SIGKILL
        if self._template is not None:
            with suppress(subprocess.TimeoutExpired):
                status = self._template.wait(timeout=5.0)
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
