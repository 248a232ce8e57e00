import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from pipeline.errors import OutputBusyError, OutputError
from pipeline.sink.compact import MANIFEST, Manifest, compact_output, read_manifest
from pipeline.sink.fragments import write_fragment
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.verify import verify_output

from .factories import Books, make_clip, make_embeddings, make_errors, make_folder, make_rows
from .readers import fragments_table, manifest_table, put, rewrite

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    if request.param == "disk":
        made = make_folder(tmp_path)
    else:
        import fsspec

        fsspec.filesystem("memory").store.clear()
        made = OutputFolder("memory://bucket/out")
        made.create()
    Books().write(made)
    return made


def generations(folder: OutputFolder) -> set[str]:
    return set(folder.entries("table")) - {"manifest.json"}


def test_the_table_holds_the_rows_of_the_fragments_once(folder: OutputFolder) -> None:
    manifest = compact_output(folder)
    assert len(manifest.parts) == 1
    assert manifest_table(folder).equals(fragments_table(folder))
    report = verify_output(folder)
    assert report.ok
    assert (report.num_table_rows, report.num_newer_requests) == (report.num_rows, 0)


def test_parts_are_cut_at_their_size_and_hold_whole_requests(folder: OutputFolder) -> None:
    manifest = compact_output(folder, part_bytes=1)
    assert [len(part.fragments) for part in manifest.parts] == [1, 1]
    assert manifest_table(folder).equals(fragments_table(folder))
    assert verify_output(folder).ok


def test_a_reader_that_lists_a_folder_sees_no_row_twice(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    Books().write(folder)
    before = ds.dataset(tmp_path / "out" / "embeddings", format="parquet").to_table()
    for compression in ("none", "gzip", "zstd"):
        rewrite(folder, "r2", compression)
        manifest = compact_output(folder)
    assert ds.dataset(tmp_path / "out" / "embeddings", format="parquet").to_table().equals(before)
    listed = ds.dataset(tmp_path / "out" / "table" / manifest.generation, format="parquet").to_table()
    assert sorted(listed["clip_id"].to_pylist()) == sorted(before["clip_id"].to_pylist())


def test_the_generation_before_stays_for_its_readers_until_the_next_one(folder: OutputFolder) -> None:
    made = []
    for compression in ("none", "gzip", "zstd"):
        rewrite(folder, "r2", compression)
        made.append(compact_output(folder).generation)
    assert generations(folder) == set(made[1:])


def test_a_table_that_is_current_is_left_alone_and_what_a_killed_compaction_left_goes(folder: OutputFolder) -> None:
    first = compact_output(folder)
    rewrite(folder, "r2", "gzip")
    second = compact_output(folder)
    folder.make("table/0123456789abcdef")
    put(folder, "table/0123456789abcdef/part-00000.parquet", b"half")
    assert compact_output(folder) == second
    assert generations(folder) == {first.generation, second.generation}


def test_a_table_that_lost_a_part_or_the_end_of_one_is_made_again(folder: OutputFolder) -> None:
    (part,) = compact_output(folder).parts
    put(folder, part.name, b"PAR1")
    (part,) = compact_output(folder).parts
    assert verify_output(folder).ok
    folder.remove(part.name)
    compact_output(folder)
    assert verify_output(folder).ok
    assert manifest_table(folder).equals(fragments_table(folder))


def test_a_lost_lease_keeps_the_old_table(folder: OutputFolder) -> None:
    def lost() -> None:
        raise OutputBusyError("taken over")

    with pytest.raises(OutputBusyError):
        compact_output(folder, require_held=lost)
    assert read_manifest(folder) is None


def test_a_fragment_written_since_is_newer_and_no_discrepancy(folder: OutputFolder) -> None:
    rows = make_embeddings(make_rows("r2", make_clip("b"), "clip"))
    folder.remove(folder.name(Kind.EMBEDDINGS, "r2"))
    compact_output(folder)
    write_fragment(folder, "r2", rows, make_errors())
    report = verify_output(folder)
    assert report.ok
    assert report.num_newer_requests == 1
    compact_output(folder)
    assert verify_output(folder).num_newer_requests == 0


def test_a_part_that_is_damaged_missing_or_of_other_rows_is_found(folder: OutputFolder) -> None:
    manifest = compact_output(folder, part_bytes=1)
    first, second = (part.name for part in manifest.parts)
    store_copy = {}
    for name in (first, second):
        with folder.open(name) as file:
            store_copy[name] = file.read()
    put(folder, second, store_copy[first])
    assert any("differ" in sentence for sentence in verify_output(folder).discrepancies)
    put(folder, second, store_copy[second][:100])
    assert any("cannot be read" in sentence for sentence in verify_output(folder).discrepancies)
    folder.remove(second)
    assert any(second in sentence for sentence in verify_output(folder).discrepancies)
    put(folder, second, store_copy[second])
    assert verify_output(folder).ok


def test_a_fragment_that_is_gone_is_found_by_the_table(folder: OutputFolder) -> None:
    compact_output(folder)
    folder.remove(folder.name(Kind.EMBEDDINGS, "r2"))
    assert any("has no fragment" in sentence for sentence in verify_output(folder).discrepancies)


def test_a_damaged_fragment_keeps_the_old_table(folder: OutputFolder) -> None:
    old = compact_output(folder)
    put(folder, "embeddings/r2.parquet", b"rot")
    with pytest.raises(OutputError, match=r"r2\.parquet.*cannot be read"):
        compact_output(folder)
    assert read_manifest(folder) == old


def test_a_manifest_of_another_kind_is_an_error_that_names_it(folder: OutputFolder) -> None:
    compact_output(folder)
    put(folder, MANIFEST, b'{"files": []}')
    with pytest.raises(OutputError, match="manifest"):
        read_manifest(folder)
    assert not verify_output(folder).ok


def test_a_manifest_survives_its_json(folder: OutputFolder) -> None:
    manifest = compact_output(folder)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_killed_at_any_point_both_kinds_of_reader_see_the_same_rows(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    Books().write(folder)
    compact_output(folder)
    script = """
        import os, signal, sys
        from pipeline.sink.compact import compact_output
        from pipeline.sink.output import OutputFolder
        from pipeline.sink.verify import verify_output
        from tests.sink.readers import fragments_table, manifest_table, rewrite
        folder = OutputFolder(sys.argv[1])
        events = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
        for number in range(1, 60):
            rewrite(folder, "r2", ("none", "gzip")[number % 2])
            child = os.fork()
            if not child:
                seen = 0
                def hook(event, arguments):
                    global seen
                    if event in events and sys.argv[1] in str(arguments[0]):
                        seen += 1
                        if seen == number:
                            os.kill(os.getpid(), signal.SIGKILL)
                sys.addaudithook(hook)
                compact_output(folder, part_bytes=1)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            report = verify_output(folder)
            assert report.ok and report.num_table_rows == report.num_rows, (number, report)
            assert manifest_table(folder).equals(fragments_table(folder)), number
            sys.stdout.write(f"{status}\\n")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), folder.uri]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = done.stdout.split()
    assert ends.count("-9") > 15
    assert ends[-1] == "0"
    rewrite(folder, "r2", "zstd")
    compact_output(folder)
    assert len(generations(folder)) == 2
