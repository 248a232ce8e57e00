import socket

import pytest

from pipeline.config import Config
from pipeline.errors import RunError, UsageError
from pipeline.flow.address import require_answer
from pipeline.flow.run import make_runner


def dead_address() -> str:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_a_failed_run_that_names_the_address(prefix: str) -> None:
    address = prefix + dead_address()
    with pytest.raises(RunError, match=f"ray at {address}: expected a cluster, nothing answers there"):
        require_answer(address)


def test_a_host_that_swallows_connections_is_given_up_in_time() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:  # a full queue: the kernel drops what comes then
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.getsockname()[1]))
        with pytest.raises(RunError, match="timed out"):
            require_answer(address, timeout_seconds=0.2)
        for client in waiting:
            client.close()


@pytest.mark.parametrize("address", ["nohost", "http://head:8265", "head:port", "head:70000", ""])
def test_an_address_of_another_form_is_wrong_usage(address: str) -> None:
    with pytest.raises(UsageError, match="expected host:port"):
        require_answer(address)


def test_what_answers_and_what_ray_looks_up_itself_pass() -> None:
    require_answer("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_answer(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_runner_asks_before_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # by a test before this one, it may be
    with pytest.raises(RunError, match="nothing answers there"), make_runner("ray", Config(), dead_address()):
        pass
