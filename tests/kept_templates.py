"""One template for the sandboxes of a process's tests, so that a test of something else does not load torch for each.

A sandbox that is given no template gets one that is shared by those with the same environment, import path and folder,
as the decode workers of a machine share theirs. What a template is and how it ends has its own tests, which start their
own (`own_templates`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.media.decoder_process import DecoderProcess
from pipeline.media.shared_template import SharedTemplate


class Templates:
    """What is started when it is first wanted, and ended with the tests."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[SharedTemplate, subprocess.Popen[bytes] | None]] = {}

    def here(self) -> SharedTemplate:
        """The template of this environment, import path and folder."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        key = json.dumps([environment, sys.path, str(Path.cwd())], sort_keys=True)
        if key not in self._found:
            template = SharedTemplate()
            self._found[key] = template, template.start(as_child=True)
        return self._found[key][0]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Have every sandbox that is made meanwhile, and brings no template, take one of these."""
        make = DecoderProcess.__init__

        def taking(process: DecoderProcess, settings: dict[str, Any], shared: SharedTemplate | None = None) -> None:
            make(process, settings, shared or self.here())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DecoderProcess, "__init__", taking)
            yield

    def end(self) -> None:
        for template, process in self._found.values():
            template.end()
            if process is not None:
                process.kill()
                process.wait()
