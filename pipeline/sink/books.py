"""What an output's plan, sources and errors promise, as plain values to hold the embeddings against.

Kept in memory: about a hundred bytes a clip for the ids that must not come twice, one request's clips, and one entry
a source; never vectors.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.reading import PLAN_STEM, stream_rows

SPATIAL_MERGE = 4
_MAX_SENTENCES = 20
_PLAN_COLUMNS = ("request_id", "clips.clip_ids", "clips.source_uris", "clips.source_id", "clips.grid_thw")
_SOURCE_COLUMNS = ("source_uri", "source_id", "num_clips")
_SPAN_COLUMNS = ("start_seconds", "end_seconds")

SourceKey = tuple[str, str | None]


@dataclass(slots=True)
class Findings:
    """Collects discrepancies: all are counted, the first few are kept as sentences."""

    num: int = 0
    sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """Note one discrepancy; the sentence names the file and the id."""
        self.num += 1
        if len(self.sentences) < _MAX_SENTENCES:
            self.sentences.append(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """One clip under one path, and how many rows it must have."""

    clip_id: str
    source_uri: str
    source_id: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One row of the plan."""

    request_id: str
    clips: tuple[PlannedClip, ...]


@dataclass(slots=True)
class ErrorBooks:
    """Error rows by what they are about, and the file that the last one of each clip is in.

    `strays` are files of requests that hold rows of whole sources: these belong to the plan.
    """

    by_clip: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    file_of: dict[str, str] = field(default_factory=dict)
    strays: set[str] = field(default_factory=set)


def rows_of_clip(level: str, grid_thw: tuple[int, int, int]) -> int:
    """How many vectors a clip has at an output level."""
    t, h, w = grid_thw
    return {"clip": 1, "frame": t, "token": t * h * w // SPATIAL_MERGE}[level]


def planned_requests(folder: OutputFolder, stem: str, level: str) -> Iterator[PlannedRequest]:
    """Stream one plan file, with the fields of a clip that the books need.

    Raises: what `stream_rows` does; ValueError where a clip's lists do not belong together.
    """
    for row in stream_rows(folder, Kind.PLAN, stem, _PLAN_COLUMNS):
        clips: list[dict[str, Any]] = row["clips"]  # type: ignore[assignment]
        yield PlannedRequest(
            request_id=str(row["request_id"]),
            clips=tuple(planned for clip in clips for planned in _under_every_path(clip, level)),
        )


def read_errors(folder: OutputFolder, stem: str, books: ErrorBooks) -> None:
    """Count one errors file into the books. Raises: what `stream_rows` does."""
    for row in stream_rows(folder, Kind.ERRORS, stem, ("source_uri", "clip_id")):
        if row["clip_id"] is None:
            books.by_source[str(row["source_uri"])] += 1
            if not stem.startswith(PLAN_STEM):
                books.strays.add(stem)
        else:
            books.by_clip[str(row["clip_id"])] += 1
            books.file_of[str(row["clip_id"])] = stem


def read_sources(folder: OutputFolder, stem: str, books: dict[SourceKey, dict[object, int]]) -> None:
    """Add one sources file to the books: for each source's content, the clips of each span that was asked for.

    A file that was only touched is listed again with the same content and spans; it is one entry here.
    Raises: what `stream_rows` does.
    """
    for row in stream_rows(folder, Kind.SOURCES, stem, _SOURCE_COLUMNS, _SPAN_COLUMNS):
        source_id = row["source_id"]
        key = (str(row["source_uri"]), None if source_id is None else str(source_id))
        span = (row.get("start_seconds"), row.get("end_seconds"))
        books.setdefault(key, {})[span] = int(str(row["num_clips"]))


def _under_every_path(clip: dict[str, Any], level: str) -> Iterator[PlannedClip]:
    t, h, w = clip["grid_thw"]
    for clip_id, uri in zip(clip["clip_ids"], clip["source_uris"], strict=True):
        yield PlannedClip(
            clip_id=clip_id,
            source_uri=uri,
            source_id=clip["source_id"],
            num_rows=rows_of_clip(level, (t, h, w)),
        )
