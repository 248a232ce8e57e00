"""An output in a real S3 server: embed, resume, a lost fragment, a killed driver, the lease, compaction, `verify`."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline import Config, RunSummary, embed
from pipeline.errors import OutputBusyError
from pipeline.sink.compact import read_manifest
from pipeline.sink.fragments import read_table
from pipeline.sink.lance_table import open_dataset
from pipeline.sink.lease import LEASE, Holder, Lease
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output
from tests.faults.processes import REPOSITORY, SETTINGS, Command, embed_here
from tests.flow.tables import embeddings_of
from tests.sink.readers import fragments_table, lance_table, manifest_table

if TYPE_CHECKING:
    from tests.flow.killing_server import KillingServer

pytest.importorskip("moto.server", reason="the development extra brings an S3 server")
pytest.importorskip("s3fs", reason="the development extra brings fsspec's driver for S3")

pytestmark = [
    # botocore's and moto's own; they end with the server.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(botocore|moto|aiobotocore).*"),
]


@pytest.fixture(scope="module")
def server() -> Iterator["KillingServer"]:
    """The server, which drivers find in the environment with its keys, as users set them."""
    import s3fs

    from tests.flow.killing_server import KillingServer

    server = KillingServer()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def bucket(server: "KillingServer") -> str:
    """The URL of an empty bucket."""
    import s3fs

    s3fs.S3FileSystem().mkdir("outputs")
    return "s3://outputs"


def run(corpus: Path, out: str, **sections: object) -> RunSummary:
    return embed(corpus, out, config=Config.from_values({"model": "random:tiny", **sections}), runner="local")


def test_an_output_in_s3_is_made_resumed_and_verified_like_one_on_a_disk(
    corpus: Path, bucket: str, tmp_path: Path
) -> None:
    folder = OutputFolder(f"{bucket}/OUT")
    first = run(corpus, folder.uri)
    assert (first.num_errors, first.exit_code) == (2, 3)
    assert verify_output(folder).ok

    stems = folder.fragments(Kind.EMBEDDINGS)
    lost = read_table(folder, Kind.EMBEDDINGS, stems[0])
    folder.remove(folder.name(Kind.EMBEDDINGS, stems[0]))
    assert not verify_output(folder).ok
    assert run(corpus, folder.uri).num_requests == 1
    assert read_table(folder, Kind.EMBEDDINGS, stems[0]).equals(lost)
    assert run(corpus, folder.uri).num_requests == 0

    run(corpus, str(tmp_path / "OUT"))
    store, root = folder.store()
    name, _, key = root.partition("/")
    store.call_s3("put_object", Bucket=name, Key=f"{key}/embeddings/", Body=b"")  # as consoles make a folder
    assert "embeddings" in {
        path.rstrip("/").rpartition("/")[2] for path in store.ls(f"{root}/embeddings", refresh=True)
    }
    assert verify_output(folder).ok
    store.call_s3("delete_object", Bucket=name, Key=f"{key}/embeddings/")
    store.get(f"{root}/embeddings/", str(tmp_path / "copy" / "embeddings"), recursive=True)
    assert embeddings_of(tmp_path / "copy").equals(embeddings_of(tmp_path / "OUT"))
    assert LEASE not in {path.rpartition("/")[2] for path in store.ls(root, detail=False)}


# What a run does in this order; each kill but the last leaves more for the next run to find.
DRIVER_POINTS = (
    ("PUT", "/lease.json", True),
    ("PUT", "/plan/", True),
    ("PUT", "/errors/", False),
    ("PUT", "/embeddings/", True),
    ("DELETE", "/lease.json", False),
)


@pytest.mark.timeout(300)
def test_a_driver_killed_at_work_in_s3_is_taken_up_by_the_same_command_and_leaves_the_same_bytes(
    corpus: Path, server: "KillingServer", bucket: str
) -> None:
    whole, folder = OutputFolder(f"{bucket}/WHOLE"), OutputFolder(f"{bucket}/KILLED")
    embed_here(corpus, whole.uri)
    expected = stored_fragments(whole)
    for point in (*DRIVER_POINTS, None):
        before = stored_fragments(folder)
        server.asked.clear()
        with Command("embed", corpus, "--out", folder.uri, *SETTINGS, "--runner", "local") as command:
            if point is not None:
                server.aim(command.pid, point)
            ended = command.finish()
        assert ended.returncode == (-signal.SIGKILL if point else 3), (point, ended.stderr)
        found = stored_fragments(folder)
        assert found.items() <= expected.items()
        written = {path.removeprefix("/outputs/KILLED/") for method, path in server.asked if method == "PUT"}
        assert not written & before.keys()  # what was done is not done again
    assert found == expected
    assert verify_output(folder).ok
    store, root = folder.store()
    assert {path.rpartition(".")[2] for path in store.find(root)} == {"parquet", "json"}
    assert not [path for path in store.find(root) if "/." in path]


def stored_fragments(folder: OutputFolder) -> dict[str, bytes]:
    """Everything that a reader who lists `embeddings/` sees, by its path below the folder."""
    return {
        f"{Kind.EMBEDDINGS}/{name}": folder.open(f"{Kind.EMBEDDINGS}/{name}").read()
        for name in folder.entries(Kind.EMBEDDINGS)
    }


def test_a_commit_step_in_s3_killed_at_any_request_shows_both_kinds_of_reader_the_same_rows(
    corpus: Path, bucket: str
) -> None:
    folder = OutputFolder(f"{bucket}/COMPACT")
    run(corpus, folder.uri, output={"compact": True})
    assert manifest_table(folder).equals(fragments_table(folder))
    script = """
        import os, signal, sys
        import s3fs
        from pipeline.sink.compact import compact_output
        from pipeline.sink.output import Kind, OutputFolder
        from tests.sink.readers import fragments_table, manifest_table, rewrite
        folder = OutputFolder(sys.argv[1])
        stem = folder.fragments(Kind.EMBEDDINGS)[0]
        call_store = s3fs.S3FileSystem._call_s3
        num_kills = 0
        for turn, number in enumerate([2, 9, 16, 23, 26, 27, 28, 29, 30, 1000]):
            rewrite(folder, stem, ("none", "gzip")[turn % 2])
            child = os.fork()
            if not child:
                seen = 0
                async def killing(self, *arguments, **named):
                    global seen
                    seen += 1
                    if seen == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return await call_store(self, *arguments, **named)
                s3fs.S3FileSystem._call_s3 = killing
                compact_output(folder)
                os._exit(0)
            num_kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            assert manifest_table(folder).equals(fragments_table(folder)), number
        sys.stdout.write(f"{num_kills}")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), folder.uri]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
    report = verify_output(folder)
    assert (report.ok, report.num_table_rows, report.num_newer_requests) == (True, report.num_rows, 0)
    made = read_manifest(folder)
    run(corpus, folder.uri, output={"compact": True})
    assert read_manifest(folder) == made


