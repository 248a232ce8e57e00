"""A request's clips share one decoder process and one reading of their file, and each is what it would be alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode
from pipeline.media.sandbox import Sandbox
from pipeline.plan.clips import plan_clips
from pipeline.plan.schema import Clip, RequestPlan
from pipeline.request.build import build_request, clip_job
from pipeline.request.table import unwrap_request
from pipeline.sources.content_id import content_id
from pipeline.sources.listing import SourceItem
from tests.media.helpers import damage, probe
from tests.media_factory import make_video
from tests.plan.factories import make_recipe


def clips_of(path: Path) -> list[Clip]:
    """The clips of a video, a second each, as a run would plan them."""
    status = path.stat()
    item = SourceItem(uri=str(path), num_bytes=status.st_size, modified_ns=status.st_mtime_ns)
    recipe = make_recipe(clips={"mode": "stride", "seconds": 1.0}, frames={"fps": 8})
    return plan_clips(item, content_id(item), probe(path), recipe)


def rows_of_clips(sandbox: Sandbox, clips: list[Clip]) -> tuple[list[bytes], list[ErrorCode]]:
    request = unwrap_request(build_request(RequestPlan.of(clips), sandbox))
    layout = request.meta.layout
    rows = np.asarray(request.buffer)[layout.rows_start :].reshape(-1, layout.row_bytes)
    ends = np.cumsum([clip.num_patches for clip in request.meta.clips])[:-1]
    return [part.tobytes() for part in np.split(rows, ends)], [failure.code for failure in request.meta.failures]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(DecodeConfig(timeout_seconds=20), ImagesConfig(), LimitsConfig()) as box:
        yield box


@pytest.mark.parametrize("lost", [[], [30], [40, 41, 70]])
def test_clips_decoded_in_one_request_are_those_of_a_request_each(tmp_path, sandbox, lost):
    options = {"x264-params": "bframes=3:keyint=60:scenecut=0"}
    whole = make_video(tmp_path / "whole.mp4", num_frames=150, gop=60, options=options)
    clips = clips_of(damage(whole, tmp_path / "video.mp4", lost))
    assert len(clips) == 6
    together, failures = rows_of_clips(sandbox, clips)
    alone = [rows_of_clips(sandbox, [clip])[0][0] for clip in clips]
    assert failures == []
    assert together == alone


def test_clip_that_fails_is_an_error_and_its_neighbours_are_what_they_are(tmp_path, sandbox):
    clips = clips_of(make_video(tmp_path / "video.mp4", num_frames=75, gop=75))
    missing = replace(clips[1], frame_indices=tuple(number + 900 for number in clips[1].frame_indices))
    together, failures = rows_of_clips(sandbox, [clips[0], missing, clips[2]])
    assert failures == [ErrorCode.TRUNCATED_MEDIA]
    assert together == [rows_of_clips(sandbox, [clip])[0][0] for clip in (clips[0], clips[2])]


def test_clips_that_begin_at_safe_starts_are_those_read_from_the_beginning(tmp_path, sandbox):
    options = {"x264-params": "scenecut=0"}
    clips = clips_of(make_video(tmp_path / "video.mkv", num_frames=300, gop=20, options=options))
    assert [clip.origin.number if clip.origin else None for clip in clips[::3]] == [None, None, 80, 160]
    assert clip_job(clips[6], clips[6].sources[0]).origin == clips[6].origin
    plain = [replace(clip, origin=None) for clip in clips]
    assert rows_of_clips(sandbox, clips) == rows_of_clips(sandbox, plain)
    assert rows_of_clips(sandbox, clips[7:]) == rows_of_clips(sandbox, plain[7:])


def test_job_tells_of_the_next_clip_only_where_it_is_of_the_same_content(tmp_path):
    first, second, *_ = clips_of(make_video(tmp_path / "video.mp4", num_frames=75))
    assert clip_job(first, first.sources[0], second).following == second.frame_indices
    assert clip_job(first, first.sources[0], replace(second, source_id="other")).following == ()
    assert clip_job(first, first.sources[0]).following == ()
