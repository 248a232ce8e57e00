"""One run an output: a file that says who holds it, and a heartbeat that says they are alive.

`OUT/lease.json` is taken before anything is written, refreshed by a daemon thread, and removed at a clean end. A
second run is refused at once. A lease is stale, and may be taken over, when its heartbeat is old, or when its owner
was a process of this machine (same boot, same process namespace) that is gone; a number used again by another process
is told apart by when that process started.

Locally, reading and replacing happen under a lock on the folder, so of two runs that find a stale lease one gets it.
Where the file system has no such locks, and in an object store, a new lease is a conditional put (as far as fsspec's
driver offers one: s3fs, gcsfs and memory do), and a takeover is a put that is read back: the last writer wins, and the
other finds out at its next heartbeat at the latest. Until then both write the same rows under the same names, so a lost
lease costs work and no result. Trade-off: machines are compared by their clocks; they must agree to within the age
at which a heartbeat is old.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pipeline.errors import OutputBusyError, OutputError
from pipeline.sink.atomic import write_atomically
from pipeline.sink.output import OutputFolder

LEASE = "lease.json"
PERIOD_SECONDS = 5.0
STALE_PERIODS = 6
_LOCK_TRIES = 20
_LOCK_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds an output. Times are ISO 8601 in UTC; `machine` tells boots and process namespaces apart."""

    run_id: str
    host: str
    machine: str
    pid: int
    process_started: int
    started_at: str
    heartbeat_at: str

    @classmethod
    def this_process(cls) -> Self:
        """This process, now, under a new run id."""
        now = _now()
        return cls(
            run_id=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_started=_process_started(os.getpid()) or 0,
            started_at=now,
            heartbeat_at=now,
        )

    def is_gone(self, stale_seconds: float) -> bool:
        """Whether the lease may be taken over."""
        if self.machine == _machine() and _process_started(self.pid) != self.process_started:
            return True
        return self.silent_seconds > stale_seconds

    @property
    def silent_seconds(self) -> float:
        """How old its heartbeat is by this machine's clock. Raises: ValueError or TypeError where it is no time."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.heartbeat_at)).total_seconds()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started_at} (heartbeat {self.heartbeat_at})"


class Lease:
    """Holds an output folder while it is open; a context manager.

    Args:
        folder: an output that was created.
        period_seconds: time between two heartbeats.
        stale_periods: heartbeats that may be missing before another run takes over.
    Raises: on entry OutputBusyError, which names the holder; OutputError where the lease cannot be written.
    """

    def __init__(
        self, folder: OutputFolder, *, period_seconds: float = PERIOD_SECONDS, stale_periods: int = STALE_PERIODS
    ) -> None:
        self._folder = folder
        self._period_seconds = period_seconds
        self._stale_seconds = period_seconds * stale_periods
        self._holder = Holder.this_process()
        self._lost_to: str | None = None
        self._failure: Exception | None = None
        self._trying_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="patchwire-lease", daemon=True)

    def __enter__(self) -> Self:
        with _locked(self._folder):
            existing = _read(self._folder)
            if existing is not None and not existing.is_gone(self._stale_seconds):
                raise _busy(self._folder, existing)
            if existing is None:
                self._create()
            else:
                self._write()
        self._read_back()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OutputError), _locked(self._folder):  # a lease that stays goes stale
            if _is_ours(_read(self._folder), self._holder):
                self._folder.remove(LEASE)

    def check(self) -> None:
        """Stop a run whose output may be another's by now. Cost: none.

        Raises: OutputBusyError where another run has taken over; OutputError where no heartbeat could be written for as
            long as it takes another run to think this one dead.
        """
        if self._lost_to is not None:
            raise OutputBusyError(
                f"output {self._folder.uri!r} was taken over by {self._lost_to}; this run has stopped. "
                "What it finished is kept"
            )
        since = self._trying_since
        # A try begins a period after the heartbeat before it. A run that was only stopped for a while is at none.
        if since is not None and time.monotonic() - since > self._stale_seconds - self._period_seconds:
            why = self._failure or "the last try has no answer yet"
            raise OutputError(
                f"output {self._folder.uri!r}: {LEASE}: no heartbeat could be written for {self._stale_seconds:g} s, "
                f"so another run may have taken over: {why}. This run has stopped; what it finished is kept. "
                "Run the same command again"
            )

    def _beat(self) -> None:
        while not self._ended.wait(self._period_seconds):
            if self._trying_since is None:
                self._trying_since = time.monotonic()
            try:
                self._refresh()
            except Exception as error:  # a full disk or a lost network may pass before the lease is stale
                self._failure = error
                continue
            self._trying_since = self._failure = None
            if self._lost_to is not None:
                return

    def _refresh(self) -> None:
        with _locked(self._folder):
            existing = _read(self._folder)
            if existing is not None and existing.run_id != self._holder.run_id:
                self._lost_to = str(existing)
                return
            self._holder = replace(self._holder, heartbeat_at=_now())
            self._write()

    def _create(self) -> None:
        """Write the lease where there is none; loses to whoever was faster."""
        if self._folder.local is not None:
            self._write()
            return
        store, root = self._folder.store()
        try:
            store.pipe_file(f"{root}/{LEASE}", _encode(self._holder), mode="create")
        except TypeError:  # a driver without conditional puts
            self._write()
        except (FileExistsError, PermissionError) as error:
            raise _busy(self._folder, _read(self._folder)) from error
        except Exception as error:  # each store's driver has its own
            if getattr(error, "errno", None) == errno.EEXIST or "PreconditionFailed" in str(error):
                raise _busy(self._folder, _read(self._folder)) from error
            raise OutputError(f"output {self._folder.uri!r}: {LEASE}: cannot be written: {error}") from error

    def _write(self) -> None:
        data = _encode(self._holder)

        def write(file: BinaryIO) -> None:
            file.write(data)

        write_atomically(self._folder, LEASE, write)

    def _read_back(self) -> None:
        existing = _read(self._folder)
        if not _is_ours(existing, self._holder):
            raise _busy(self._folder, existing)


def refuse_if_held(folder: OutputFolder) -> None:
    """Raise OutputBusyError where another run holds the output, before anything that takes long. Cost: one small read.

    An answer for people who wait; who holds it is decided by taking the lease.
    """
    existing = _read(folder)
    if existing is not None and not existing.is_gone(PERIOD_SECONDS * STALE_PERIODS):
        raise _busy(folder, existing)


@contextmanager
def _locked(folder: OutputFolder) -> Iterator[None]:
    """Keep other runs from looking at the lease; a no-op where there are no locks. The lock dies with its holder."""
    if folder.local is None:
        yield
        return
    try:
        descriptor = os.open(folder.local, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutputError(f"output {folder.uri!r}: cannot be opened: {error.strerror}") from error
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait a little, then go on without: a stopped process must not keep everyone out."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_SECONDS)
        except OSError:  # this file system has no locks
            return
        else:
            return


def _read(folder: OutputFolder) -> Holder | None:
    """Read the lease, None where there is none. Raises: OutputError where it is not one of this version."""
    try:
        with folder.open(LEASE) as file:
            holder = Holder(**json.loads(file.read().decode("utf-8")))
        _ = holder.silent_seconds
        return holder
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"output {folder.uri!r}: {LEASE}: expected a lease of this version, got: {error}; "
            "remove it if no run is using this output"
        ) from error
    except OSError as error:
        raise OutputError(f"output {folder.uri!r}: {LEASE}: cannot be read: {error.strerror or error}") from error


def _is_ours(existing: Holder | None, holder: Holder) -> bool:
    return existing is not None and existing.run_id == holder.run_id


def _busy(folder: OutputFolder, holder: Holder | None) -> OutputBusyError:
    advice = "wait for it, stop it, or name another output"
    if holder is not None and holder.silent_seconds < -PERIOD_SECONDS * STALE_PERIODS:
        # Waiting would not help where that machine is gone: its lease gets old an hour late, or a year.
        advice = (
            f"that machine's clock is {-holder.silent_seconds:.0f} s ahead of this one's, so nobody can tell whether "
            f"it still runs: set the clocks right, or remove {LEASE} if it does not"
        )
    return OutputBusyError(f"output {folder.uri!r} is held by {holder or 'another run'}; {advice}")


def _encode(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=2) + "\n").encode("ascii")


def _machine() -> str:
    """This boot and this process namespace: where a process number means one process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _process_started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is none, or only its body."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
