"""Media that ended their decoder, written down where the next worker and the next run look.

One small file a death, `<folder>/<medium>-<random>.json`, made by the parent of the decoder as soon as it has seen the
end: it outlives the decoder, the worker and the driver. A healthy clip writes nothing; it costs two `stat` calls, one
of the medium, one of the folder (another worker's death changes the folder's time). In an object store the list is
read before the first medium, and again only after a death of one's own.

A medium with one death on record is tried by one worker at a time, until a clip of it has been decoded: of N workers
that are at one file, those lose their decoder that were at it already, and one more. The turn is a lock on
`<folder>/<medium>.turn`, which the kernel takes back from a worker that is killed. There are none in an object store,
where each worker may lose one, and the first of them two.

Decoders of a GPU have records of their own, `<folder>/<medium>-<random>.nvdec`: one is enough, because there is the CPU
to decode what ended them, and it does not count against the medium there.

A medium is its URI and its file's size and modification time, so a file that was mended is tried again. A worker that
is killed itself writes nothing: what it was decoding is not to blame, and a machine that is taken away twice must not
cost a file.
"""

import fcntl
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.digest import digest_values
from pipeline.errors import ErrorCode, MediaError, RunError, Stage
from pipeline.media.driver_file import driver_errors
from pipeline.media.inside import container_of
from pipeline.media.location import file_version, local_path

MAX_DEATHS = 2
_MAX_DEVICE_DEATHS = 1
_SUFFIX = ".json"
_DEVICE_SUFFIX = ".nvdec"
_TURN_SUFFIX = ".turn"
_UNSETTLED = -1
_CLOCK_STEP_NS = 1_000_000_000  # of a file system's times, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One end of a decoder: the medium's URI, how it ended, and in words."""

    uri: str
    code: ErrorCode
    message: str


