import importlib.metadata
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import OutputBusyError, OutputError, UsageError
from pipeline.sink.compact import compact_output
from pipeline.sink.fragments import read_table, write_fragment
from pipeline.sink.lance_commit import commit_lance
from pipeline.sink.lance_table import BOOKS, DATASET, open_dataset, read_books, require_lance
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output

from .factories import Books, make_clip, make_embeddings, make_errors, make_folder, make_rows
from .readers import fragments_table, lance_table, put, rewrite

# Looked for and not imported: a process that is collecting tests for a Ray is still to fork.
pytestmark = pytest.mark.skipif(find_spec("lance") is None, reason="the development extra brings pylance")

REPOSITORY = Path(__file__).resolve().parents[2]
DIM = 8


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    made = make_folder(tmp_path)
    Books().write(made)
    return made


def data_files(folder: OutputFolder) -> set[str]:
    return set(folder.entries(f"{DATASET}/data"))


def only_discrepancy(folder: OutputFolder) -> str:
    report = verify_output(folder)
    assert not report.ok
    [sentence] = report.discrepancies
    return sentence


def add_random_rows(folder: OutputFolder, request_id: str, num_rows: int) -> pa.Table:
    rows = [make_rows(request_id, make_clip(f"{request_id}-{number}"), "clip")[0] for number in range(num_rows)]
    vectors = np.random.default_rng(num_rows).normal(size=(num_rows, DIM)).astype(np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        row["embedding"] = vector.tolist()
    table = make_embeddings(rows, DIM)
    write_fragment(folder, request_id, table, make_errors())
    return table


@pytest.mark.parametrize("level", ["clip", "frame", "token"])
def test_the_dataset_holds_the_rows_of_the_fragments_once_and_verify_says_so(tmp_path: Path, level: str) -> None:
    folder = make_folder(tmp_path)
    Books(level=level).write(folder)
    made = commit_lance(folder)
    assert made is not None
    assert (made.version, made.num_files) == (1, 1)
    assert made.uri == str(tmp_path / "out" / "embeddings.lance")
    assert lance_table(folder).equals(fragments_table(folder))
    report = verify_output(folder)
    assert report.ok
    assert (report.num_lance_rows, report.num_newer_than_lance) == (report.num_rows, 0)
    assert report.num_table_rows is None


def test_a_vector_search_finds_the_row_itself_with_and_without_an_index(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    table = add_random_rows(folder, "r1", 300)
    commit_lance(folder)

    def nearest(row: int, rows: pa.Table) -> str:
        query = {"column": "embedding", "q": rows["embedding"][row].values, "k": 1}
        [found] = open_dataset(folder).to_table(nearest=query, columns=["clip_id"]).to_pylist()
        return found["clip_id"]

    assert [nearest(row, table) for row in (0, 7, 299)] == table["clip_id"].take([0, 7, 299]).to_pylist()
    open_dataset(folder).create_index("embedding", "IVF_FLAT", num_partitions=2)
    added = add_random_rows(folder, "r2", 20)
    commit_lance(folder, part_bytes=1)
    assert [nearest(row, table) for row in (0, 7, 299)] == table["clip_id"].take([0, 7, 299]).to_pylist()
    assert nearest(5, added) == added["clip_id"][5].as_py()
    assert [index.name for index in open_dataset(folder).describe_indices()] == ["embedding_idx"]


def test_rows_of_half_precision_are_searched_alike(folder: OutputFolder, tmp_path: Path) -> None:
    half = OutputFolder(str(tmp_path / "half"))
    half.create()
    table = fragments_table(folder)
    place = table.schema.get_field_index("embedding")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float16)), 4)
    write_fragment(half, "r1", table.set_column(place, "embedding", vectors), make_errors())
    commit_lance(half)
    query = {"column": "embedding", "q": np.arange(4, 8, dtype=np.float16), "k": 1}
    [found] = open_dataset(half).to_table(nearest=query).to_pylist()
    assert (found["embedding"], found["_distance"]) == ([4, 5, 6, 7], 0)
    assert lance_table(half)["embedding"].type == pa.list_(pa.float16(), 4)


def test_a_dataset_that_is_current_is_left_alone(folder: OutputFolder) -> None:
    made = commit_lance(folder)
    files = data_files(folder)
    assert commit_lance(folder) == made
    assert data_files(folder) == files


