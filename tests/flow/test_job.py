"""A job submitted to a real local cluster, as the README shows it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.media.template import DECODER_NAME
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.faults.processes import (
    SETTINGS,
    embed_here,
    fragment_bytes,
    make_mark,
    marked_processes,
    num_fragments,
    wait_until,
)
from tests.flow.tables import embeddings_of
from tests.media_factory import make_image

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
NUM_IMAGES = 300  # `ray job stop` takes a second or two to come, and eighty may be done in one
RAY = Path(sys.executable).with_name("ray")
MARK = make_mark()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A one-node cluster with its job server, on loopback and free ports; ended by its own process group."""
    gcs, dashboard = free_port(), free_port()
    log_file = tmp_path_factory.mktemp("head") / "head.log"
    # Ray's sockets lie in here, and a socket's path has at most 107 bytes.
    temporary = tempfile.mkdtemp(prefix="pw-")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        # Loopback alone: there is nobody to authenticate.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # else SIGKILL comes after 3 s, which a slow machine's driver may still need
        "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "0",
        "PYTHONPATH": "",
        MARK.partition("=")[0]: MARK.partition("=")[2],
    }
    command = [
        str(RAY),
        "start",
        "--head",
        "--block",
        f"--port={gcs}",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--dashboard-agent-grpc-port={free_port()}",
        f"--metrics-export-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        "--num-cpus=2",
        f"--object-store-memory={256 << 20}",
        f"--temp-dir={temporary}",
        "--disable-usage-stats",
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_port(dashboard, process, log_file)
            yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        finally:
            # Nothing here is worth an orderly end, which takes Ray half a minute.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(temporary, ignore_errors=True)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"the cluster did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user submits: the project's folders, without its environment and caches."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("pipeline", "actors", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def job(head: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(RAY), "job", *map(str, arguments)]
    return subprocess.run(command, env=head, capture_output=True, text=True, timeout=170, check=False)


def submit(
    head: dict[str, str], working_dir: Path, *arguments: object, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    entry = (sys.executable, "-m", "pipeline", *arguments)
    return job(head, "submit", "--working-dir", working_dir, *options, "--", *entry)


@pytest.mark.timeout(300)
def test_a_submitted_job_embeds_a_folder_and_passes_its_exit_code_on(
    head: dict[str, str], working_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    arguments = ("embed", str(corpus / "a.mp4"), str(corpus / "wide.jpg"), "--out", str(out), "--model", "random:tiny")
    done = submit(head, working_dir, *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 clips of 2 sources" in done.stdout + done.stderr
    assert embeddings_of(out).num_rows == 2
    assert verify_output(OutputFolder(str(out))).ok

    refused = submit(head, working_dir, *arguments[:1], str(corpus / "nothing.mp4"), *arguments[3:])
    assert refused.returncode != 0
    assert "nothing.mp4" in refused.stdout + refused.stderr


@pytest.mark.timeout(300)
def test_a_stopped_job_gives_its_lease_back_leaves_no_decoder_and_is_taken_up_again(
    head: dict[str, str], working_dir: Path, tmp_path: Path
) -> None:
    media, out = tmp_path / "media", tmp_path / "OUT"
    media.mkdir()
    for number in range(NUM_IMAGES):
        make_image(media / f"{number:03}.png", width=32, height=32, seed=number)
    options = ("--no-wait", "--submission-id", "to-be-stopped")
    started = submit(head, working_dir, "embed", media, "--out", out, *SETTINGS, options=options)
    assert started.returncode == 0, started.stdout + started.stderr
    assert wait_until(lambda: num_fragments(out) >= 3), job(head, "logs", "to-be-stopped").stdout[-3000:]
    assert marked_processes(MARK, DECODER_NAME)
    assert "was stopped" in job(head, "stop", "to-be-stopped").stdout
    said = job(head, "logs", "to-be-stopped").stdout
    assert "stopped by SIGTERM; what is finished is kept. To go on: patchwire embed" in said, said[-3000:]
    assert not (out / "lease.json").exists()
    for name in (DECODER_NAME, "DecodeActor", "EncodeActor", "WriteActor"):
        assert wait_until(lambda: not marked_processes(MARK, name), 20), name  # noqa: B023
    assert 3 <= num_fragments(out) < NUM_IMAGES
    embed_here(media, tmp_path / "WHOLE")
    embed_here(media, out)
    assert fragment_bytes(out) == fragment_bytes(tmp_path / "WHOLE")
    assert verify_output(OutputFolder(str(out))).ok
