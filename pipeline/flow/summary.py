"""How a run ended, for its caller and for `run.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipeline.flow.progress import Progress
from pipeline.sink.run_record import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """How a run ended. Clip counts include every path a clip lies under.

    `table` is where the copy of the embeddings lies that `output.compact` asked for, None without one.
    """

    output: str
    table: str | None
    num_sources: int
    num_clips: int
    num_clips_done_before: int
    num_errors: int
    num_new_rows: int
    num_device_copies: int
    num_requests: int
    num_frames: int
    num_patches: int
    video_seconds: float
    elapsed_seconds: float
    encoder_start_seconds: float
    bottleneck: str
    random_weights: bool

    @property
    def exit_code(self) -> int:
        """0 when everything was embedded, 3 when there are error rows."""
        return 3 if self.num_errors else 0


def finished_record(
    record: RunRecord,
    summary: RunSummary,
    progress: Progress,
    rates: Mapping[str, float],
) -> RunRecord:
    """Add to the record of a run's start how it went, and how fast."""
    return replace(
        record,
        finished_at=utc_now(),
        bottleneck=summary.bottleneck,
        counts={
            "sources": summary.num_sources,
            "clips": summary.num_clips,
            "clips_done_before": summary.num_clips_done_before,
            "errors": summary.num_errors,
            "requests": summary.num_requests,
            "rows": summary.num_new_rows,
            "frames": summary.num_frames,
            "patches": summary.num_patches,
            "device_copies": summary.num_device_copies,
            **{f"transfers_{way}": number for way, number in sorted(progress.transfers.items())},
        },
        timings_seconds={
            "elapsed": summary.elapsed_seconds,
            "plan": progress.planning_seconds,
            "decode": progress.decode_seconds,
            "encode": progress.encode_seconds,
            "encoder_start": progress.start_seconds,
            "write": progress.write_seconds,
            "video": summary.video_seconds,
        },
        rates=dict(rates),
    )


def utc_now() -> str:
    """Now, as run records write times."""
    return datetime.now(UTC).isoformat(timespec="seconds")
