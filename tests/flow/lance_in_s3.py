"""Commits to a Lance dataset in S3, each killed by the server itself at a request of its choice.

    python -m tests.flow.lance_in_s3

Lance talks to the store from native code, where no hook of Python's sees it; the server sees every request. Each time
a reader must see the rows of the fragments. Everything is done in forked children, because Lance's and s3fs's threads
would not survive a fork. Prints how each killed child ended.
"""

import os
import sys
from functools import partial

import pandas  # noqa: F401  what the children would else load one by one
import pyarrow.dataset  # noqa: F401
import s3fs

from pipeline.sink.lance_commit import commit_lance
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.flow.killing_server import KillingServer
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
FOLDER = OutputFolder("s3://outputs/OUT")


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
    os.environ.update(server.environment)
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
