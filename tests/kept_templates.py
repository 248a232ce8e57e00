"""Templates that outlive their sandboxes, so that a test of something else does not load torch for each of its runs.

A template is taken again only where a new one would be the same: for the same settings, environment, import path and
folder. What a template is and how it ends has its own tests, which start their own (tests/media).
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from pipeline.media.decoder_process import DecoderProcess

_load, _close = DecoderProcess._load_template, DecoderProcess.close


class Shelf:
    """Stands in for how a DecoderProcess gets its template, and for what becomes of that at the end."""

    def __init__(self) -> None:
        self._templates = defaultdict(list)

    def load(self, process: DecoderProcess, stderr: IO[bytes]) -> None:
        """Take a template that is alive, or start one."""
        templates = self._templates[_key(process)]
        while templates:
            template, control = templates.pop()
            if template.poll() is None:
                process._template, process._control = template, control
                return
            control.close()
        _load(process, stderr)

    def close(self, process: DecoderProcess) -> None:
        """End the decoder and keep its template, unless either is in an unknown state."""
        if process._channel is not None:
            process.end(at_once=True)
            if process._template is not None and process._template.poll() is None:
                self._templates[_key(process)].append((process._template, process._control))
                process._template = process._control = None
        _close(process)

    def clear(self) -> None:
        """End every template."""
        for template, control in (pair for pairs in self._templates.values() for pair in pairs):
            control.close()
            template.kill()
            template.wait()


def _key(process: DecoderProcess) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return json.dumps([process._settings, environment, sys.path, str(Path.cwd())], sort_keys=True)


@pytest.fixture(scope="package", autouse=True)
def kept_templates() -> Iterator[None]:
    """For a folder of tests that imports this."""
    shelf = Shelf()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderProcess, "_load_template", lambda process, stderr: shelf.load(process, stderr))
        patch.setattr(DecoderProcess, "close", lambda process: shelf.close(process))
        yield
    shelf.clear()
