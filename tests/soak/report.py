"""Runs every scenario and writes what happened.

    python -m tests.soak.report [--scale 1.0] [--only NAME ...] [--out docs/soak.md]

Exits with 1 where the contract did not hold; the report says so too.
"""

import argparse
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from tests.soak.scenarios import SCENARIOS, Outcome


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", default=[scenario.__name__ for scenario in SCENARIOS])
    parser.add_argument("--out", type=Path, default=Path("docs/soak.md"))
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.soak.report", *sys.argv[1:]])
    lines, all_hold = [], True
    for scenario in SCENARIOS:
        if scenario.__name__ not in options.only:
            continue
        sys.stderr.write(f"{scenario.__name__} ...\n")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            outcome = _guarded(scenario, Path(folder), options.scale)
        all_hold &= outcome.holds
        facts = ", ".join(f"{name} {value}" for name, value in outcome.facts.items())
        seconds = round(time.monotonic() - started)
        lines.append(f"| {scenario.__doc__.strip()} | {'yes' if outcome.holds else '**NO**'} | {facts} | {seconds} |")
        sys.stderr.write(lines[-1] + "\n")
        options.out.write_text("\n".join([*_head(command), *lines]) + "\n")
    sys.exit(0 if all_hold else 1)


def _guarded(scenario, folder: Path, scale: float) -> Outcome:
    try:
        return scenario(folder, scale)
    except Exception:
        return Outcome(holds=False, facts={"exception": traceback.format_exc().strip().splitlines()[-1]})


def _head(command: str) -> list[str]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ray", "torch", "av", "pyarrow"))
    return [
        "# Soak: the faults of the contract at length",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}, model random:tiny on the CPU.",
        "",
        "| scenario | holds | counts | seconds |",
        "|---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
