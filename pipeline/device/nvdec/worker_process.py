"""The decoders' process as its parent sees it: started, asked through one channel a decoder, killed, replaced.

A process that ends, or is killed because an answer is overdue, refuses everything that it was asked meanwhile; the next
question starts another. After `MOST_ENDS` such ends it stays down: whatever makes it end will not stop doing so.
"""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any

from pipeline.device.nvdec.session import RefusedError
from pipeline.media.child import last_words, start_module
from pipeline.media.protocol import receive_message, send_message

MOST_ENDS = 3
_START_SECONDS = 60.0


class NvdecUnavailableError(Exception):
    """There is no decoder here; says what is missing."""


class WorkerProcess:
    """Owns one process; its channels are for one thread at a time each, and may be used side by side.

    Args:
        module: run with this process's id, `arguments` and the numbers of its ends of the channels. Its first message
            is `settings`, on the first channel, and is answered by `ready`, or by `error` and a reason.
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
        self._process: subprocess.Popen[bytes] | None = None
        self._channels: list[socket.socket] = []
        self._num_ends = 0
        self._start()

    @property
    def pid(self) -> int | None:
        """Its process id, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def is_down(self) -> bool:
        """Whether it has ended too often: everything is refused from now on."""
        return self._num_ends >= MOST_ENDS

    def ask(self, number: int, message: dict[str, Any], allowed_seconds: float) -> dict[str, Any]:
        """Send a message through a channel and wait for its answer.

        Raises: RefusedError where the process ends first, or `allowed_seconds` do, which kills it.
        """
        channel = self._living_channel(number)
        try:
            channel.settimeout(allowed_seconds)
            send_message(channel, message)
            return receive_message(channel)[0]
        except (EOFError, OSError) as error:
            with self._lock:
                if channel in self._channels:  # else another channel's thread was here before
                    self._num_ends += 1
                    self._kill()
            raise RefusedError(f"the decoders' process ended: {error}") from error

    def close(self) -> None:
        """End it; nothing may be asked any more."""
        with self._lock:
            self._kill()
        self._starter.shutdown()

    def _living_channel(self, number: int) -> socket.socket:
        with self._lock:
            if self.is_down:
                raise RefusedError(f"the decoders' process ended {self._num_ends} times")
            if self._process is None:
                try:
                    self._start()
                except NvdecUnavailableError as error:
                    self._num_ends += 1
                    raise RefusedError(str(error)) from error
            return self._channels[number]

    def _start(self) -> None:
        self._starter.submit(self._start_here).result()

    def _start_here(self) -> None:
        pairs = [socket.socketpair() for _ in range(self._num_channels)]
        self._channels, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        handles = [end.fileno() for end in theirs]
        with TemporaryFile() as stderr:
            arguments = (os.getpid(), *self._arguments, *handles)
            self._process = start_module(self._module, arguments, handles=handles, stderr=stderr)
            for end in theirs:
                end.close()
            try:
                self._channels[0].settimeout(_START_SECONDS)
                send_message(self._channels[0], self._settings)
                reply, _ = receive_message(self._channels[0])
            except (EOFError, OSError) as error:
                self._kill()
                raise NvdecUnavailableError(f"the decoders' process did not start: {last_words(stderr)}") from error
        if "error" in reply:
            self._kill()
            raise NvdecUnavailableError(reply["error"])

    def _kill(self) -> None:
        """End the process, if there is one; whoever waits for an answer is told by the end of its channel."""
        channels, self._channels = self._channels, []
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        for channel in channels:
            with suppress(OSError):  # the other end may be gone
                channel.shutdown(socket.SHUT_RDWR)  # wakes who waits for an answer
            channel.close()
