"""Runs every scenario and writes what happened.

    python -m tests.soak.report [--scale 1.0] [--only NAME ...] [--out docs/soak.md]

With `--only` the lines of the other scenarios stay as they were. Exits with 1 where the contract did not hold; the
report says so too.
"""

import argparse
import importlib.metadata
import os
import platform
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
    all_hold = True
    lines = _lines_of(options.out)
    for scenario in SCENARIOS:
        if scenario.__name__ not in options.only:
            continue
        sys.stderr.write(f"{scenario.__name__} ...\n")
        started, at = time.monotonic(), f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            outcome = _guarded(scenario, Path(folder), options.scale)
        all_hold &= outcome.holds
        facts = ", ".join(f"{name} {value}" for name, value in outcome.facts.items())
        holds, seconds = "yes" if outcome.holds else "**NO**", round(time.monotonic() - started)
        what = scenario.__doc__.strip()
        lines[what] = f"| {what} | {options.scale:g} | {holds} | {facts} | {seconds} | {at} |"
        sys.stderr.write(lines[what] + "\n")
        ordered = [lines[known] for known in (each.__doc__.strip() for each in SCENARIOS) if known in lines]
        options.out.write_text("\n".join([*_head(), *ordered]) + "\n")
    sys.exit(0 if all_hold else 1)


def _lines_of(report: Path) -> dict[str, str]:
    """What an earlier report says, by the scenario's sentence."""
    if not report.exists():
        return {}
    return {
        line.split(" | ")[0].removeprefix("| "): line for line in report.read_text().splitlines() if line[:2] == "| "
    }


def _guarded(scenario, folder: Path, scale: float) -> Outcome:
    try:
        return scenario(folder, scale)
    except Exception:
        return Outcome(holds=False, facts={"exception": traceback.format_exc().strip().splitlines()[-1]})


def _head() -> list[str]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ray", "torch", "av", "pyarrow"))
    return [
        "# Soak: the faults of the contract at length",
        "",
        "`make soak`, which is `python -m tests.soak.report`; scale 1 is the contract's length, and `--only NAME` does "
        "some of it. "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}, model random:tiny on the CPU; "
        "times are UTC.",
        "",
        "| scenario | scale | holds | counts | seconds | began |",
        "|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
