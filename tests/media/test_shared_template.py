"""One template for the decode workers of a machine: who starts it, who it serves, and how everything of it ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import MediaError
from pipeline.media import shared_template
from pipeline.media.sandbox import Sandbox
from pipeline.media.shared_template import SharedTemplate
from tests.media.helpers import make_job, probe, rows_of
from tests.media.test_sandbox import has_ended, wait_until
from tests.media.test_template import parent_of

pytestmark = pytest.mark.own_templates


@pytest.fixture
def shared():
    template = SharedTemplate()
    yield template
    template.end()


def make_sandbox(shared, **limits):
    return Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), LimitsConfig(**limits), template=shared)


def shared_pid(box):
    """The decoder's parent is its template; that one's parent is what they share."""
    return parent_of(parent_of(box.pid))


def test_workers_share_one_template_and_each_has_its_own_settings(made, shared):
    uri = str(made("h264.mp4"))
    job = make_job(uri, probe(uri), [0, 5, 9])
    with make_sandbox(shared) as box, make_sandbox(shared) as other, make_sandbox(shared, max_file_bytes=9) as bound:
        assert box.probe(uri) == probe(uri)
        assert np.array_equal(rows_of(other, job), rows_of(box, job))
        with pytest.raises(MediaError, match="max_file_bytes"):
            bound.probe(uri)
        assert len({shared_pid(each) for each in (box, other, bound)}) == 1
        assert len({parent_of(each.pid) for each in (box, other, bound)}) == 3


def test_workers_that_start_at_once_start_one_template(made, shared):
    boxes = [make_sandbox(shared) for _ in range(6)]
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda box: box.probe(str(made("h264.mp4"))), boxes))
        assert len({shared_pid(box) for box in boxes}) == 1
    finally:
        for box in boxes:
            box.close()


def test_closed_sandbox_leaves_the_shared_template_and_nothing_else(made, shared):
    with make_sandbox(shared) as box:
        box.probe(str(made("h264.mp4")))
        decoder, template, common = box.pid, parent_of(box.pid), shared_pid(box)
    assert wait_until(lambda: has_ended(decoder) and has_ended(template))
    assert not has_ended(common)
    shared.end()
    assert wait_until(lambda: has_ended(common))


def test_decoder_stands_where_its_worker_does(made, shared):
    """Ray's workers step back for its own processes, and are the first to go when memory runs out."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pipeline.media.shared_template import SharedTemplate\n"
        "from tests.media.test_shared_template import make_sandbox\n"
        "os.nice(7)\n"
        "Path('/proc/self/oom_score_adj').write_text('900')\n"
        "with make_sandbox(SharedTemplate(sys.argv[2])) as box:\n"
        "    box.probe(sys.argv[1])\n"
        "    score = Path(f'/proc/{box.pid}/oom_score_adj').read_text()\n"
        "    print(os.getpriority(os.PRIO_PROCESS, box.pid), int(score))\n"
    )
    with make_sandbox(shared) as first:
        first.probe(str(made("h264.mp4")))
        line = [sys.executable, "-c", code, str(made("h264.mp4")), shared.address]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        assert ended.stdout.split() == [str(7 + os.getpriority(os.PRIO_PROCESS, 0)), "900"]
        assert os.getpriority(os.PRIO_PROCESS, first.pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_hung_decoder_is_killed_and_the_next_one_has_the_same_template(made, shared):
    with Sandbox(DecodeConfig(timeout_seconds=1), ImagesConfig(), LimitsConfig(), template=shared) as box:
        box.probe(str(made("h264.mp4")))
        hung, template = box.pid, parent_of(box.pid)
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(MediaError, match="killed"):
            box.probe(str(made("h264.mp4")))
        assert has_ended(hung)
        assert box.probe(str(made("h264.mp4"))).num_frames == 24
        assert parent_of(box.pid) == template


def test_killed_shared_template_costs_nothing_and_is_replaced(made, shared):
    with make_sandbox(shared) as box, make_sandbox(shared) as other:
        box.probe(str(made("h264.mp4")))
        common, decoder = shared_pid(box), box.pid
        os.kill(common, signal.SIGKILL)
        assert wait_until(lambda: has_ended(common))
        assert box.probe(str(made("h264.mp4"))).num_frames == 24
        assert box.pid == decoder
        assert other.probe(str(made("h264.mp4"))).num_frames == 24
        assert shared_pid(other) != common


WORKER = (
    "import sys, time\n"
    "from pipeline.media.shared_template import SharedTemplate\n"
    "from tests.media.test_shared_template import make_sandbox, shared_pid\n"
    "shared = SharedTemplate(sys.argv[2])\n"
    "process = shared.start(as_child=True) if sys.argv[3] == 'child' else None\n"
    "box = make_sandbox(shared)\n"
    "box.probe(sys.argv[1])\n"
    "print(box.pid, shared_pid(box), flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize("starts", ["child", "nobody's"])
def test_what_a_killed_worker_leaves(made, shared, starts):
    line = [sys.executable, "-c", WORKER, str(made("h264.mp4")), shared.address, starts]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as worker:
        decoder, common = map(int, worker.stdout.readline().split())
        template = parent_of(decoder)
        os.kill(decoder, signal.SIGSTOP)  # a decoder that hangs cannot see that its worker is gone
        worker.kill()
    assert wait_until(lambda: has_ended(decoder) and has_ended(template))
    if starts == "child":
        assert wait_until(lambda: has_ended(common))
        return
    with make_sandbox(shared) as box:
        box.probe(str(made("h264.mp4")))
        assert shared_pid(box) == common


def test_nobodys_template_ends_when_it_has_had_no_worker_for_a_while(made, shared, monkeypatch):
    impatient = "from pipeline.media import shared_template as s; s._LINGER_SECONDS = s._TICK_SECONDS = 0.2; s.main()"
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda line, **named: start([line[0], "-P", "-c", impatient, *line[4:]], **named)
    )
    with make_sandbox(shared) as box:
        box.probe(str(made("h264.mp4")))
        common = shared_pid(box)
        time.sleep(1)
        assert not has_ended(common)
    assert wait_until(lambda: has_ended(common))


def test_another_users_template_is_not_taken(made, shared, monkeypatch):
    monkeypatch.setattr(shared_template, "_is_ours", lambda channel: False)
    with pytest.raises(PermissionError, match=r"expected a process of user \d+, another answered"):
        shared.connect()
    with make_sandbox(shared) as box:
        assert box.probe(str(made("h264.mp4"))).num_frames == 24
        assert parent_of(parent_of(box.pid)) == os.getpid()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_not_served(made, shared):
    with make_sandbox(shared) as box:
        box.probe(str(made("h264.mp4")))
        stranger = (
            "import os, socket, sys\n"
            "os.setuid(65534)\n"
            "channel = socket.socket(socket.AF_UNIX)\n"
            "channel.connect(chr(0) + sys.argv[1])\n"
            "print(channel.recv(1))\n"
        )
        line = [sys.executable, "-c", stranger, shared.name[1:]]
        assert subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout == "b''\n"


def test_containers_that_share_a_hosts_names_do_not_share_templates(shared, monkeypatch, tmp_path):
    here = shared.name
    assert here == SharedTemplate(shared.address).name
    monkeypatch.setattr(shared_template, "_MOUNTS", tmp_path)
    assert shared.name != here
    monkeypatch.setattr(shared_template, "_MOUNTS", tmp_path / "nothing")
    assert shared.name.endswith("-0")


def test_template_that_cannot_be_shared_is_loaded_for_the_worker(made, shared, monkeypatch):
    def refuse(self, *, as_child):
        raise OSError("there are no abstract names here")

    monkeypatch.setattr(SharedTemplate, "start", refuse)
    with make_sandbox(shared) as box:
        assert box.probe(str(made("h264.mp4"))).num_frames == 24
        assert parent_of(parent_of(box.pid)) == os.getpid()
