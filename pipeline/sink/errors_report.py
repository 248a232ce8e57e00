"""The error rows of an output, grouped by what a person can do about them; drawing them is the CLI's."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import ErrorCode, OutputError
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.reading import Row, readable, stream_rows

NUM_EXAMPLES = 3
_COLUMNS = ("source_uri", "clip_id", "stage", "code", "message")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ErrorExample:
    """One failure of a group."""

    source_uri: str
    clip_id: str
    stage: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """All failures of one code: how many, what it means, what to do, and the first few by path.

    An example's `clip_id` is empty where the whole medium failed.
    """

    code: str
    num_errors: int
    meaning: str
    action: str
    retryable: bool
    examples: tuple[ErrorExample, ...]


def group_errors(folder: OutputFolder) -> tuple[ErrorGroup, ...]:
    """Group all error rows, the most frequent code first.

    Raises: OutputError for a fragment that cannot be read, or a code of another version.
    Cost: one pass over `errors/`; only the counts and examples are kept.
    """
    counts: dict[str, int] = {}
    examples: dict[str, list[ErrorExample]] = {}
    for stem in folder.fragments(Kind.ERRORS):
        for row in _rows(folder, stem):
            code = str(row["code"])
            counts[code] = counts.get(code, 0) + 1
            first = [*examples.get(code, []), _example(row)]
            examples[code] = sorted(first)[:NUM_EXAMPLES]
    order = sorted(counts, key=lambda code: (-counts[code], code))
    return tuple(_group(folder, code, counts[code], examples[code]) for code in order)


def _rows(folder: OutputFolder, stem: str) -> Iterator[Row]:
    with readable(folder, Kind.ERRORS, stem):
        yield from stream_rows(folder, Kind.ERRORS, stem, _COLUMNS)


def _example(row: Row) -> ErrorExample:
    return ErrorExample(
        source_uri=str(row["source_uri"]),
        clip_id=str(row["clip_id"] or ""),
        stage=str(row["stage"]),
        message=str(row["message"]),
    )


def _group(folder: OutputFolder, code: str, num_errors: int, examples: list[ErrorExample]) -> ErrorGroup:
    try:
        advice = ErrorCode(code).advice
    except ValueError:
        raise OutputError(f"output {folder.uri!r}: error code {code!r} is not one that this version knows") from None
    return ErrorGroup(
        code=code,
        num_errors=num_errors,
        meaning=advice.meaning,
        action=advice.action,
        retryable=advice.retryable,
        examples=tuple(examples),
    )
