"""Folders of prepared requests: finding one among the sources, and holding it against what is asked of it.

Such a folder carries its plan and `run.json`, so nothing else is needed where it is embedded: not the media, and not
the settings, which are taken from it. What would have made other requests is refused.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config, override_config
from pipeline.errors import OutputError, UsageError
from pipeline.flow.plan_store import read_plan
from pipeline.plan.planner import Plan
from pipeline.sink.output import RUN_RECORD, Kind, OutputFolder
from pipeline.sink.run_record import read_run_record, require_run_record
from pipeline.sources.items import has_scheme

_NAMED = 10


def find_prepared(specs: Sequence[str]) -> OutputFolder | None:
    """The folder of prepared requests that the sources are, or None where they are media.

    Raises: UsageError where one stands among other sources. Cost: one look into each folder that is named.
    """
    found = [folder for folder in map(_folder, specs) if folder is not None]
    if not found:
        return None
    if len(specs) > 1:
        raise UsageError(f"source {found[0].uri!r}: prepared requests are embedded alone, in a run of their own")
    return found[0]


def _folder(spec: str) -> OutputFolder | None:
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
    return folder if record is not None and record.makes == Kind.REQUESTS else None


def prepared_config(folder: OutputFolder, overrides: Sequence[str] = ()) -> Config:
    """The settings of the rows that a folder's requests were prepared for, and those that are changed.

    How fast they are made (`ray`, devices, threads) is this machine's own matter.
    Raises: OutputError where it is no such folder; ConfigError as `override_config` does.
    """
    record = require_run_record(folder, Kind.REQUESTS)
    stored = Config.from_values({**record.result_config, "model": record.config.get("model")})
    return override_config(stored, overrides)


def prepared_plan(folder: OutputFolder) -> Plan:
    """The plan of a folder all of whose requests are there. Raises: OutputError that counts those that are not."""
    if not folder.fragments(Kind.SOURCES):
        raise OutputError(f"prepared {folder.uri!r}: it has no plan yet; run `patchwire prepare` again")
    plan = read_plan(folder)
    stored = set(folder.fragments(Kind.REQUESTS))
    missing = [request.request_id for request in plan.requests if request.request_id not in stored]
    if missing:
        raise OutputError(
            f"prepared {folder.uri!r}: {len(missing)} of {len(plan.requests)} requests are missing "
            f"({', '.join(missing[:_NAMED])}{', ...' if len(missing) > _NAMED else ''}); run `patchwire prepare` again"
        )
    return plan


def check_extends(known: Plan, prepared: Plan, folder: OutputFolder) -> None:
    """Refuse an output that holds other requests: packed otherwise, the same clips would come twice.

    Raises: OutputError.
    """
    others = {request.request_id for request in known.requests} - {request.request_id for request in prepared.requests}
    if others:
        raise OutputError(
            f"the output holds {len(others)} requests that {folder.uri!r} does not; "
            "name another --out for what was prepared"
        )
