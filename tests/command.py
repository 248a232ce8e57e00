"""`patchwire` as a person runs it, in this process, which has all loaded: arguments in; streams and exit code out.

What only a process of its own can show (exit codes as the system sees them, signals, kills) is run as one, by
tests/faults/processes.py.
"""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from pipeline.cli import main


def patchwire(*arguments: object) -> "subprocess.CompletedProcess[str]":
    words, output, error = ["patchwire", *map(str, arguments)], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(error):
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(words, ended.value.code or 0, output.getvalue(), error.getvalue())
