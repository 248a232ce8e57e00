"""Media that ended their decoder, written down where the next worker and the next run look.

One small file a death, `<folder>/<medium>-<random>.json`, made by the parent of the decoder as soon as it has seen the
end: it outlives the decoder, the worker and the driver. A healthy clip writes nothing; it costs two `stat` calls, one
of the medium, one of the folder (another worker's death changes the folder's time). In an object store the list is
read again only after a death of one's own.

A medium is its URI and its file's size and modification time, so a file that was mended is tried again. A worker that
is killed itself writes nothing: what it was decoding is not to blame, and a machine that is taken away twice must not
cost a file.
"""

import json
import os
import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.digest import digest_values
from pipeline.errors import ErrorCode, MediaError, RunError, Stage
from pipeline.media.inside import container_of
from pipeline.media.location import file_version, local_path

MAX_DEATHS = 2
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One end of a decoder: the medium's URI, how it ended, and in words."""

    uri: str
    code: ErrorCode
    message: str


class Attempts:
    """Reads and writes the deaths below one folder, a path or an fsspec URL; each worker has its own."""

    def __init__(self, folder_uri: str) -> None:
        self._uri = folder_uri
        path = local_path(folder_uri)
        self._local = None if path is None else Path(os.fsdecode(path))
        self._seen_ns: int | None = None
        self._names: dict[str, list[str]] = {}
        self._read_names()

    def require_allowed(self, uri: str, stage: Stage) -> None:
        """Raise MediaError, with the code of the last death, for a medium that may not be tried again."""
        if self._local is not None and self._changed_ns() != self._seen_ns:
            self._read_names()
        if not self._names:
            return
        names = self._names.get(_key(uri), [])
        if len(names) < MAX_DEATHS:
            return
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
        name = f"{_key(death.uri)}-{secrets.token_hex(8)}{_SUFFIX}"
        try:
            self._write(name, data)
        except OSError as error:
            raise RunError(
                f"{self._uri}: cannot write down that {death.uri} ended its decoder: {error.strerror or error}"
            ) from error
        self._read_names()
        return len(self._names.get(_key(death.uri), []))

    def forget_all(self) -> int:
        """Lift the quarantine of every medium, and say how many files that removed."""
        names = [name for listed in self._names.values() for name in listed]
        for name in names:
            if self._local is not None:
                (self._local / name).unlink(missing_ok=True)
            else:
                store, root = self._store()
                store.rm_file(f"{root}/{name}")
        self._read_names()
        return len(names)

    def _write(self, name: str, data: bytes) -> None:
        if self._local is not None:
            self._local.mkdir(exist_ok=True)
            (self._local / name).write_bytes(data)
            return
        store, root = self._store()
        store.pipe_file(f"{root}/{name}", data)

    def _read_names(self) -> None:
        self._names = {}
        self._seen_ns = self._changed_ns()
        for name in sorted(self._list()):
            if name.endswith(_SUFFIX):
                self._names.setdefault(name.partition("-")[0], []).append(name)

    def _list(self) -> list[str]:
        try:
            if self._local is not None:
                return [path.name for path in self._local.iterdir()]
            store, root = self._store()
            return [str(path).rpartition("/")[2] for path in store.ls(root, detail=False)]
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> Death:
        """A death that cannot be read back (its writer was killed) is still one."""
        try:
            if self._local is not None:
                values = json.loads((self._local / name).read_bytes())
            else:
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
