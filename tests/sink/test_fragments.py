import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.sink.atomic import remove_stale_temporaries, write_atomically
from pipeline.sink.fragments import count_rows, done_requests, read_table, write_fragment, write_table
from pipeline.sink.output import Kind, OutputFolder

from .factories import make_clip, make_embeddings, make_errors, make_failure, make_folder, make_rows

REPOSITORY = Path(__file__).resolve().parents[2]


def files_in(folder: OutputFolder) -> list[str]:
    assert folder.local is not None
    return sorted(str(path.relative_to(folder.local)) for path in folder.local.rglob("*") if path.is_file())


def test_a_request_is_done_when_its_embeddings_exist_even_without_rows(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert done_requests(folder) == set()
    write_table(folder, Kind.ERRORS, "r1", make_errors([make_failure("a")]))
    assert done_requests(folder) == set()
    write_fragment(folder, "r1", make_embeddings(), make_errors([make_failure("a")]))
    write_fragment(folder, "r2", make_embeddings(make_rows("r2", make_clip("b"), "clip")), make_errors())
    assert done_requests(folder) == {"r1", "r2"}
    assert files_in(folder) == ["embeddings/r1.parquet", "embeddings/r2.parquet", "errors/r1.parquet"]
    assert count_rows(folder, Kind.EMBEDDINGS, "r1") == 0
    assert count_rows(folder, Kind.ERRORS, "r1") == 1


def test_a_retry_overwrites_its_own_work_and_leaves_no_old_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_fragment(folder, "r1", make_embeddings(), make_errors([make_failure("a")]))
    rows = make_embeddings(make_rows("r1", make_clip("a"), "frame"))
    write_fragment(folder, "r1", rows, make_errors())
    assert files_in(folder) == ["embeddings/r1.parquet"]
    assert read_table(folder, Kind.EMBEDDINGS, "r1").equals(rows, check_metadata=True)


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = make_folder(tmp_path / name)
        write_fragment(folder, "r1", make_embeddings(make_rows("r1", make_clip("a"), "token")), make_errors())
        contents.append((tmp_path / name / "out" / "embeddings" / "r1.parquet").read_bytes())
    assert contents[0] == contents[1]


def test_rows_that_would_fill_a_large_row_group_are_split_into_several(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    dim, num_rows = 1 << 20, 40
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(dim * num_rows, np.float32)), dim)
    write_table(folder, Kind.EMBEDDINGS, "r1", pa.table({"embedding": vectors}))
    with folder.open("embeddings/r1.parquet") as file:
        assert pq.ParquetFile(file).num_row_groups == 3


def test_a_flipped_bit_in_a_page_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    vectors = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 64)})
    write_table(folder, Kind.EMBEDDINGS, "r1", table)
    path = tmp_path / "out" / "embeddings" / "r1.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises((OSError, pa.ArrowException)):
        read_table(folder, Kind.EMBEDDINGS, "r1")


def test_an_exception_while_writing_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (tmp_path / "out" / "run.json").write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"new")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_atomically(folder, "run.json", fail)
    assert files_in(folder) == ["run.json"]
    assert (tmp_path / "out" / "run.json").read_bytes() == b"old"


def test_a_writer_that_is_killed_leaves_no_visible_file_and_its_temporary_is_removed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    script = """
        import os, signal, sys
        from pipeline.sink.atomic import write_atomically
        from pipeline.sink.output import OutputFolder

        def write(file):
            file.write(b"x" * 100_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        write_atomically(OutputFolder(sys.argv[1]), "embeddings/r1.parquet", write)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), folder.uri]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    [left] = files_in(folder)
    assert left.endswith(".tmp")
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert done_requests(folder) == set()
    assert remove_stale_temporaries(folder) == 1
    assert files_in(folder) == []


def test_a_writer_that_is_killed_at_any_moment_leaves_only_whole_fragments(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    script = """
        import sys
        sys.path.insert(0, sys.argv[2])
        from factories_of_writer import table
        from pipeline.sink.fragments import write_table
        from pipeline.sink.output import Kind, OutputFolder

        print("ready", flush=True)
        for number in range(1_000_000):
            write_table(OutputFolder(sys.argv[1]), Kind.EMBEDDINGS, f"r{number % 7}", table(number))
    """
    (tmp_path / "factories_of_writer.py").write_text(
        "import numpy as np, pyarrow as pa\n"
        "def table(number):\n"
        "    values = np.random.default_rng(number).standard_normal(20_000)\n"
        "    return pa.table({'number': pa.array(np.full(20_000, number)), 'value': values})\n"
    )
    for delay_seconds in (0.0, 0.01, 0.05, 0.1):
        command = [sys.executable, "-c", textwrap.dedent(script), folder.uri, str(tmp_path)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(delay_seconds)
            writer.kill()
        for stem in done_requests(folder):
            numbers = read_table(folder, Kind.EMBEDDINGS, stem)["number"].unique().to_pylist()
            assert len(numbers) == 1
            assert numbers[0] % 7 == int(stem[1:])
    remove_stale_temporaries(folder)
    assert files_in(folder) == [f"embeddings/{stem}.parquet" for stem in sorted(done_requests(folder))]


def test_a_full_disk_is_an_output_error_that_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    table = pa.table({"bytes": [os.urandom(1000) for _ in range(1000)]})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file size limit fails a write where a full disk does, and needs no right to mount one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="no space left"):
            write_table(folder, Kind.EMBEDDINGS, "r1", table)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(folder) == []
    write_table(folder, Kind.EMBEDDINGS, "r1", table)
    assert done_requests(folder) == {"r1"}


def test_a_small_disk_that_fills_up_takes_the_fragment_once_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root; the file size limit above holds the rule")
    try:
        folder = OutputFolder(str(disk / "out"))
        folder.create()
        (disk / "ballast").write_bytes(b"\1" * 700_000)
        table = pa.table({"bytes": [os.urandom(1000) for _ in range(500)]})
        with pytest.raises(OutputError, match="free some"):
            write_table(folder, Kind.EMBEDDINGS, "r1", table)
        assert files_in(folder) == []
        (disk / "ballast").unlink()
        write_table(folder, Kind.EMBEDDINGS, "r1", table)
        assert read_table(folder, Kind.EMBEDDINGS, "r1").equals(table)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_is_gone_is_an_output_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"embeddings/r1\.parquet"):
        write_fragment(OutputFolder(str(tmp_path / "gone")), "r1", make_embeddings(), make_errors())
