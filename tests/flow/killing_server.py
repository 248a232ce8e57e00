"""A real S3 server that kills its client at a request of the test's choice, before it acts on it or after."""

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

from moto.server import ThreadedMotoServer

Point = tuple[str, str, bool]  # a method, a text in path or query, and whether the server acts upon the request
NOWHERE: Point = ("", "", True)


class KillingServer:
    """Serves from a thread; `asked` is what it has acted upon, method and path."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._answer = self._server._server.app
        self._server._server.app = self
        self._point, self._client = NOWHERE, 0
        self.asked: list[tuple[str, str]] = []

    @property
    def endpoint(self) -> str:
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    def __call__(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        method, name, is_answered = self._point
        asked = environ["PATH_INFO"] + unquote(environ["QUERY_STRING"])
        if environ["REQUEST_METHOD"] == method and name in asked:
            self._point = NOWHERE
            os.kill(self._client, signal.SIGKILL)
            if not is_answered:
                raise ConnectionError("the client is gone")
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return self._answer(environ, respond)

    @property
    def environment(self) -> dict[str, str]:
        """Where clients find it, and with which keys: as users set them."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def aim(self, client: int, point: Point = NOWHERE) -> None:
        """Kill that process at its first request of that method whose path and query hold that text."""
        self._client, self._point = client, point

    def stop(self) -> None:
        """End it."""
        self._server.stop()

    def forked(self, work: Callable[[], object], point: Point = NOWHERE) -> int:
        """Do the work in a child, and say how that ended."""
        waiting, start = os.pipe()
        child = os.fork()
        if not child:
            os.read(waiting, 1)
            work()
            os._exit(0)
        self.aim(child, point)
        os.write(start, b"1")
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
