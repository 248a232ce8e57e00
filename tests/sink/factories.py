"""A small output whose books close, to be broken one way at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import ErrorCode, Stage
from pipeline.media.container import MediaType
from pipeline.plan.planner import sources_table
from pipeline.plan.schema import Clip, Failure, RequestPlan, SourceRecord, plan_table
from pipeline.sink.fragments import write_fragment, write_table
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.run_record import ModelIdentity, PlainValue, RunRecord, write_run_record
from pipeline.sink.schema import embeddings_schema, errors_schema, errors_table

DIM = 4
MODEL = ModelIdentity(model_id="random:tiny", model_revision="r1", random_weights=True)
GRID = (3, 4, 2)
ROWS = {"clip": 1, "frame": 3, "token": 6}

Row = dict[str, object]


def make_result_config(level: str) -> dict[str, PlainValue]:
    return {"clips": {"mode": "whole", "seconds": 10.0}, "output": {"level": level, "dtype": "float32"}}


CONFIG_HASH = MODEL.hash_with(make_result_config("clip"))


def make_folder(tmp_path: Path) -> OutputFolder:
    folder = OutputFolder(str(tmp_path / "out"))
    folder.create()
    return folder


def make_record(level: str = "clip") -> RunRecord:
    return RunRecord(
        started_at="2026-01-01T00:00:00+00:00",
        model=MODEL,
        config_hash=MODEL.hash_with(make_result_config(level)),
        result_config=make_result_config(level),
        config={"model": "random:tiny"},
        versions={"python": "3.11"},
    )


def make_clip(*names: str, source_id: str | None = None) -> Clip:
    """One clip that lies under /<name> for each name, with the id clip-<name>."""
    return Clip(
        clip_ids=tuple(f"clip-{name}" for name in names),
        source_uris=tuple(f"/{name}" for name in names),
        source_id=source_id or f"b2-{names[0]}",
        source_bytes=1,
        modified_ns=1,
        media_type=MediaType.VIDEO,
        clip_index=0,
        start_seconds=0.0,
        end_seconds=1.0,
        width=64,
        height=32,
        fps=2.0,
        num_frames=6,
        frame_indices=(0, 1, 2, 3, 4, 5),
        timestamps_seconds=(0.0, 1.0, 2.0),
        resized_height=64,
        resized_width=32,
        grid_thw=GRID,
    )


def make_failure(name: str, *, whole: bool = False, code: ErrorCode = ErrorCode.CORRUPT_MEDIA) -> Failure:
    return Failure(
        source_uri=f"/{name}",
        source_id=None if whole else f"b2-{name}",
        clip_id=None if whole else f"clip-{name}",
        stage=Stage.PROBE if whole else Stage.DECODE,
        code=code,
        message=f"/{name}: broken",
    )


def make_source(name: str, source_id: str | None, num_clips: int) -> SourceRecord:
    return SourceRecord(
        source_uri=f"/{name}",
        source_id=source_id,
        start_seconds=None,
        end_seconds=None,
        num_bytes=1,
        modified_ns=1,
        media_type=None,
        num_clips=num_clips,
    )


def make_rows(request_id: str, clip: Clip, level: str) -> list[Row]:
    return [
        {
            "clip_id": clip_id,
            "request_id": request_id,
            "source_uri": uri,
            "source_id": clip.source_id,
            "media_type": "video",
            "clip_index": clip.clip_index,
            "frame_timestamps_seconds": list(clip.timestamps_seconds),
            "grid_thw": list(clip.grid_thw),
            "level": level,
            "position": position,
            "embedding": [float(position), 1.0, 2.0, 3.0],
            "decoder": "pyav",
            "model_id": MODEL.model_id,
            "model_revision": MODEL.model_revision,
            "config_hash": MODEL.hash_with(make_result_config(level)),
        }
        for clip_id, uri in zip(clip.clip_ids, clip.source_uris, strict=True)
        for position in range(ROWS[level])
    ]


def make_embeddings(rows: Sequence[Row] = (), dim: int = DIM, num_deepstack: int = 0) -> pa.Table:
    schema = embeddings_schema(
        dim=dim, dtype="float32", model=MODEL, config_hash=CONFIG_HASH, num_deepstack=num_deepstack
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def make_errors(failures: Sequence[Failure] = ()) -> pa.Table:
    return errors_table(failures, errors_schema(model=MODEL, config_hash=CONFIG_HASH))


@dataclass
class Books:
    """Two requests: one with a clip under two paths and a failed clip, one with a clip; and a failed file."""

    level: str = "clip"
    requests: dict[str, list[Clip]] = field(
        default_factory=lambda: {"r1": [make_clip("a", "copy"), make_clip("bad")], "r2": [make_clip("b")]}
    )
    failures: dict[str, list[Failure]] = field(
        default_factory=lambda: {"r1": [make_failure("bad")], "plan": [make_failure("text", whole=True)]}
    )
    sources: list[SourceRecord] = field(
        default_factory=lambda: [
            make_source("a", "b2-a", 1),
            make_source("copy", "b2-a", 1),
            make_source("bad", "b2-bad", 1),
            make_source("b", "b2-b", 1),
            make_source("text", None, 0),
        ]
    )

    @property
    def rows(self) -> dict[str, list[Row]]:
        failed = {failure.clip_id for failures in self.failures.values() for failure in failures}
        return {
            request_id: [
                row for clip in clips for row in make_rows(request_id, clip, self.level) if row["clip_id"] not in failed
            ]
            for request_id, clips in self.requests.items()
        }

    def write(self, folder: OutputFolder, rows: dict[str, list[Row]] | None = None) -> None:
        write_run_record(folder, make_record(self.level))
        plan = [replace(RequestPlan.of(clips), request_id=name) for name, clips in self.requests.items()]
        write_table(folder, Kind.PLAN, "plan", plan_table(plan))
        write_table(folder, Kind.SOURCES, "plan", sources_table(self.sources))
        for name, content in (self.rows if rows is None else rows).items():
            write_fragment(folder, name, make_embeddings(content), make_errors(self.failures.get(name, ())))
        write_table(folder, Kind.ERRORS, "plan", make_errors(self.failures.get("plan", ())))


def finite_vectors(num_rows: int, dim: int, dtype: str) -> pa.Array:
    values = np.arange(num_rows * dim, dtype=np.float64).astype(dtype) / 7
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(dtype)), dim)
