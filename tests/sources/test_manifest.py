import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ErrorCode, UsageError
from pipeline.sources.manifest import read_manifest
from tests.containers import write_wrong_count
from tests.faults.processes import REPOSITORY

from .factories import list_with, make_file, only_failure, uris_of

SUFFIXES = [".csv", ".jsonl", ".ndjson", ".parquet"]
Row = dict[str, object]


def write_manifest(path: Path, rows: list[Row]) -> Path:
    names = list(rows[0])
    if path.suffix == ".csv":
        cell = {None: ""}
        lines = [[f'"{cell.get(row[name], row[name])}"' for name in names] for row in rows]
        path.write_text("\n".join(",".join(line) for line in [names, *lines]) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows_and_ignores_other_columns(tmp_path: Path, suffix: str) -> None:
    for name in ("b.mp4", "line\nbreak \N{GRINNING FACE}.mp4"):
        make_file(tmp_path / "v" / name)
    rows: list[Row] = [
        {"uri": "v/line\nbreak \N{GRINNING FACE}.mp4", "label": "NA", "start_seconds": None, "end_seconds": 2.5},
        {"uri": "v/b.mp4", "label": "x", "start_seconds": 1.0, "end_seconds": 2.0},
        {"uri": "v/b.mp4", "label": "y", "start_seconds": 0.5, "end_seconds": None},
        {"uri": "v/b.mp4", "label": "z", "start_seconds": 1.0, "end_seconds": 2.0},
    ]
    listing = list_with(write_manifest(tmp_path / f"m{suffix}", rows))
    assert [(item.uri, item.start_seconds, item.end_seconds) for item in listing.items] == [
        (f"{tmp_path}/v/b.mp4", 0.5, None),
        (f"{tmp_path}/v/b.mp4", 1.0, 2.0),
        (f"{tmp_path}/v/line\nbreak \N{GRINNING FACE}.mp4", None, 2.5),
    ]
    assert not listing.failures


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_named_table_without_a_uri_column_is_wrong_usage(tmp_path: Path, suffix: str) -> None:
    path = write_manifest(tmp_path / f"m{suffix}", [{"path": "a.mp4", "n": 1}])
    with pytest.raises(UsageError, match=r"`uri` column"):
        list_with(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_manifest_that_is_damaged_or_empty_is_wrong_usage_that_names_it(tmp_path: Path, suffix: str) -> None:
    for content in (b"", b"\xff\x00\xfe{\n\xff"):
        with pytest.raises(UsageError, match="manifest"):
            list_with(make_file(tmp_path / f"m{suffix}", content))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("start", "end", "what"),
    [
        (-1.0, None, "start_seconds: expected"),
        (None, -0.5, "end_seconds: expected"),
        (2.0, 2.0, "start_seconds < end_seconds"),
        (3.0, 2.0, "start_seconds < end_seconds"),
        (math.inf, None, "start_seconds: expected"),
        (None, math.nan, "end_seconds: expected"),
    ],
)
def test_a_bad_span_is_wrong_usage_that_names_file_and_row(
    tmp_path: Path, suffix: str, start: float | None, end: float | None, what: str
) -> None:
    make_file(tmp_path / "a.mp4")
    rows: list[Row] = [
        {"uri": "a.mp4", "start_seconds": 0.0, "end_seconds": 1.0},
        {"uri": "a.mp4", "start_seconds": start, "end_seconds": end},
    ]
    path = write_manifest(tmp_path / f"m{suffix}", rows)
    with pytest.raises(UsageError, match=what) as caught:
        list_with(path)
    assert str(path) in str(caught.value)
    assert "row 2" in str(caught.value)


def test_a_cell_that_is_no_number_or_no_path_is_wrong_usage_that_names_the_row(tmp_path: Path) -> None:
    make_file(tmp_path / "a.mp4")
    for text, what in (("uri,start_seconds\na.mp4,ten\n", "'ten'"), ("uri,start_seconds\n,1\n", "row 1: uri")):
        with pytest.raises(UsageError, match=what):
            list_with(make_file(tmp_path / "m.csv", text.encode()))


def test_a_table_found_in_a_folder_or_by_a_glob_is_a_plain_file(tmp_path: Path) -> None:
    path = make_file(tmp_path / "s" / "m.csv", b"uri\nmissing.mp4\n")
    assert uris_of(list_with(tmp_path)) == uris_of(list_with(tmp_path / "s" / "*.csv")) == [str(path)]


def test_a_row_whose_file_is_missing_or_a_folder_fails_and_the_rest_is_listed(tmp_path: Path) -> None:
    good = make_file(tmp_path / "s" / "good.mp4")
    listing = list_with(make_file(tmp_path / "m.csv", b"uri\ns/good.mp4\nmissing.mp4\ns\n"))
    assert uris_of(listing) == [str(good)]
    assert [(failure.uri, failure.code) for failure in listing.failures] == [
        (f"{tmp_path}/missing.mp4", ErrorCode.UNREADABLE),
        (f"{tmp_path}/s", ErrorCode.NOT_A_FILE),
    ]


@pytest.mark.parametrize("form", ["../out/x.mp4", "s/../../out/x.mp4", "link.mp4", "door/x.mp4"])
def test_a_relative_path_that_leaves_the_manifests_folder_fails_unless_it_may(tmp_path: Path, form: str) -> None:
    out = make_file(tmp_path / "out" / "x.mp4").parent
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.mp4").symlink_to(out / "x.mp4")
    (root / "door").symlink_to(out)
    path = make_file(root / "m.csv", f"uri\n{form.format(out=out)}\n".encode())
    failure = only_failure(list_with(path))
    assert failure.code is ErrorCode.OUTSIDE_ROOT
    assert "follow_outside=true" in failure.message
    assert len(list_with(path, follow_outside=True).items) == 1


def test_absolute_and_file_paths_are_taken_as_they_stand_wherever_they_lead(tmp_path: Path) -> None:
    path = make_file(tmp_path / "s" / "a.mp4")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    odd = os.fsencode(tmp_path) + b"/\xff.mp4"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    rows = f"uri\n{path}\nfile://{path}\nfile://{tmp_path}/%FF.mp4\n{tmp_path}/s/../s/a.mp4\n"
    listing = list_with(make_file(elsewhere / "m.csv", rows.encode()))
    assert len(listing.items) == 2
    assert not listing.failures


@pytest.mark.parametrize("url", ["simplecache::file:///etc/passwd", "local:///etc/passwd", "zip://x::memory://a"])
def test_a_url_that_could_read_local_files_does_not_pass_a_manifest(tmp_path: Path, url: str) -> None:
    path = make_file(tmp_path / "m.csv", f"uri\n{url}\n".encode())
    assert only_failure(list_with(path)).code is ErrorCode.OUTSIDE_ROOT


def test_a_named_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.csv")
    assert only_failure(list_with(tmp_path / "m.csv")).code is ErrorCode.NOT_A_FILE


def _many_columns(folder: Path) -> Path:
    others = b"," * 490_000
    return make_file(folder / "m.csv", b"uri" + others.replace(b",", b",x") + b"\n" + b"/no.mp4" + others + b"\n")


def _repeated(folder: Path, text: str, count: int) -> Path:
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"uri": rows}), folder / "m.parquet", compression="zstd", store_schema=False)
    return folder / "m.parquet"


