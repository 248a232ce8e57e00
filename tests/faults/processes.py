"""Real runs in processes of their own, found again by a mark in their environment whoever started them."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline import Config, RunSummary, embed

REPOSITORY = Path(__file__).resolve().parents[2]
_MARK = "PATCHWIRE_TEST_MARK"
_THREADS = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
SETTINGS = ("--model", "random:tiny", "--set", "request.max_patches=1", "--set", "encode.threads=1")


class Command:
    """One `patchwire` command with everything that it starts; a context manager that leaves nothing behind."""

    def __init__(self, *arguments: object) -> None:
        self._mark = make_mark()
        name, _, value = self._mark.partition("=")
        environment = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *map(str, arguments)],
            cwd=REPOSITORY,
            env={**environment, **_THREADS, name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            send(pid, signal.SIGKILL)
        self._process.communicate()

    def processes(self, words: str = "") -> list[int]:
        """Everything alive of this command whose name or command line holds the words."""
        return marked_processes(self._mark, words)

    def finish(self, timeout_seconds: float = 150) -> subprocess.CompletedProcess[str]:
        output, error = self._process.communicate(timeout=timeout_seconds)
        return subprocess.CompletedProcess(
            self._process.args, self._process.returncode, output.decode(), error.decode("utf-8", "replace")
        )

    def has_ended(self) -> bool:
        return self._process.poll() is not None


def make_mark() -> str:
    """A variable for an environment, as `NAME=value`, by which everything that is started with it is found."""
    return f"{_MARK}={secrets.token_hex(8)}"


def marked_processes(mark: str, words: str = "") -> list[int]:
    """Everything alive with that mark whose name or command line holds the words."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_marked(path, mark, words)]


def _is_marked(folder: Path, mark: str, words: str) -> bool:
    try:
        marked = mark.encode() in (folder / "environ").read_bytes().split(b"\0")
        line = (folder / "comm").read_bytes() + (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        return marked and words in line.decode()
    except OSError:
        return False


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def patchwire(*arguments: object) -> subprocess.CompletedProcess[str]:
    with Command(*arguments) as command:
        return command.finish()


def embed_here(sources: Path, out: Path | str, **sections: object) -> RunSummary:
    """What `SETTINGS` on the command line are, in this process and serially."""
    values = {"model": "random:tiny", "request": {"max_patches": 1}, "encode": {"threads": 1}, **sections}
    return embed(sources, out, config=Config.from_values(values), runner="local")


def wait_until(condition: Callable[[], object], timeout_seconds: float = 120) -> bool:
    end = time.monotonic() + timeout_seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def num_fragments(out: Path) -> int:
    return len(list((out / "embeddings").glob("*.parquet")))


def fragment_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "embeddings").glob("*.parquet")}


def fragment_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "embeddings").glob("*.parquet")}
