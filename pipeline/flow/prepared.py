"""Folders of prepared requests: finding one among the sources, and holding it against what is asked of it.

Such a folder carries its plan and `run.json`, so nothing else is needed where it is embedded: not the media, and not
the settings, which are taken from it. What would have made other requests is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import OutputError, UsageError
from pipeline.flow.plan_store import plan_stems, planned_requests
from pipeline.sink.output import RUN_RECORD, Kind, OutputFolder
from pipeline.sink.run_record import RunRecord, read_run_record
from pipeline.sources.items import has_scheme

_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A folder of prepared requests, with the record of the run that made it."""

    folder: OutputFolder
    record: RunRecord

    @property
    def config(self) -> Config:
        """The settings of the rows that the requests were prepared for.

        How fast they are made (`ray`, devices, threads) is this machine's own matter. Raises: ConfigError for settings
        of another version.
        """
        return Config.from_values({**self.record.result_config, "model": self.record.config.get("model")})


def find_prepared(specs: Sequence[str]) -> Prepared | None:
    """The folder of prepared requests that the sources are, or None where they are media.

    Raises: UsageError where one stands among other sources. Cost: one look into each folder that is named.
    """
    found = [prepared for prepared in map(_prepared, specs) if prepared is not None]
    if not found:
        return None
    if len(specs) > 1:
        raise UsageError(f"source {found[0].folder.uri!r}: prepared requests are embedded alone, in a run of their own")
    return found[0]


def _prepared(spec: str) -> Prepared | None:
    if not spec or spec.lower().startswith(("http://", "https://")) or "::" in spec:
        return None  # an output is never written there
    if not has_scheme(spec) and not (Path(spec) / RUN_RECORD).is_file():
        return None
    folder = OutputFolder(spec)
    try:
        record = read_run_record(folder)
    except (OutputError, OSError, ValueError):
        return None
    except Exception:  # each store's driver has its own; listing the source says it better
        return None
    return None if record is None or record.makes != Kind.REQUESTS else Prepared(folder=folder, record=record)


def check_whole(folder: OutputFolder) -> None:
    """Refuse a folder that has no plan, or not all of its requests. Raises: OutputError that counts those missing."""
    if not plan_stems(folder):
        raise OutputError(f"prepared {folder.uri!r}: it has no plan yet; run `patchwire prepare` again")
    planned, stored = list(planned_requests(folder)), set(folder.fragments(Kind.REQUESTS))
    missing = [request_id for request_id in planned if request_id not in stored]
    if missing:
        raise OutputError(
            f"prepared {folder.uri!r}: {len(missing)} of {len(planned)} requests are missing "
            f"({', '.join(missing[:_NAMED])}{', ...' if len(missing) > _NAMED else ''}); run `patchwire prepare` again"
        )


def check_extends(output: OutputFolder, prepared: OutputFolder) -> None:
    """Refuse an output that holds other requests: packed otherwise, the same clips would come twice.

    Raises: OutputError.
    """
    others = set(planned_requests(output)).difference(planned_requests(prepared))
    if others:
        raise OutputError(
            f"the output holds {len(others)} requests that {prepared.uri!r} does not; "
            "name another --out for what was prepared"
        )