def _large_rows(folder: Path) -> Path:
    return _repeated(folder, "a" * 1_000_000, 20_000)


def _many_rows(folder: Path) -> Path:
    return _repeated(folder, "/no.mp4", 6_000_000)


def _deep_rows(folder: Path) -> Path:
    return make_file(folder / "m.jsonl", b'{"uri":"/no.mp4","x":' + b"[" * 8_000_000 + b"]" * 8_000_000 + b"}\n")


def _prefixed_rows(folder: Path) -> Path:
    """Each text is the whole of the one before it: 20 GB as they are read."""
    with pq.ParquetWriter(
        folder / "m.parquet",
        pa.schema({"uri": pa.string()}),
        use_dictionary=False,
        column_encoding={"uri": "DELTA_BYTE_ARRAY"},
        compression="zstd",
    ) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"uri": ["a" * 1_000_000] * 1000}))
    return folder / "m.parquet"


def _wrong_count(folder: Path) -> Path:
    return write_wrong_count(folder / "m.parquet", pa.string(), "uri", "DELTA_BYTE_ARRAY")


def _wrong_count_behind_a_footer_that_says_plain(folder: Path) -> Path:
    """What is read is what the page's header says, so the footer is free to say anything."""
    path = _wrong_count(folder)
    data = path.read_bytes()
    encodings = b"\x19\x25\x06\x0e"  # a list of two numbers, RLE and DELTA_BYTE_ARRAY
    assert data.count(encodings) == 1
    path.write_bytes(data.replace(encodings, b"\x19\x25\x06\x00"))
    assert pq.read_metadata(path).row_group(0).column(0).encodings == ("RLE", "PLAIN")
    return path