def test_what_is_new_is_added_and_files_that_stay_are_not_written_again(folder: OutputFolder) -> None:
    commit_lance(folder, part_bytes=1)
    before = data_files(folder)
    write_fragment(folder, "r3", make_embeddings(make_rows("r3", make_clip("c"), "clip")), make_errors())
    made = commit_lance(folder, part_bytes=1)
    assert made is not None
    assert (made.version, made.num_files) == (2, 3)
    assert before < data_files(folder)
    assert lance_table(folder).equals(fragments_table(folder))


def test_small_files_are_joined_with_what_is_new(folder: OutputFolder) -> None:
    for number in range(4):
        rows = make_rows(f"n{number}", make_clip(f"n{number}"), "clip")
        write_fragment(folder, f"n{number}", make_embeddings(rows), make_errors())
        made = commit_lance(folder)
        assert made is not None
        assert made.num_files == 1
    assert lance_table(folder).equals(fragments_table(folder))


def test_a_fragment_written_since_is_newer_and_takes_the_place_of_its_old_rows(folder: OutputFolder) -> None:
    commit_lance(folder, part_bytes=1)
    rows = make_rows("r2", make_clip("b"), "clip")
    rows[0]["embedding"] = [5.0, 5.0, 5.0, 5.0]
    write_fragment(folder, "r2", make_embeddings(rows), make_errors())
    report = verify_output(folder)
    assert (report.ok, report.num_newer_than_lance) == (True, 1)
    commit_lance(folder, part_bytes=1)
    assert lance_table(folder).equals(fragments_table(folder))
    assert verify_output(folder).num_newer_than_lance == 0


def test_the_version_before_stays_for_its_readers_until_the_next_one(folder: OutputFolder) -> None:
    for compression in ("none", "gzip", "zstd"):
        rewrite(folder, "r2", compression)
        commit_lance(folder)
    dataset = open_dataset(folder)
    assert [version["version"] for version in dataset.versions()] == [2, 3]
    assert dataset.checkout_version(2).count_rows() == dataset.count_rows()
    assert len(data_files(folder)) == 2


def test_what_a_killed_commit_left_goes_with_the_next(folder: OutputFolder) -> None:
    commit_lance(folder)
    from lance import LanceFragment

    LanceFragment.create(str(folder.local / DATASET), fragments_table(folder))
    assert len(data_files(folder)) == 2
    commit_lance(folder)
    assert len(data_files(folder)) == 1


def test_requests_without_rows_are_no_part_of_it_and_nothing_is_newer(folder: OutputFolder) -> None:
    for stem in folder.fragments(Kind.EMBEDDINGS):
        folder.remove(folder.name(Kind.EMBEDDINGS, stem))
        write_fragment(folder, stem, make_embeddings(), make_errors())
    for _ in range(2):
        made = commit_lance(folder)
        assert made is not None
        assert (made.version, made.num_rows) == (1, 0)
    assert verify_output(folder).num_newer_than_lance == 0
    rows = make_rows("r2", make_clip("b"), "clip")
    write_fragment(folder, "r2", make_embeddings(rows), make_errors())
    commit_lance(folder)
    assert lance_table(folder).num_rows == 1