class Attempts:
    """Reads and writes the deaths below one folder, a path or an fsspec URL; each worker has its own.

    Those of the CPU's decoders, or, `on_device`, of a GPU's.
    """

    def __init__(self, folder_uri: str, *, on_device: bool = False) -> None:
        self._uri = folder_uri
        self._suffix = _DEVICE_SUFFIX if on_device else _SUFFIX
        self._max_deaths = _MAX_DEVICE_DEATHS if on_device else MAX_DEATHS
        path = local_path(folder_uri)
        self._local = None if path is None else Path(os.fsdecode(path))
        self._seen_ns: int | None = None
        # None until a medium is asked for: by then the quarantine is lifted, where the run does that.
        self._names: dict[str, list[str]] | None = None

    @contextmanager
    def turn(self, uri: str, stage: Stage) -> Iterator[None]:
        """One try of a medium, and the recording of its death, if it comes to that.

        Blocks while another worker tries a medium that has ended a decoder.
        Raises: MediaError, with the code of the last death, for a medium that may not be tried again.
        """
        key = self._suspect(uri, stage)
        if key is None or self._local is None:
            yield
            return
        with self._open_turn(self._local / (key + _TURN_SUFFIX), uri) as turn:
            if not os.fstat(turn.fileno()).st_size:
                with suppress(OSError):  # a file system without locks: nobody waits
                    fcntl.flock(turn, fcntl.LOCK_EX)
            self._suspect(uri, stage)  # as it is by now
            yield
            turn.truncate(1)

    def require_allowed(self, uri: str, stage: Stage) -> None:
        """Raise MediaError, with the code of the last death, for a medium that may not be tried again."""
        self._suspect(uri, stage)

    def allows(self, uri: str) -> bool:
        """Whether a medium may be tried."""
        try:
            self._suspect(uri, Stage.DECODE)
        except MediaError:
            return False
        return True

    def _suspect(self, uri: str, stage: Stage) -> str | None:
        """The key of a medium that has ended a decoder, None of any other. Raises: as `require_allowed`."""
        known = self._names
        if known is None or (self._local is not None and self._changed_ns() != self._seen_ns):
            known = self._read_names()
        if not known:
            return None
        key = _key(uri)
        names = known.get(key, [])
        if len(names) < self._max_deaths:
            return key if names else None
        deaths = [self._read(name) for name in names]
        ended = Counter(death.message for death in deaths)
        how = "; ".join(message for message, _ in ended.most_common())
        raise MediaError(
            deaths[-1].code,
            f"{uri}: not tried again, its decoder ended {len(names)} times: {how}. "
            "`patchwire retry OUT --lift-quarantine` tries it once more",
            stage,
        )

    def record(self, death: Death) -> int:
        """Write one death down and say how many the medium has now. Raises: RunError where it cannot be written."""
        values = {"uri": death.uri, "code": death.code, "message": death.message}
        data = (json.dumps(values) + "\n").encode("ascii")
        name = f"{_key(death.uri)}-{secrets.token_hex(8)}{self._suffix}"
        try:
            self._write(name, data)
        except OSError as error:
            raise self._unwritable(death.uri, error) from error
        return len(self._read_names().get(_key(death.uri), []))

    def forget_all(self) -> None:
        """Lift the quarantine of every medium, for the CPU's decoders and for a GPU's. Raises: RunError."""
        names = [name for name in self._list() if name.endswith((_SUFFIX, _DEVICE_SUFFIX, _TURN_SUFFIX))]
        try:
            for name in names:
                self._remove(name)
        except OSError as error:
            raise RunError(f"{self._uri}: the quarantine cannot be lifted: {error.strerror or error}") from error
        self._read_names()

    def _open_turn(self, path: Path, uri: str) -> BinaryIO:
        try:
            return path.open("ab")
        except OSError as error:
            raise self._unwritable(uri, error) from error

    def _unwritable(self, uri: str, error: OSError) -> RunError:
        return RunError(f"{self._uri}: cannot write down that {uri} ended its decoder: {error.strerror or error}")

    def _write(self, name: str, data: bytes) -> None:
        if self._local is not None:
            self._local.mkdir(exist_ok=True)
            (self._local / name).write_bytes(data)
            return
        with driver_errors():
            store, root = self._store()
            store.pipe_file(f"{root}/{name}", data)

    def _remove(self, name: str) -> None:
        if self._local is not None:
            (self._local / name).unlink(missing_ok=True)
            return
        with driver_errors():
            store, root = self._store()
            store.rm_file(f"{root}/{name}")

    def _read_names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        self._seen_ns = self._changed_ns()
        if self._seen_ns is not None and time.time_ns() - self._seen_ns < _CLOCK_STEP_NS:
            self._seen_ns = _UNSETTLED  # another death may come at the same time, by the folder's clock
        for name in sorted(self._list()):
            if name.endswith(self._suffix):
                names.setdefault(name.partition("-")[0], []).append(name)
        self._names = names
        return names

    def _list(self) -> list[str]:
        try:
            if self._local is not None:
                return [path.name for path in self._local.iterdir()]
            with driver_errors():
                store, root = self._store()
                return [str(path).rpartition("/")[2] for path in store.ls(root, detail=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            what = f"cannot look up which media ended their decoder: {error.strerror or error}"
            raise RunError(f"{self._uri}: {what}") from error

    def _read(self, name: str) -> Death:
        """A death that cannot be read back (its writer was killed) is still one."""
        try:
            if self._local is not None:
                values = json.loads((self._local / name).read_bytes())
            else:
                with driver_errors():
                    store, root = self._store()
                    values = json.loads(store.cat_file(f"{root}/{name}"))
            return Death(uri=values["uri"], code=ErrorCode(values["code"]), message=values["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return Death(uri="", code=ErrorCode.DECODER_CRASHED, message="its record was not finished")

    def _changed_ns(self) -> int | None:
        try:
            return None if self._local is None else self._local.stat().st_mtime_ns
        except OSError:
            return None

    def _store(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        store, root = url_to_fs(self._uri)
        store.invalidate_cache()
        return store, str(root).rstrip("/")


def _key(uri: str) -> str:
    return digest_values(uri, file_version(container_of(uri)))
