from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import ErrorCode, OutputError
from pipeline.sink.errors_report import group_errors
from pipeline.sink.fragments import write_table
from pipeline.sink.output import Kind

from .factories import make_errors, make_failure, make_folder


def test_no_error_rows_are_no_groups(tmp_path: Path) -> None:
    assert group_errors(make_folder(tmp_path)) == ()


def test_errors_are_grouped_by_code_the_most_frequent_first_with_three_examples(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    corrupt = [make_failure(f"c{number}") for number in range(9)]
    write_table(folder, Kind.ERRORS, "r2", make_errors(corrupt[:5]))
    write_table(folder, Kind.ERRORS, "r1", make_errors(corrupt[5:]))
    timeout = make_failure("t", whole=True, code=ErrorCode.DECODER_TIMEOUT)
    write_table(folder, Kind.ERRORS, "plan", make_errors([timeout]))
    first, second = group_errors(folder)
    assert (first.code, first.num_errors, first.retryable) == ("corrupt_media", 9, False)
    assert (first.meaning, first.action) == (
        ErrorCode.CORRUPT_MEDIA.advice.meaning,
        ErrorCode.CORRUPT_MEDIA.advice.action,
    )
    assert [example.source_uri for example in first.examples] == ["/c0", "/c1", "/c2"]
    assert (second.code, second.num_errors, second.retryable) == ("decoder_timeout", 1, True)
    [example] = second.examples
    assert (example.clip_id, example.stage, example.message) == ("", "probe", "/t: broken")


def test_a_damaged_fragment_or_an_unknown_code_is_an_output_error_that_names_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    table = make_errors([make_failure("a")])
    other = table.set_column(table.schema.names.index("code"), "code", pa.array(["from_the_future"]))
    write_table(folder, Kind.ERRORS, "r1", other)
    with pytest.raises(OutputError, match="from_the_future"):
        group_errors(folder)
    (tmp_path / "out" / "errors" / "r1.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"errors/r1\.parquet"):
        group_errors(folder)
