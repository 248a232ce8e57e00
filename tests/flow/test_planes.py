"""Clips that travel as planes through a real Ray; what makes rows of them in place of a GPU is the CPU."""

from pathlib import Path

import pytest

from pipeline import Config, embed
from pipeline.flow import cluster
from pipeline.request.build import build_request
from tests.flow.tables import embeddings_of, errors_of
from tests.media.conftest import VIDEOS
from tests.media_factory import make_image, make_video

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_node_ray")]
KINDS = ["h264.mp4", "b_frames.mp4", "hevc.mp4", "half_turn.mp4", "interlaced.mp4", "odd_sides.webm"]


class PlanesRunner(cluster.RayRunner):
    """Sends planes as to a GPU."""

    _sends_planes = True


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for name in KINDS:
        make_video(folder / name, **VIDEOS[name])
    make_image(folder / "a.png")
    (folder / "cut.mp4").write_bytes((folder / "b_frames.mp4").read_bytes()[:3000])
    return folder


def test_a_run_whose_clips_travel_as_planes_gives_the_same_tables(
    tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": "random:tiny", "encode": {"device": "cpu", "threads": 1}, "ray": {"decode_workers": 1}}
    config = Config.from_values({**values, "request": {"max_patches": 512}})
    embed(media, tmp_path / "rows", config=config, runner="local")
    monkeypatch.setattr(cluster, "RayRunner", PlanesRunner)
    embed(media, tmp_path / "planes", config=config, runner="ray")
    assert embeddings_of(tmp_path / "planes") == embeddings_of(tmp_path / "rows")
    assert errors_of(tmp_path / "planes") == errors_of(tmp_path / "rows")


def test_without_a_gpu_no_clip_travels_as_planes(tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def noted(*arguments: object, with_planes: bool) -> object:
        asked.append(with_planes)
        return build_request(*arguments, with_planes=with_planes)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.stages.decode.build_request", noted)
    config = Config.from_values({"model": "random:tiny", "encode": {"device": "cpu"}})
    embed(media, tmp_path / "out", config=config, runner="local")
    assert set(asked) == {False}
