"""The sample media as a whole: every file accounted for, both runners equal, numbers equal to the official ones."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline import Config, embed
from pipeline.errors import MediaError
from pipeline.flow.inspect import inspect_with
from pipeline.flow.local import LocalRunner
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.flow.tables import embeddings_of, errors_of, fragments_of
from tests.media_factory import decode_plainly
from tests.oracles import official_indices, official_patch_rows, official_timestamps, official_video_size

CONFIG = Config(model="random:tiny")
# Runs are compared with each other: with pictures of 256 patches the encoder is not what takes the time.
SMALL = Config.from_values({"model": "random:tiny", "sizes": {"max_tokens_per_frame": 64}})


@pytest.fixture(scope="module")
def done(sample_media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "OUT"
    embed(sample_media, out, config=SMALL, runner="local")
    return out


def test_every_sample_is_accounted_for_and_a_second_run_does_nothing(sample_media: Path, done: Path) -> None:
    files = sorted(str(path) for path in sample_media.rglob("*") if path.is_file())
    assert sorted(embeddings_of(done)["source_uri"].to_pylist() + errors_of(done)["source_uri"].to_pylist()) == files
    assert verify_output(OutputFolder(str(done))).ok
    before = fragments_of(done)
    again = embed(sample_media, done, config=SMALL, runner="local")
    assert (again.num_requests, again.num_new_rows) == (0, 0)
    assert fragments_of(done) == before


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_ray_gives_the_same_tables_for_the_samples(sample_media: Path, done: Path, tmp_path: Path) -> None:
    embed(sample_media, tmp_path / "OUT", config=SMALL, runner="ray")
    assert embeddings_of(done).equals(embeddings_of(tmp_path / "OUT"))
    assert errors_of(done).equals(errors_of(tmp_path / "OUT"))


def test_every_valid_sample_has_a_vector(sample_media: Path, done: Path) -> None:
    with (sample_media / "MANIFEST.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    unusable = {"video/audio_only.m4a", "image/strip_4000x12.png"}
    valid = {row["file"] for row in rows if row["bad"] == "0"} - unusable
    embedded = {str(Path(uri).relative_to(sample_media)) for uri in embeddings_of(done)["source_uri"].to_pylist()}
    assert valid <= embedded


@pytest.fixture
def runner() -> Iterator[LocalRunner]:
    with LocalRunner(CONFIG) as opened:
        yield opened


def test_plans_and_patch_rows_of_sample_videos_equal_the_official_ones(sample_media: Path, runner: LocalRunner) -> None:
    checked = 0
    for path in sorted((sample_media / "video").iterdir()):
        try:
            (clip,) = inspect_with(runner, str(path), CONFIG)
        except MediaError as error:
            assert (path.name, error.code) == ("audio_only.m4a", "no_video_stream")
            continue
        found = json.loads(json.dumps(clip.to_json()))
        frames = decode_plainly(path)
        assert found["num_frames"] == len(frames), path.name
        assert (found["height"], found["width"]) == frames[0].shape[:2], path.name
        indices = official_indices(len(frames), found["fps"])
        assert found["frame_indices"] == indices, path.name
        assert found["timestamps_seconds"] == official_timestamps(indices, found["fps"]), path.name
        # transformers refuses a one-frame video; ours is its frame twice.
        doubled = indices * 2 if len(indices) == 1 else indices
        height, width = official_video_size(len(doubled), *frames[0].shape[:2])
        assert (found["resized_height"], found["resized_width"]) == (height, width), path.name
        stacked = torch.from_numpy(np.stack([frames[index] for index in doubled])).permute(0, 3, 1, 2)
        resized = functional.interpolate(stacked, (height, width), mode="bicubic", antialias=True)
        assert np.array_equal(clip.patch_rows, official_patch_rows(resized).numpy()), path.name
        checked += 1
    assert checked >= 20
