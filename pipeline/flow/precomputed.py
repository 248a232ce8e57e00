"""Patch rows that another program made, taken in as prepared requests.

    from pipeline import PrecomputedClip, store_precomputed

    clip = PrecomputedClip(source_uri="s3://b/a.mp4", media_type="video", grid_thw=(2, 22, 40), patch_rows=rows)
    store_precomputed([clip], "P", model="Qwen/Qwen3-VL-2B-Instruct")

What it makes is a folder like `patchwire prepare`'s, which `patchwire embed P --out OUT` takes. The rows are pixels, as
uint8 and in the official order (`media/patchify.py`); everything that can be wrong with them is refused here, by name,
and once more when they are loaded.
"""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.checkpoint import resolve_model
from pipeline.config import Config
from pipeline.digest import digest_bytes, digest_values
from pipeline.errors import OutputError, RequestError
from pipeline.flow.plan_store import plan_stems, write_plan
from pipeline.flow.run import identity_of
from pipeline.flow.summary import utc_now
from pipeline.media.container import MediaType
from pipeline.media.grid import PATCH_SIZE, row_bytes, temporal_size
from pipeline.plan.packing import pack
from pipeline.plan.planner import Plan
from pipeline.plan.schema import Clip, RequestPlan, SourceRecord
from pipeline.request.check import checked_request
from pipeline.request.layout import RequestLayout
from pipeline.request.table import RequestMeta, wrap_request
from pipeline.sink.lease import Lease
from pipeline.sink.output import Kind, OutputFolder
from pipeline.sink.reading import PLAN_STEM
from pipeline.sink.run_record import RunRecord, read_run_record, write_run_record
from pipeline.sink.schema import errors_schema
from pipeline.stages.request_file import write_request

DECODER = "precomputed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrecomputedClip:
    """One clip whose patch rows exist.

    `grid_thw` holds integers, Python's or numpy's. `patch_rows` is (t * h * w, 1536) for a `video` (C, T, 16, 16), or
    (h * w, 768) for an `image`: uint8, or other integers from 0 to 255. `timestamps_seconds` has one entry a
    temporal patch; empty counts them from 0, one a second.
    """

    source_uri: str
    media_type: str
    grid_thw: tuple[int, int, int]
    patch_rows: NDArray[np.integer]
    clip_index: int = 0
    start_seconds: float | None = None
    end_seconds: float | None = None
    timestamps_seconds: tuple[float, ...] = ()


def store_precomputed(
    clips: Iterable[PrecomputedClip], out: str | Path, *, model: str | None = None, config: Config | None = None
) -> int:
    """Write clips as prepared requests, and say how many requests they make.

    Args:
        clips: taken one by one; a clip of a source comes once.
        out: a new folder, local or an fsspec URL, or what a call that did not end has left: it begins anew.
        model: replaces the config's model if given: whose patch rows these are.
        config: what the clips were made with, as far as Patchwire knows it; `embed` refuses another one.
    Raises: RequestError for a clip that is not what it says, after which the same call may be made again; OutputError
        where the folder holds a run that came further.
    Cost: each row is copied once; one open request a shape is held.
    """
    settings = (config or Config()) if model is None else (config or Config()).model_copy(update={"model": model})
    identity = identity_of(resolve_model(settings.model))
    folder = OutputFolder(str(out))
    _require_unfinished(folder)
    folder.create(Kind.REQUESTS)
    record = RunRecord.begun(settings, identity, Kind.REQUESTS, utc_now())
    with Lease(folder):
        _require_unfinished(folder)
        for request_id in folder.fragments(Kind.REQUESTS):
            folder.remove(folder.name(Kind.REQUESTS, request_id))
        write_run_record(folder, record)
        requests = tuple(_stored(folder, clips, settings.request.max_patches))
        plan = Plan(requests=requests, sources=_sources(requests), failures=())
        write_plan(folder, PLAN_STEM, plan, errors_schema(model=identity, config_hash=record.config_hash))
        write_run_record(folder, replace(record, finished_at=utc_now(), counts={"requests": len(requests)}))
    return len(requests)


def _require_unfinished(folder: OutputFolder) -> None:
    """Refuse a folder with a plan or of something else; requests without a plan are what an ended call left."""
    existing = read_run_record(folder)
    if existing is not None and (existing.makes != Kind.REQUESTS or plan_stems(folder)):
        raise OutputError(
            f"output {folder.uri!r}: expected a new folder, it holds a run already; name another, or remove it"
        )