def test_a_lance_dataset_in_s3_holds_the_rows_and_is_searched_there(corpus: Path, bucket: str) -> None:
    pytest.importorskip("lance", reason="the development extra brings pylance")
    folder = OutputFolder(f"{bucket}/LANCE")
    for _ in range(2):
        assert run(corpus, folder.uri, output={"compact": "lance"}).table == f"{bucket}/LANCE/embeddings.lance"
    report = verify_output(folder)
    assert (report.ok, report.num_lance_rows, report.num_newer_than_lance) == (True, report.num_rows, 0)
    rows = fragments_table(folder)
    assert lance_table(folder).equals(rows)
    query = {"column": "embedding", "q": rows["embedding"][3].values, "k": 1}
    [found] = open_dataset(folder).to_table(nearest=query, columns=["source_id"]).to_pylist()
    assert found["source_id"] == rows["source_id"][3].as_py()


def test_a_commit_to_lance_in_s3_killed_at_any_request_shows_the_rows_of_one_version() -> None:
    pytest.importorskip("lance", reason="the development extra brings pylance")
    command = [sys.executable, "-m", "tests.flow.lance_in_s3"]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = done.stdout.split()
    assert ends == [str(-signal.SIGKILL)] * len(ends)
    assert len(ends) > 5


def test_of_two_runs_in_s3_one_is_refused_and_a_stale_one_is_taken_over(bucket: str) -> None:
    folder = OutputFolder(f"{bucket}/LEASED")
    folder.create()
    with Lease(folder):
        with pytest.raises(OutputBusyError, match=str(os.getpid())), Lease(folder):
            pass
        # Both looked before either wrote: the put itself must refuse the second.
        with pytest.raises(OutputBusyError):
            Lease(folder)._create()
    stale = replace(Holder.this_process(), run_id="old", machine="far", heartbeat_at="2020-01-01T00:00:00+00:00")
    lease = Lease(folder)
    lease._holder = stale
    lease._create()
    with Lease(folder) as taken:
        taken.check()