def _large_pages(folder: Path) -> Path:
    """Texts of 128 MB in pages of their own, of which one batch would hold 16."""
    path = folder / "m.parquet"
    options = {"use_dictionary": False, "compression": "zstd", "write_statistics": False}
    pq.write_table(pa.table({"uri": ["a" * (128 << 20)] * 16}), path, write_batch_size=1, **options)
    return path


@pytest.mark.parametrize(
    ("make", "most_bytes", "says"),
    [
        (_many_columns, 2 << 20, "1 rows"),
        (_large_rows, 1 << 10, "at most 5000000 rows, and 1073741824 bytes of text in them, got 4096 and 4096000000"),
        (_many_rows, 1 << 20, "at most 5000000 rows"),
        (_deep_rows, 17 << 20, "1 rows"),
        (_prefixed_rows, 64 << 10, "uri: expected text with dictionaries or plain"),
        (
            _wrong_count,
            8 << 10,
            "got DELTA_BYTE_ARRAY, where a few bytes can stand for gigabytes",
        ),
        (_wrong_count_behind_a_footer_that_says_plain, 8 << 10, "got DELTA_BYTE_ARRAY"),
        (_large_pages, 1 << 20, "uri: expected pages of at most 1233741824 bytes in all, inflated, got 1342"),
    ],
)
def test_a_small_manifest_that_stands_for_more_than_there_is_memory_takes_little_of_it(
    tmp_path: Path, make, most_bytes: int, says: str
) -> None:
    manifest = make(tmp_path)
    assert manifest.stat().st_size < most_bytes
    code = """
        import resource, sys
        from pipeline.errors import UsageError
        from pipeline.sources.manifest import read_manifest
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open(sys.argv[1], "rb") as file:
            try:
                print(len(read_manifest(file, sys.argv[1])), "rows")
            except UsageError as error:
                print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(manifest)]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    answer, mebibytes = done.stdout.splitlines()
    assert says in answer
    assert int(mebibytes) < 300


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_text_in_a_delta_encoding_is_wrong_usage_that_says_what_to_do(tmp_path: Path, encoding: str) -> None:
    manifest, other = tmp_path / "m.parquet", {"use_dictionary": False, "column_encoding": {"uri": encoding}}
    pq.write_table(pa.table({"uri": ["a.mp4"]}), manifest, **other)
    with pytest.raises(UsageError, match=rf"m\.parquet'.*uri: expected text.*got {encoding}.*write the table anew"):
        list_with(manifest)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "lz4", "brotli"])
def test_what_parquet_writers_write_unless_told_otherwise_is_read(
    tmp_path: Path, version: str, compression: str
) -> None:
    """More texts than fit a dictionary, so that the rest is plain; numbers in an encoding of their own."""
    count = 40_000
    uris = [f"/data/some/folder/with/a/long/name/{number:08d}.mp4" for number in range(count)]
    table = pa.table({"uri": uris, "start_seconds": [*([None] * 10), *map(float, range(count - 10))]})
    options = {"compression": compression, "data_page_version": version, "row_group_size": 30_000}
    pq.write_table(table, tmp_path / "m.parquet", use_dictionary=["uri"], **options)
    with (tmp_path / "m.parquet").open("rb") as file:
        rows = read_manifest(file, "m.parquet")
    assert [row.uri for row in rows] == uris
    assert (rows[9].start_seconds, rows[-1].start_seconds) == (None, count - 11)


def test_a_column_of_lists_is_refused_before_it_is_read(tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": [["a.mp4"] * 3]}), manifest)
    with pytest.raises(UsageError, match=r"m\.parquet'.*uri: expected text or numbers, got list"):
        list_with(manifest)