def _stored(folder: OutputFolder, clips: Iterable[PrecomputedClip], max_patches: int) -> Iterator[RequestPlan]:
    waiting: dict[str, NDArray[np.uint8]] = {}
    seen: set[str] = set()

    def planned() -> Iterator[Clip]:
        for number, given in enumerate(clips):
            where = f"precomputed clip {number} ({given.source_uri!r})"
            rows = _checked_rows(given, where)
            clip = _clip(given, rows, where)
            if clip.clip_ids[0] in seen:
                raise RequestError(f"{where}: clip {given.clip_index} of this source came before")
            seen.add(clip.clip_ids[0])
            waiting[clip.clip_ids[0]] = rows
            yield clip

    for plan in pack(planned(), max_patches):
        table = _request(plan, [waiting.pop(clip.clip_ids[0]) for clip in plan.clips])
        checked_request(table, f"precomputed request {plan.request_id}")
        write_request(folder, plan.request_id, table)
        yield plan


def _checked_rows(given: PrecomputedClip, where: str) -> NDArray[np.uint8]:
    """The rows as uint8. Raises RequestError for another shape, type or range."""
    rows = np.asarray(given.patch_rows)
    if given.media_type not in list(MediaType):
        raise RequestError(f"{where}: media_type: expected video or image, got {given.media_type!r}")
    t, h, w = _grid(given, where)
    shape = (t * h * w, row_bytes(MediaType(given.media_type)))
    if rows.shape != shape:
        raise RequestError(f"{where}: patch_rows of grid {t} x {h} x {w}: expected {shape}, got {rows.shape}")
    if not np.issubdtype(rows.dtype, np.integer):
        raise RequestError(
            f"{where}: patch_rows: expected uint8 pixels, got {rows.dtype}; they are normalised by the encoder"
        )
    if rows.dtype != np.uint8 and (rows.min() < 0 or rows.max() > 255):
        raise RequestError(f"{where}: patch_rows: expected 0 to 255, got {rows.min()} to {rows.max()}")
    return np.ascontiguousarray(rows, dtype=np.uint8)


def _grid(given: PrecomputedClip, where: str) -> tuple[int, int, int]:
    """The grid in Python's integers, of numpy's or any other. Raises: RequestError."""
    try:
        t, h, w = map(operator.index, given.grid_thw)
    except (TypeError, ValueError):  # not a number of anything, or not three of them
        t = h = w = 0
    if min(t, h, w) < 1:
        raise RequestError(f"{where}: grid_thw: expected three positive integers, got {given.grid_thw!r}")
    return t, h, w


def _clip(given: PrecomputedClip, rows: NDArray[np.uint8], where: str) -> Clip:
    t, h, w = _grid(given, where)
    media_type = MediaType(given.media_type)
    is_video = media_type is MediaType.VIDEO
    if given.timestamps_seconds and len(given.timestamps_seconds) != t * is_video:
        raise RequestError(f"{where}: {len(given.timestamps_seconds)} timestamps for {t * is_video} temporal patches")
    source_id = f"rows-{digest_bytes([rows.tobytes()])}"
    num_frames = t * temporal_size(media_type)
    return Clip(
        clip_ids=(digest_values(given.source_uri, source_id, given.clip_index, [t, h, w]),),
        source_uris=(given.source_uri,),
        source_id=source_id,
        source_bytes=rows.nbytes,
        modified_ns=0,
        media_type=media_type,
        clip_index=given.clip_index,
        start_seconds=given.start_seconds,
        end_seconds=given.end_seconds,
        width=w * PATCH_SIZE,
        height=h * PATCH_SIZE,
        fps=None,
        num_frames=num_frames,
        frame_indices=tuple(range(num_frames)),
        timestamps_seconds=(given.timestamps_seconds or tuple(map(float, range(t)))) if is_video else (),
        resized_height=h * PATCH_SIZE,
        resized_width=w * PATCH_SIZE,
        grid_thw=(t, h, w),
    )


def _request(plan: RequestPlan, rows: list[NDArray[np.uint8]]) -> pa.Table:
    layout = RequestLayout.of(plan.media_type, [clip.grid_thw for clip in plan.clips])
    buffer = np.concatenate([layout.header().view(np.uint8), *(part.reshape(-1) for part in rows)])
    meta = RequestMeta(
        request_id=plan.request_id,
        media_type=plan.media_type,
        clips=plan.clips,
        decoders=(DECODER,) * len(plan.clips),
        failures=(),
        decode_seconds=0.0,
    )
    return wrap_request(meta, buffer)


def _sources(requests: Iterable[RequestPlan]) -> tuple[SourceRecord, ...]:
    """One record for each clip: its rows are a content of their own."""
    return tuple(
        SourceRecord(
            source_uri=clip.source_uris[0],
            source_id=clip.source_id,
            start_seconds=clip.start_seconds,
            end_seconds=clip.end_seconds,
            num_bytes=clip.source_bytes,
            modified_ns=clip.modified_ns,
            media_type=clip.media_type.value,
            num_clips=1,
        )
        for request in requests
        for clip in request.clips
    )
