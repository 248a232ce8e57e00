"""The commands for what went wrong: retry and compact, as a person runs them."""

import json
from pathlib import Path

import pytest

from tests.command import patchwire
from tests.media_factory import make_image

LOCAL = ("--runner", "local")


def test_a_failed_file_is_done_again_with_another_limit_and_the_table_is_compacted(tmp_path: Path) -> None:
    media, out = tmp_path / "media", tmp_path / "OUT"
    media.mkdir()
    make_image(media / "small.png")
    make_image(media / "large.png", width=400, height=300)
    narrow = ("--set", "limits.max_image_pixels=10000")
    first = patchwire("embed", media, "--out", out, "--model", "random:tiny", *narrow, *LOCAL)
    assert first.returncode == 3

    errors = patchwire("errors", out)
    assert "limit_exceeded: 1" in errors.stdout
    assert "limits.max_image_pixels is 10000" in errors.stdout
    assert f"next:  patchwire retry {out}" in errors.stdout

    again = patchwire("retry", out, "--set", "limits.max_image_pixels=1000000", *LOCAL)
    assert again.returncode == 0, again.stderr
    assert "1 new rows, 0 errors" in again.stdout

    compacted = patchwire("compact", out)
    assert compacted.returncode == 0, compacted.stderr
    assert "2 rows of 2 requests in 1 files" in compacted.stdout
    report = json.loads(patchwire("verify", out, "--json").stdout)
    assert (report["ok"], report["num_table_rows"], report["num_newer_requests"]) == (True, 2, 0)


def test_the_commands_say_where_the_lance_dataset_lies_and_verify_counts_it(tmp_path: Path) -> None:
    pytest.importorskip("lance", reason="the development extra brings pylance")
    media, out = make_image(tmp_path / "a.png"), tmp_path / "OUT"
    options = ("--out", out, "--model", "random:tiny", "--set", "output.compact=lance", *LOCAL)
    done = patchwire("embed", media, *options)
    assert done.returncode == 0, done.stderr
    assert f"table: {out}/embeddings\ncopy:  {out}/embeddings.lance\nnext:  patchwire verify {out}" in done.stdout
    assert "lance: 1 rows; 0 requests are newer\nok" in patchwire("verify", out).stdout
    again = patchwire("compact", out, "--lance")
    assert again.stdout == f"1 rows in 1 files\nlance: {out}/embeddings.lance, version 1\n", again.stderr


def test_commands_for_an_output_say_so_where_there_is_none(tmp_path: Path) -> None:
    for command in (("retry", tmp_path, *LOCAL), ("compact", tmp_path)):
        refused = patchwire(*command)
        assert refused.returncode == 1
        assert "expected an output of `patchwire embed`" in refused.stderr
    assert not list(tmp_path.iterdir())
