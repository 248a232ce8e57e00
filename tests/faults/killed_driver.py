"""Runs `embed` in forked children, each of which SIGKILLs itself before its Nth look at the output.

    python -m tests.faults.killed_driver SOURCES OUT N [N ...]

An audit hook counts the opens, renames and removals below OUT, so a kill falls between any two of them: before a
temporary is made, before it is renamed, after the rename and before the folder is synced, between errors and
embeddings. Forked, because importing takes longer than the runs do. Prints how each child ended.
"""

import os
import signal
import sys
from typing import Any

_EVENTS = ("open", "os.rename", "os.remove")


def main() -> None:
    sources, out, *numbers = sys.argv[1:]
    import pipeline.flow.local  # noqa: F401
    from pipeline import Config, embed

    values = {"model": "random:tiny", "request": {"max_patches": 1}, "encode": {"threads": 1}}
    for number in map(int, numbers):
        child = os.fork()
        if not child:
            sys.addaudithook(_killer(out, number))
            embed(sources, out, config=Config.from_values(values), runner="local")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _killer(out: str, number: int) -> Any:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _EVENTS and str(arguments[0]).startswith(out):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    main()
