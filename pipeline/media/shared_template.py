"""One template for all decoders of a machine, so that what it loads is loaded once and not by each decode worker.

    python -m pipeline.media.shared_template HANDLE PARENT_PID

Loading takes two seconds of CPU, more where torch is built for CUDA, and fifteen workers that start do it fifteen
times; each that is killed does it once more. Here a worker asks an address: the shared template forks a template of the
worker's own (template.py), which goes on as if it had been loaded for it, and ends when the worker hangs up or dies.

The address is a name in Linux's abstract namespace: no file, gone with its process, and who binds it first is the one
that starts the template. Everyone on the machine can read such names, so both sides ask the kernel who is at the other:
this user, in sight of this process (those of other containers are not).

It is the child of a run that has started its own Ray, and ends with it. Elsewhere the first worker of each machine
starts it, as nobody's child: it must outlive that worker, and ends when it has had no worker for _LINGER_SECONDS. What
is forked takes its worker's place for the scheduler and the kernel's choice of whom to kill for memory (template.py).
"""

import errno
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pipeline.media.child import ONE_THREAD, TOLD_TO_END, die_with, set_name, start_module
from pipeline.media.protocol import send_message

_LINGER_SECONDS = 60.0  # between two pools of workers may lie planning
_TICK_SECONDS = 1.0
_CONNECT_SECONDS = 20.0
_CONNECT_TRIES = 5
_PAUSE_SECONDS = 0.05  # between binding a name and listening there
_FORK_SECONDS = 60.0
_BACKLOG = 1024
_MOUNTS = Path("/proc/self/ns/mnt")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class SharedTemplate:
    """Where the decode workers of a run find the template of the machine they are on; may be sent anywhere."""

    address: str = field(default_factory=lambda: f"patchwire-{secrets.token_hex(16)}")

    def start(self, *, as_child: bool) -> "subprocess.Popen[bytes] | None":
        """Start the machine's template, unless it is there; it loads while this returns.

        Args:
            as_child: it ends with the calling thread; else it is nobody's.
        """
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(self.name)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return None
                raise
            listener.listen(_BACKLOG)
            process = start_module(
                "pipeline.media.shared_template",
                (listener.fileno(), os.getpid() if as_child else 0),
                handles=[listener.fileno()],
                stderr=subprocess.DEVNULL,
                environment=ONE_THREAD,
            )
        if not as_child:
            try:
                process.wait(_FORK_SECONDS)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise TimeoutError(f"the shared template did not start within {_FORK_SECONDS} s") from error
        return process

    def connect(self) -> socket.socket:
        """The channel to a template of one's own, which is being forked; start what it is forked from if need be.

        Raises: OSError where none answers and none can be started, or another user's process answers.
        """
        for number in range(_CONNECT_TRIES):
            with suppress(ConnectionRefusedError):
                return self._connect()
            self.start(as_child=False)
            time.sleep(_PAUSE_SECONDS * number)
        return self._connect()

    def end(self) -> None:
        """End the machine's template, if there is one; those that were forked from it end with their workers."""
        with suppress(OSError), self._connect() as channel:
            send_message(channel, {"do": "end"})

    @property
    def name(self) -> str:
        """What is bound here. Containers may share a host's names, and have their own files: each has its own name."""
        try:
            container = _MOUNTS.stat().st_ino
        except OSError:
            container = 0
        return f"\0{self.address}-{container}"

    def _connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.settimeout(_CONNECT_SECONDS)
            channel.connect(self.name)
            if not _is_ours(channel):
                raise PermissionError(f"@{self.address}: expected a process of user {os.getuid()}, another answered")
        except BaseException:
            channel.close()
            raise
        return channel


def _is_ours(channel: socket.socket) -> bool:
    """Whether a process of this user is at the other end; one of another container has no number here."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return bool(pid and uid == os.getuid())


def _serve(listener: socket.socket, linger_seconds: float | None) -> None:
    """Fork a template for each that asks; return when told to, or when there has been none for so long."""
    children: set[int] = set()
    last_busy = time.monotonic()
    listener.settimeout(_TICK_SECONDS)
    while True:
        ended = {pid: status for pid, status in (os.waitpid(pid, os.WNOHANG) for pid in children) if pid}
        children -= ended.keys()
        if any(os.waitstatus_to_exitcode(status) == TOLD_TO_END for status in ended.values()):
            return
        if children:
            last_busy = time.monotonic()
        elif linger_seconds is not None and time.monotonic() - last_busy > linger_seconds:
            return
        try:
            channel, _ = listener.accept()
        except TimeoutError:
            continue
        with channel, suppress(OSError):  # no room for another process: it hangs up, the worker tries again
            if _is_ours(channel):
                children.add(_fork(listener, channel))


def _fork(listener: socket.socket, channel: socket.socket) -> int:
    pid = os.fork()
    if not pid:
        listener.close()
        _become_template(channel)
    return pid


def _become_template(channel: socket.socket) -> NoReturn:
    from pipeline.media import template

    status = 1
    try:
        channel.setblocking(True)
        status = template.serve(channel)
    finally:
        os._exit(status)


def main() -> None:
    """Run as the child of a run, or as nobody's."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or its children would be nobody's to wait for
    listener, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    if parent:
        die_with(parent)
    elif os.fork():
        os._exit(0)
    from pipeline.media import template  # with torch: only now, whoever waits for the line above goes on

    set_name("pw-template")
    template.load()
    _serve(listener, None if parent else _LINGER_SECONDS)


if __name__ == "__main__":
    main()
