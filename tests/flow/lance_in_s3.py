"""Commits to a Lance dataset in S3, each killed by the server itself at a request of its choice.

    python -m tests.flow.lance_in_s3

Lance talks to the store from native code, where no hook of Python's sees it; the server sees every request. It kills
the client either before it acts on that request or after it, and each time a reader must see the rows of the
fragments. Everything is done in forked children, because Lance's and s3fs's threads would not survive a fork. Prints
how each killed child ended.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import unquote

import pandas  # noqa: F401  what the children would else load one by one
import pyarrow.dataset  # noqa: F401
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.sink.lance_commit import commit_lance
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.sink.factories import Books
from tests.sink.readers import fragments_table, lance_table, rewrite

# At which request, and whether the server acts upon it: the data file, the books, Lance's transaction and version, and
# looking for what is old.
POINTS = (
    ("PUT", "embeddings.lance/data/", True),
    ("PUT", "embeddings.lance.json", True),
    ("PUT", "embeddings.lance/_transactions/", True),
    ("PUT", "embeddings.lance/_versions/", False),
    ("PUT", "embeddings.lance/_versions/", True),
    ("GET", "embeddings.lance/_indices/", True),
)
NOWHERE = ("", "", True)
FOLDER = OutputFolder("s3://outputs/OUT")


class KillingServer:
    """An S3 server that kills its client at a request, which is `answered` (acted upon) or not."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._answer = self._server._server.app
        self._server._server.app = self
        self._point, self._client = NOWHERE, 0

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
        return self._answer(environ, respond)

    def forked(self, work: Callable[[], object], point: tuple[str, str, bool] = NOWHERE) -> int:
        """Do the work in a child, and say how that ended."""
        waiting, start = os.pipe()
        self._client = os.fork()
        if not self._client:
            os.read(waiting, 1)
            work()
            os._exit(0)
        self._point = point
        os.write(start, b"1")
        return os.waitstatus_to_exitcode(os.waitpid(self._client, 0)[1])


def prepare() -> None:
    s3fs.S3FileSystem().mkdir("outputs")
    FOLDER.create()
    Books().write(FOLDER)


def check() -> None:
    report = verify_output(FOLDER)
    assert report.ok, report
    assert report.num_lance_rows == report.num_rows
    assert lance_table(FOLDER).equals(fragments_table(FOLDER))


def main() -> None:
    server = KillingServer()
    os.environ.update(
        AWS_ENDPOINT_URL=server.endpoint,
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    assert server.forked(prepare) == server.forked(lambda: commit_lance(FOLDER)) == server.forked(check) == 0
    for number, point in enumerate(POINTS):
        compression = ("none", "gzip", "snappy")[number % 3]
        assert server.forked(partial(rewrite, FOLDER, "r2", compression)) == 0
        sys.stdout.write(f"{server.forked(lambda: commit_lance(FOLDER), point)}\n")
        assert server.forked(check) == 0, point
    assert server.forked(lambda: commit_lance(FOLDER)) == server.forked(check) == 0
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