def test_an_output_without_a_request_makes_no_dataset(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert commit_lance(folder) is None
    assert open_dataset(folder) is None


def test_a_lost_lease_keeps_the_version_that_was_there(folder: OutputFolder) -> None:
    def lost() -> None:
        raise OutputBusyError("taken over")

    commit_lance(folder)
    old = lance_table(folder)
    rewrite(folder, "r2", "gzip")
    with pytest.raises(OutputBusyError):
        commit_lance(folder, require_held=lost)
    assert lance_table(folder).equals(old)
    report = verify_output(folder)
    assert (report.ok, report.num_newer_than_lance) == (True, 1)


@pytest.mark.parametrize("part_bytes", [1, 1 << 30])
def test_of_two_commits_at_once_lance_refuses_the_second(folder: OutputFolder, part_bytes: int) -> None:
    def other_run() -> None:
        commit_lance(folder, part_bytes)

    commit_lance(folder, part_bytes)
    write_fragment(folder, "r3", make_embeddings(make_rows("r3", make_clip("c"), "clip")), make_errors())
    with pytest.raises(OutputError, match="cannot be committed"):
        commit_lance(folder, part_bytes, require_held=other_run)
    assert lance_table(folder).equals(fragments_table(folder))
    commit_lance(folder, part_bytes)
    assert lance_table(folder).equals(fragments_table(folder))


def test_an_index_that_is_built_meanwhile_is_no_conflict(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    add_random_rows(folder, "r1", 300)
    commit_lance(folder, part_bytes=1)
    add_random_rows(folder, "r2", 20)
    turns = iter([True])

    def build_once() -> None:
        if next(turns, False):
            open_dataset(folder).create_index("embedding", "IVF_FLAT", num_partitions=2)

    made = commit_lance(folder, part_bytes=1, require_held=build_once)
    assert made is not None
    assert (made.version, made.num_rows) == (3, 320)
    assert open_dataset(folder).has_index
    assert lance_table(folder).equals(fragments_table(folder))


def test_of_two_first_commits_at_once_the_rows_are_there_once(folder: OutputFolder) -> None:
    def other_run() -> None:
        commit_lance(folder)

    with pytest.raises(OutputError, match="version 1 is there, expected None"):
        commit_lance(folder, require_held=other_run)
    assert lance_table(folder).equals(fragments_table(folder))


def test_a_disk_without_room_is_said_in_words_and_the_next_commit_goes_on(folder: OutputFolder) -> None:
    commit_lance(folder)
    old = lance_table(folder)
    rewrite(folder, "r2", "gzip")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"embeddings\.lance: cannot be written.*too large"):
            commit_lance(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lance_table(folder).equals(old)
    commit_lance(folder)
    assert verify_output(folder).num_newer_than_lance == 0
    assert len(data_files(folder)) == 2


def test_a_damaged_fragment_is_named_and_keeps_the_version_that_was_there(folder: OutputFolder) -> None:
    commit_lance(folder)
    old = lance_table(folder)
    for damage in (b"rot", (folder.local / "embeddings" / "r2.parquet").read_bytes().replace(b"\x28\xb5\x2f", b"xxx")):
        put(folder, "embeddings/r2.parquet", damage)
        with pytest.raises(OutputError, match=r"r2\.parquet.*cannot be read.*patchwire verify"):
            commit_lance(folder)
    assert lance_table(folder).equals(old)


def test_a_data_file_that_is_damaged_is_found_and_written_again(folder: OutputFolder) -> None:
    commit_lance(folder, part_bytes=1)
    [name, _] = sorted(data_files(folder))
    path = folder.local / DATASET / "data" / name
    good = path.read_bytes()
    one_vector = struct.pack("<4f", 0, 1, 2, 3)
    assert one_vector in good
    for damage in (b"", b"garbage", good[:-9], good.replace(one_vector, struct.pack("<4f", 0, 1, 2, 4))):
        path.write_bytes(damage)
        assert name in only_discrepancy(folder)
    path.unlink()
    assert name in only_discrepancy(folder)
    commit_lance(folder, part_bytes=1)
    assert verify_output(folder).ok
    assert lance_table(folder).equals(fragments_table(folder))


def test_rows_deleted_or_added_by_others_are_found_and_set_right(folder: OutputFolder) -> None:
    from lance import write_dataset

    commit_lance(folder)
    open_dataset(folder).delete("clip_id = 'clip-b'")
    assert "'r2' differ" in only_discrepancy(folder)
    commit_lance(folder)
    assert verify_output(folder).ok
    write_dataset(fragments_table(folder).slice(0, 1), folder.local / DATASET, mode="append")
    assert "not written by Patchwire" in only_discrepancy(folder)
    commit_lance(folder)
    assert verify_output(folder).ok
    assert lance_table(folder).equals(fragments_table(folder))


def test_a_fragment_that_is_gone_is_found_by_the_dataset(folder: OutputFolder) -> None:
    commit_lance(folder)
    folder.remove(folder.name(Kind.EMBEDDINGS, "r2"))
    assert any("has no fragment" in sentence for sentence in verify_output(folder).discrepancies)


@pytest.mark.parametrize("name", [BOOKS, f"{DATASET}/_versions"])
def test_books_or_versions_that_are_not_ours_are_an_error_that_names_them(folder: OutputFolder, name: str) -> None:
    commit_lance(folder)
    if name == BOOKS:
        put(folder, BOOKS, b'{"files": []}')
    else:
        for version in (folder.local / name).glob("*.manifest"):
            version.write_bytes(b"garbage")
    with pytest.raises(OutputError, match="remove it"):
        commit_lance(folder)
    assert DATASET in only_discrepancy(folder)


def test_a_compacted_table_and_a_dataset_stand_beside_each_other(folder: OutputFolder) -> None:
    compact_output(folder)
    commit_lance(folder)
    report = verify_output(folder)
    assert (report.ok, report.num_table_rows, report.num_lance_rows) == (True, report.num_rows, report.num_rows)


def test_a_place_that_lance_cannot_write_to_or_no_pylance_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri in ("memory://bucket/out", str(tmp_path / "two\nlines"), os.fsdecode(os.fsencode(tmp_path) + b"/\xff")):
        with pytest.raises(UsageError, match="Lance"):
            require_lance(OutputFolder(uri))

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UsageError, match="pip install 'pylance>=14,<15'"):
        require_lance(OutputFolder(str(tmp_path)))


@pytest.mark.parametrize("name", ["a b", "50%", "a%20b", "x?y#z", "ä☃", "-x", "[x]*", "..twice/../dots"])
def test_a_dataset_lies_under_any_other_name(tmp_path: Path, name: str) -> None:
    folder = OutputFolder(str(tmp_path / name))
    folder.create()
    Books().write(folder)
    commit_lance(folder)
    rewrite(folder, "r2", "gzip")
    commit_lance(folder)
    assert verify_output(folder).ok
    assert (tmp_path / name / DATASET).is_dir()


def test_nothing_loads_lance_before_it_is_needed() -> None:
    modules = (
        "pipeline.media.template",
        "actors.write",
        "pipeline.flow.run",
        "pipeline.flow.cluster",
        "pipeline.cli.app",
    )
    script = f"""
        import importlib, sys
        for name in {modules}:
            importlib.import_module(name)
        sys.exit("lance" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=REPOSITORY, check=False).returncode == 0


def test_killed_at_any_moment_a_reader_sees_the_rows_of_one_version_and_the_next_commit_is_the_new_one(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path)
    Books().write(folder)
    commit_lance(folder)
    script = """
        import os, signal, sys, time
        import pandas, pyarrow.dataset
        from pipeline.sink.lance_commit import commit_lance
        from pipeline.sink.lance_table import open_dataset
        from pipeline.sink.output import OutputFolder
        from pipeline.sink.verify import verify_output
        from tests.sink.readers import fragments_table, lance_table, rewrite
        folder = OutputFolder(sys.argv[1])

        def forked(work, seconds=None):
            child = os.fork()
            if not child:
                work()
                os._exit(0)
            if seconds is not None:
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        def check():
            report = verify_output(folder)
            assert report.ok and report.num_lance_rows == report.num_rows, report
            assert lance_table(folder).equals(fragments_table(folder))

        def commit():
            commit_lance(folder, part_bytes=1)

        def seconds_of_a_commit(compression):
            rewrite(folder, "r2", compression)
            started = time.monotonic()
            assert forked(commit) == 0
            return time.monotonic() - started

        whole = min(seconds_of_a_commit(name) for name in ("none", "gzip", "none"))  # the first one is slower
        for number in range(16):
            rewrite(folder, "r2", ("gzip", "none")[number % 2])
            sys.stdout.write(f"{forked(commit, whole * number / 12)}\\n")
            assert forked(check) == 0
        assert forked(commit) == forked(check) == 0
    """
    command = [sys.executable, "-c", textwrap.dedent(script), folder.uri]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count(str(-signal.SIGKILL)) > 3
    assert lance_table(folder).equals(fragments_table(folder))
    assert len(data_files(folder)) <= 2 * len(read_books(folder))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, whoever has set another in this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_does_not_wait_until_everything_is_copied(tmp_path: Path) -> None:
    num_requests = 60
    reads = 0

    class Interrupting(OutputFolder):
        """Presses Ctrl-C at the first read that Lance asks for, which come slowly from then on."""

        def open(self, name: str) -> BinaryIO:
            nonlocal reads
            if threading.current_thread() is not threading.main_thread():
                reads += 1
                time.sleep(0.02)
                if reads == 1:
                    os.kill(os.getpid(), signal.SIGINT)
            return super().open(name)

    folder = Interrupting(make_folder(tmp_path).uri)
    for number in range(num_requests):
        rows = make_rows(f"r{number}", make_clip(f"{number}"), "clip")
        write_fragment(folder, f"r{number}", make_embeddings(rows), make_errors())
    with pytest.raises(KeyboardInterrupt):
        commit_lance(folder)
    assert 0 < reads < num_requests
    assert open_dataset(folder) is None
    commit_lance(OutputFolder(folder.uri))
    assert lance_table(folder).num_rows == num_requests
    assert len(data_files(folder)) == 1


def test_the_rows_of_one_request_are_what_its_fragment_holds(folder: OutputFolder) -> None:
    commit_lance(folder)
    found = open_dataset(folder).to_table(filter="request_id = 'r1'")
    assert found.equals(read_table(folder, Kind.EMBEDDINGS, "r1"))
