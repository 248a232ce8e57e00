"""The decoders' process as its parent sees it: started, asked through one channel a decoder, killed, replaced.

A process that ends, or is killed because an answer is overdue or makes no sense, refuses everything that it was asked
meanwhile; the next question starts another. After `MOST_ENDS` such ends it stays down: whatever makes it end will not
stop doing so.

Whose question ended it is told so: the one whose answer is overdue or makes no sense, or whose thread crashed. Where
the process does not say which thread that was (it was killed, the device failed, a thread of a library's own crashed),
all who were waiting.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

from pipeline.device.nvdec.crash import crashed_thread
from pipeline.device.nvdec.reply import MOST_BYTES
from pipeline.device.nvdec.session import RefusedError
from pipeline.errors import ErrorCode
from pipeline.media.child import last_words, start_module
from pipeline.media.protocol import receive_answer, send_message

T = TypeVar("T")

MOST_ENDS = 3
_START_SECONDS = 60.0


class NvdecUnavailableError(Exception):
    """There is no decoder here; says what is missing."""


class EndedError(RefusedError):
    """What was asked has ended the process; `code` says how."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True, kw_only=True, eq=False)
class _Life:
    """One process from its start to its end: which channels wait for an answer, and which of them ended it.

    `waiting` is changed and read under the owner's lock.
    """

    process: subprocess.Popen[bytes]
    channels: list[socket.socket]
    stderr: IO[bytes]
    threads: list[int] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)
    blamed: frozenset[int] = frozenset()

    def crashed(self) -> frozenset[int]:
        """The channel whose thread crashed, or all that wait."""
        thread = crashed_thread(self.stderr)
        return frozenset({number for number in self.waiting if self.threads[number] == thread} or self.waiting)

    def end(self) -> None:
        """Kill the process; whoever waits for an answer is told by the end of its channel."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for channel in self.channels:
            with suppress(OSError):  # the other end may be gone
                channel.shutdown(socket.SHUT_RDWR)  # wakes who waits for an answer
            channel.close()
        self.stderr.close()


class WorkerProcess:
    """Owns one process; its channels are for one thread at a time each, and may be used side by side.

    Args:
        module: run with this process's id, `arguments` and the numbers of its ends of the channels. Its first message
            is `settings`, on the first channel, and is answered by `threads`, each channel's
            `threading.get_ident()`, or by `error` and a reason.
        arguments: as above.
        settings: plain values.
        num_channels: how many.
    Raises: NvdecUnavailableError where it does not start.
    """

    def __init__(self, module: str, arguments: Sequence[str], settings: dict[str, Any], num_channels: int) -> None:
        self._module, self._arguments, self._settings = module, arguments, settings
        self._num_channels = num_channels
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(1, "nvdec-starter")  # Linux ends the process with the thread that starts it
        self._num_ends = 0
        self._life: _Life | None = self._start()

    @property
    def pid(self) -> int | None:
        """Its process id, None while there is none."""
        life = self._life
        return None if life is None else life.process.pid

    @property
    def is_down(self) -> bool:
        """Whether it has ended too often: everything is refused from now on."""
        return self._num_ends >= MOST_ENDS

    def ask(
        self, number: int, message: dict[str, Any], allowed_seconds: float, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """Send a message through a channel and wait for its answer.

        Args:
            number: of the channel.
            message: plain values.
            allowed_seconds: for the answer; its end kills the process.
            read: what to make of the answer; a ValueError of it kills the process, too.
        Raises: RefusedError where the process ends first or is killed, and after that it has ended: EndedError where it
            is this message that ended it, as far as that is known.
        """
        life = self._living(number)
        channel = life.channels[number]
        try:
            channel.settimeout(allowed_seconds)
            send_message(channel, message)
            answer = read(receive_answer(channel, time.monotonic() + allowed_seconds, MOST_BYTES))
        except (EOFError, OSError, ValueError) as error:
            is_overdue = isinstance(error, TimeoutError)
            with self._lock:
                if life is self._life:  # else another channel's thread was here before
                    self._num_ends += 1
                    is_mine = is_overdue or isinstance(error, ValueError)
                    life.blamed = frozenset({number}) if is_mine else life.crashed()
                    self._end()
            if number not in life.blamed:
                raise RefusedError(f"the decoders' process ended: {error}") from error
            code = ErrorCode.DECODER_TIMEOUT if is_overdue else ErrorCode.DECODER_CRASHED
            raise EndedError(code, f"the decoders' process ended: {error}") from error
        with self._lock:
            life.waiting.discard(number)
        return answer

    def close(self) -> None:
        """End it; nothing may be asked any more."""
        with self._lock:
            self._end()
        self._starter.shutdown()

    def _living(self, number: int) -> _Life:
        """A process that runs, started now if need be, with a channel among those that wait. Raises: RefusedError."""
        with self._lock:
            if self.is_down:
                raise RefusedError(f"the decoders' process ended {self._num_ends} times")
            if self._life is None:
                try:
                    self._life = self._start()
                except NvdecUnavailableError as error:
                    self._num_ends += 1
                    raise RefusedError(str(error)) from error
            self._life.waiting.add(number)
            return self._life

    def _start(self) -> _Life:
        return self._starter.submit(self._start_here).result()

    def _start_here(self) -> _Life:
        pairs = [socket.socketpair() for _ in range(self._num_channels)]
        channels, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        handles = [end.fileno() for end in theirs]
        stderr = TemporaryFile()  # noqa: SIM115  read and closed at the end of the process
        arguments = (os.getpid(), *self._arguments, *handles)
        process = start_module(self._module, arguments, handles=handles, stderr=stderr)
        life = _Life(process=process, channels=channels, stderr=stderr)
        for end in theirs:
            end.close()
        try:
            channels[0].settimeout(_START_SECONDS)
            send_message(channels[0], self._settings)
            reply = receive_answer(channels[0], time.monotonic() + _START_SECONDS, MOST_BYTES)
        except (EOFError, OSError, ValueError) as error:
            said = last_words(stderr)
            life.end()
            raise NvdecUnavailableError(f"the decoders' process did not start: {said}") from error
        threads = reply.get("threads")
        if not isinstance(threads, list) or len(threads) != self._num_channels:
            life.end()
            raise NvdecUnavailableError(str(reply.get("error", "the decoders' process does not name its threads")))
        life.threads = threads
        return life

    def _end(self) -> None:
        """End the process, if there is one."""
        life, self._life = self._life, None
        if life is not None:
            life.end()
