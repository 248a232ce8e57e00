"""A sandbox's own template: what it is, and what its end means for decoders and for the run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import RunError
from tests.media.test_sandbox import has_ended, make_sandbox, wait_until

pytestmark = pytest.mark.own_templates


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_template_is_fit_for_forking_and_outlives_the_decoders_that_are_killed(made):
    with make_sandbox() as box:
        templates = set()
        for _ in range(3):
            box.probe(str(made("h264.mp4")))
            templates.add(parent_of(box.pid))
            os.kill(box.pid, signal.SIGKILL)
            assert wait_until(lambda: has_ended(box.pid))
        (template,) = templates
        assert len(list(Path(f"/proc/{template}/task").iterdir())) == 1
    assert has_ended(template)


def test_machine_without_room_for_a_process_stops_the_run_and_says_so(monkeypatch, made):
    """The limit does not bind root, so the template is one that says what the system would have said."""
    refusing = (
        "import errno, os, sys; from pipeline.media import template\n"
        "def fork(): raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "os.fork = fork; template.main()\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda line, **named: start([line[0], "-P", "-c", refusing, *line[4:]], **named)
    )
    with make_sandbox() as box, pytest.raises(RunError, match="could not be forked: Resource temporarily unavailable"):
        box.probe(str(made("h264.mp4")))


def test_killed_template_is_replaced_without_an_error(made):
    with make_sandbox() as box:
        box.probe(str(made("h264.mp4")))
        decoder, template = box.pid, parent_of(box.pid)
        os.kill(template, signal.SIGKILL)
        assert wait_until(lambda: has_ended(decoder))
        assert box.probe(str(made("h264.mp4"))).num_frames == 24
        assert parent_of(box.pid) != template


def test_decoder_does_not_outlive_its_parent(made):
    code = (
        "import sys, time; from tests.media.test_sandbox import make_sandbox\n"
        "box = make_sandbox(); box.probe(sys.argv[1]); print(box.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(made("h264.mp4"))], stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
        assert not has_ended(child)
        parent.kill()
    assert wait_until(lambda: has_ended(child))


def test_decoder_that_cannot_start_stops_the_run_and_says_why(monkeypatch, made):
    with make_sandbox() as box:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(RunError, match="did not start"):
            box.probe(str(made("h264.mp4")))


def test_closed_sandbox_has_no_process_and_starts_again_when_asked(made):
    box = make_sandbox()
    box.probe(str(made("h264.mp4")))
    pid = box.pid
    box.close()
    assert box.pid is None
    assert has_ended(pid)
    assert box.probe(str(made("h264.mp4"))).num_frames == 24
    box.close()
