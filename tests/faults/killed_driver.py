"""Runs `embed` in forked children, each of which SIGKILLs itself before its Nth look at the output.

    python -m tests.faults.killed_driver [--compact | --lance] SOURCES OUT N [N ...]

An audit hook counts the opens, renames and removals below OUT, so a kill falls between any two of them: before a
temporary is made, before it is renamed, after the rename and before the folder is synced, between errors and
embeddings. Forked from a process that has everything loaded, because that takes longer than the runs do; so is each
child's template, from one that they share. Prints how each child ended. A fragment that one
child left no later one writes again, and a child that comes to its end has decoded those that were missing. With
`--compact` a run ends with the table and with `--lance` with the Lance dataset, and after each end the readers of
fragments and of what there is must see the same rows.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.sink.compact import read_manifest
from pipeline.sink.lance_table import DATASET
from pipeline.sink.output import OutputFolder
from tests.faults.processes import fragment_times
from tests.kept_templates import Templates
from tests.sink.readers import fragments_table, lance_table, manifest_table

_EVENTS = ("open", "os.rename", "os.remove")


def main() -> None:
    compact = "lance" if "--lance" in sys.argv else "--compact" in sys.argv
    sources, out, *numbers = [word for word in sys.argv[1:] if word[0] != "-"]
    import pandas  # noqa: F401  what the children would else load one by one
    import pyarrow.dataset  # noqa: F401

    import pipeline.flow.local
    from pipeline import Config, embed
    from pipeline.stages.decode import Decode

    values = {
        "model": "random:tiny",
        "request": {"max_patches": 1},
        "encode": {"threads": 1},
        "output": {"compact": compact},
    }
    templates = Templates()
    with templates.kept():
        if not compact:  # then something is left to decode and to encode
            import pipeline.stages.encode  # noqa: F401

            templates.here()
        for number in map(int, numbers):
            before = fragment_times(Path(out))
            child = os.fork()
            if not child:
                decoded = _counted(Decode)
                sys.addaudithook(_killer(out, number))
                embed(sources, out, config=Config.from_values(values), runner="local")
                assert len(decoded) == len(fragment_times(Path(out))) - len(before)
                assert "torch._dynamo" not in sys.modules  # a second and more of CPU, for nothing
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert before.items() <= fragment_times(Path(out)).items()
            if compact:
                _require_equal_readers(OutputFolder(out))
            sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
            sys.stdout.flush()
    templates.end()


def _require_equal_readers(folder: OutputFolder) -> None:
    child = os.fork()  # Lance starts threads, which a process that forks must not have
    if not child:
        if read_manifest(folder) is not None:
            assert manifest_table(folder).equals(fragments_table(folder))
        if folder.entries(f"{DATASET}/_versions"):
            assert lance_table(folder).equals(fragments_table(folder))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def _counted(stage: Any) -> list[Any]:
    """What the stage is called with from now on."""
    calls: list[Any] = []
    call = stage.__call__

    def counting(self: Any, plan: Any) -> Any:
        calls.append(plan)
        return call(self, plan)

    stage.__call__ = counting
    return calls


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
