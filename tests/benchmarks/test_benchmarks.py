"""Every benchmark runs from end to end on a CPU, as small as it can be: a table, and one JSON line at the end."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import decode, encoder, growth, pipeline, prediction, transfer
from tests.media_factory import make_image, make_video


def run(
    main: object, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    main()  # type: ignore[operator]
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("| ")
    record = json.loads(lines[-1])
    assert {"benchmark", "hardware", "versions", "commit", "config", "results"} <= record.keys()
    return record


def test_the_encoder_is_as_exact_as_transformers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "random:tiny", "--grid", "2x4x4", "--grid", "1x4x6", "--repeats", "1", "--matmul", "64"]
    results = run(encoder.main, arguments, monkeypatch, capsys)["results"]
    assert [result["grid"] for result in results] == ["2x4x4", "1x4x6"]
    assert all(result["error"] < 1e-5 for result in results)
    assert all(result["transfer"] == "view" for result in results)


def test_a_transfer_on_the_cpu_is_a_view(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(transfer.main, ["--grid", "2x4x4", "--repeats", "2"], monkeypatch, capsys)
    assert [result["way"] for result in record["results"]] == ["uint8, view"]


@pytest.mark.ray
def test_every_request_comes_through_ray_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    settings = ["--set", "ray.num_cpus=2", "--set", "ray.object_store_bytes=100000000"]
    sizes = ["--model", "random:tiny", "--grid", "2x4x4", "--requests", "5", "--warmup", "2"]
    results = run(pipeline.main, [*sizes, *settings], monkeypatch, capsys)["results"]
    assert [result["way"] for result in results] == ["stage alone", "through Ray"]
    assert results[1]["seconds"] > 0


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_growth_counts_every_clip_and_measures_the_driver(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--counts", "3", "--workers", "1", "--runner", "local", "--kind", kind, "--shard-sources", "2"]
    (result,) = run(growth.main, arguments, monkeypatch, capsys)["results"]
    assert (result["clips"], result["errors"]) == (3, 0)
    assert result["driver_megabytes"] > 10


def test_simulated_headers_are_planned_in_shards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--simulate-headers", "250", "--shard-sources", "100"]
    (result,) = run(growth.main, arguments, monkeypatch, capsys)["results"]
    assert (result["sources"], result["shards"]) == (250, 3)
    assert result["peak_megabytes"] >= result["listing_megabytes"] > 10


def test_the_parts_of_a_clip_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video, image = make_video(tmp_path / "v.mp4"), make_image(tmp_path / "i.jpg")
    record = run(decode.main, ["--parts", "--repeats", "1", str(video), str(image)], monkeypatch, capsys)
    assert [result["codec"] for result in record["results"]] == ["h264", "jpeg"]
    assert all(sum(result["seconds"].values()) > 0 for result in record["results"])


def test_a_prediction_stands_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(tmp_path / "v.mp4")
    arguments = [str(tmp_path), "--workers", "1", "--runner", "local"]
    (result,) = run(prediction.main, arguments, monkeypatch, capsys)["results"]
    assert (result["workers"], result["clips"], result["errors"]) == (1, 1, 0)
    assert min(result[name] for name in ("predicted_seconds", "own_rates_seconds", "decode_cpu_seconds")) > 0
