"""Runs `embed` in forked children, each of which SIGKILLs itself before its Nth look at the output.

    python -m tests.faults.killed_driver [--compact] SOURCES OUT N [N ...]

An audit hook counts the opens, renames and removals below OUT, so a kill falls between any two of them: before a
temporary is made, before it is renamed, after the rename and before the folder is synced, between errors and
embeddings. Forked, because importing takes longer than the runs do. Prints how each child ended. With `--compact` a
run ends with the table, and after each end both kinds of reader must see the same rows.
"""

import os
import signal
import sys
from typing import Any

from pipeline.sink.compact import read_manifest
from pipeline.sink.output import OutputFolder
from tests.sink.readers import fragments_table, manifest_table

_EVENTS = ("open", "os.rename", "os.remove")


def main() -> None:
    is_compacted, (sources, out, *numbers) = "--compact" in sys.argv, [word for word in sys.argv[1:] if word[0] != "-"]
    import pipeline.flow.local  # noqa: F401
    from pipeline import Config, embed

    values = {
        "model": "random:tiny",
        "request": {"max_patches": 1},
        "encode": {"threads": 1},
        "output": {"compact": is_compacted},
    }
    for number in map(int, numbers):
        child = os.fork()
        if not child:
            sys.addaudithook(_killer(out, number))
            embed(sources, out, config=Config.from_values(values), runner="local")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if is_compacted:
            _require_equal_readers(OutputFolder(out))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _require_equal_readers(folder: OutputFolder) -> None:
    if read_manifest(folder) is not None:
        assert manifest_table(folder).equals(fragments_table(folder))


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
