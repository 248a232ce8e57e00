"""`run.json`: what was run, with what, and how it went; also what binds an output folder to one config and model.

Written at the start (so that a second run knows whose folder it is) and again at the end. Plain JSON, typed here.
"""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import BinaryIO, Self

from pipeline.config import Config
from pipeline.digest import digest_values
from pipeline.errors import OutputError, OutputMismatchError
from pipeline.sink.atomic import write_atomically
from pipeline.sink.output import RUN_RECORD, Kind, OutputFolder

PlainValue = None | bool | int | float | str | list["PlainValue"] | dict[str, "PlainValue"]

# What of `result_config` decides a request's bytes; the rest is about what is made of them.
_REQUEST_SECTIONS = ("clips", "frames", "sizes", "images")
_PACKAGES = ("patchwire", "torch", "ray", "pyarrow", "av", "decord", "pillow", "flash-attn-4", "quack-kernels")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which weights made the vectors."""

    model_id: str
    model_revision: str
    random_weights: bool

    def hash_with(self, result_config: Mapping[str, PlainValue]) -> str:
        """Name what decides the rows: the settings that do, and these weights."""
        return digest_values(result_config, self.model_id, self.model_revision, self.random_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run of an output folder. Times are ISO 8601 in UTC; `finished_at` is None while it runs or if it died.

    `config` is everything that was set; `result_config` the part that decides the rows, which later runs must share.
    `arithmetic` is what the encoder computes in (`float32`, `bfloat16`, `float8`), which `encode.dtype=auto` leaves to
    the machine; None of a folder of requests, or where a version that did not write it down made the rows.
    `makes` is what the folder is for: `embeddings`, or `requests` to be embedded elsewhere.
    `rates` are what `patchwire plan --rates OUT` predicts with (`plan/rates.py`); empty where nothing was done.
    """

    started_at: str
    finished_at: str | None = None
    makes: str = Kind.EMBEDDINGS.value
    model: ModelIdentity
    config_hash: str
    result_config: Mapping[str, PlainValue]
    config: Mapping[str, PlainValue]
    arithmetic: str | None = None
    versions: Mapping[str, str]
    counts: Mapping[str, int] = field(default_factory=dict)
    timings_seconds: Mapping[str, float] = field(default_factory=dict)
    bottleneck: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def begun(cls, config: Config, model: ModelIdentity, makes: Kind, started_at: str) -> Self:
        """A run that starts now, with the hash of what decides its rows."""
        return cls(
            started_at=started_at,
            makes=makes.value,
            model=model,
            config_hash=model.hash_with(config.result_values),
            result_config=config.result_values,
            config=config.model_dump(mode="json"),
            versions=installed_versions(),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises: ValueError, KeyError or TypeError for anything else."""
        values = json.loads(text)
        record = cls(**{**values, "model": ModelIdentity(**values["model"])})
        if not isinstance(record.result_config, dict) or not isinstance(record.config_hash, str):
            raise TypeError("result_config or config_hash is of another type")
        if not isinstance(record.counts, dict) or not all(isinstance(count, int) for count in record.counts.values()):
            raise TypeError("counts: expected numbers")
        return record

    def to_json(self) -> str:
        """As indented JSON with a final newline."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=True) + "\n"


def write_run_record(folder: OutputFolder, record: RunRecord) -> None:
    """Replace `run.json`, whole or not at all. Raises: OutputError."""
    data = record.to_json().encode("ascii")

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomically(folder, RUN_RECORD, write)


def read_run_record(folder: OutputFolder) -> RunRecord | None:
    """Read the folder's `run.json`, or None where there is none.

    Raises: OutputError where it cannot be read or is not ours.
    """
    try:
        with folder.open(RUN_RECORD) as file:
            return RunRecord.from_json(file.read().decode("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"output {folder.uri!r}: {RUN_RECORD}: expected a run record of this version, got: {error}"
        ) from error


def require_run_record(folder: OutputFolder, makes: Kind | None = Kind.EMBEDDINGS) -> RunRecord:
    """Read the `run.json` of a folder that is for this, or (None) for anything.

    Raises: OutputError where there is none, or it is not ours or for something else.
    """
    record = read_run_record(folder)
    if record is None:
        raise OutputError(f"output {folder.uri!r}: expected an output of `patchwire embed`, found none")
    if makes is not None:
        check_purpose(folder, record, makes)
    return record


def check_purpose(folder: OutputFolder, record: RunRecord, makes: Kind) -> None:
    """Refuse to take prepared requests for embeddings, or the other way round. Raises: OutputMismatchError."""
    if record.makes != makes:
        raise OutputMismatchError(
            f"output {folder.uri!r}: expected {makes}, it holds {record.makes}"
            + ("; `patchwire embed` makes embeddings of them" if record.makes == Kind.REQUESTS else "")
        )


def check_same_run(existing: RunRecord, *, result_config: Mapping[str, PlainValue], model: ModelIdentity) -> None:
    """Refuse to mix rows of two configs or models in one folder.

    Raises: OutputMismatchError that lists exactly the keys that differ, dotted, with both values.
    """
    differing = _differing(
        {**existing.result_config, "model": _plain(existing.model)}, {**result_config, "model": _plain(model)}
    )
    if differing:
        raise OutputMismatchError(
            "the output folder was made with other settings:\n"
            + "\n".join(differing)
            + "\nname another --out, or run with the settings it was made with"
        )


def as_begun(config: Config, existing: RunRecord) -> Config:
    """The settings of a later run, with `auto` for an `encode.dtype` that only says what `auto` was there."""
    was_auto = existing.result_config.get("encode") == {"dtype": "auto"}
    if not was_auto or config.encode.dtype != existing.arithmetic:
        return config
    return config.model_copy(update={"encode": config.encode.model_copy(update={"dtype": "auto"})})


def check_same_arithmetic(existing: RunRecord, arithmetic: str | None) -> None:
    """Refuse to mix vectors that were computed differently under one config, as `encode.dtype=auto` would.

    A record without the key, or a run that does not encode, goes with everything.
    Raises: OutputMismatchError with both values and what to do.
    """
    there = existing.arithmetic
    if there is not None and arithmetic is not None and there != arithmetic:
        raise OutputMismatchError(
            "the output folder was made with another arithmetic:\n"
            f'  encode.dtype: "auto" was "{there}" there, is "{arithmetic}" now (bfloat16 on a GPU, float32 on a CPU)\n'
            f"set encode.dtype={there} to go on with it here, or name another --out"
        )


def check_same_requests(prepared: RunRecord, *, result_config: Mapping[str, PlainValue], model: ModelIdentity) -> None:
    """Refuse to embed prepared requests with settings that would have made others.

    A checkpoint folder may lie elsewhere here: its revision, which is a fingerprint, tells it.
    Raises: OutputMismatchError that lists exactly the keys that differ, dotted, with both values.
    """
    sections = {name: prepared.result_config.get(name) for name in _REQUEST_SECTIONS}
    now = {name: result_config.get(name) for name in _REQUEST_SECTIONS}
    there, here = _plain(prepared.model), _plain(model)
    is_same_folder = prepared.model.model_revision == model.model_revision and not model.random_weights
    differing = _differing({**sections, "model": here if is_same_folder else there}, {**now, "model": here})
    if differing:
        raise OutputMismatchError(
            "the requests were prepared with other settings:\n"
            + "\n".join(differing)
            + "\nprepare them again, or embed them with the settings they were prepared with"
        )


def _differing(there: Mapping[str, PlainValue], here: Mapping[str, PlainValue]) -> list[str]:
    old, new = _flat(there), _flat(here)
    return [
        f"  {key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def patchwire_version() -> str:
    """Patchwire's own version, `not installed` where it runs from a source tree."""
    return _version("patchwire")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _plain(model: ModelIdentity) -> PlainValue:
    return {"id": model.model_id, "revision": model.model_revision, "random_weights": model.random_weights}


def _flat(values: Mapping[str, PlainValue], prefix: str = "") -> dict[str, str]:
    """Dotted keys to values as JSON, so that 1 and True, or 10 and "10", are told apart."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
