"""A job submitted to a real local cluster, as the README shows it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.flow.tables import embeddings_of

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A one-node cluster with its job server, on loopback and free ports; ended by its own process group."""
    gcs, dashboard = free_port(), free_port()
    # Ray's sockets lie in here, and a socket's path has at most 107 bytes.
    temporary = tempfile.mkdtemp(prefix="pw-")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        # Loopback alone: there is nobody to authenticate.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "0",
        "PYTHONPATH": "",
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
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_port(dashboard, process, tmp_path / "head.log")
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


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """What a user submits: the project's folders, without its environment and caches."""
    folder = tmp_path / "work"
    for name in ("pipeline", "actors", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def submit(head: dict[str, str], working_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(RAY), "job", "submit", "--working-dir", str(working_dir), "--", sys.executable, "-m", "pipeline"]
    return subprocess.run([*command, *arguments], env=head, capture_output=True, text=True, timeout=170, check=False)


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
