import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import OutputError, OutputMismatchError
from pipeline.sink.run_record import (
    check_same_run,
    installed_versions,
    read_run_record,
    write_run_record,
)

from .factories import MODEL, make_folder, make_record


def test_a_record_reads_back_as_it_was_written_and_the_last_one_counts(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert read_run_record(folder) is None
    write_run_record(folder, make_record())
    finished = replace(
        make_record(),
        finished_at="2026-01-01T00:01:00+00:00",
        counts={"clips": 3},
        timings_seconds={"elapsed": 1.5},
        bottleneck="decode",
        config={"name": "\N{GRINNING FACE}", "list": [1, None, 0.5]},
    )
    write_run_record(folder, finished)
    assert read_run_record(folder) == finished


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"model": 3}', "\xff"])
def test_a_record_that_is_not_ours_is_an_output_error_that_names_it(tmp_path: Path, content: str) -> None:
    folder = make_folder(tmp_path)
    (tmp_path / "out" / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(OutputError, match=r"run\.json"):
        read_run_record(folder)


def test_the_same_settings_are_the_same_run_whatever_else_changed(tmp_path: Path) -> None:
    existing = replace(make_record(), config={"ray": 1}, versions={"torch": "other"})
    check_same_run(existing, result_config=json.loads(json.dumps(make_record().result_config)), model=MODEL)


def test_exactly_the_differing_keys_are_listed_with_both_values() -> None:
    now = {"clips": {"mode": "stride", "seconds": 10.0}, "output": {"level": "clip"}, "new": {"key": True}}
    with pytest.raises(OutputMismatchError) as caught:
        check_same_run(make_record(), result_config=now, model=replace(MODEL, model_revision="r2"))
    listed = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert listed == [
        'clips.mode: "whole" there, "stride" now',
        'model.revision: "r1" there, "r2" now',
        "new.key: not set there, true now",
        'output.dtype: "float32" there, not set now',
    ]


def test_versions_name_everything_that_can_change_a_result() -> None:
    versions = installed_versions()
    assert set(versions) == {
        "python",
        "patchwire",
        "torch",
        "ray",
        "pyarrow",
        "av",
        "decord",
        "pillow",
        "flash-attn-4",
        "quack-kernels",
    }
    assert versions["pyarrow"][0].isdigit()
