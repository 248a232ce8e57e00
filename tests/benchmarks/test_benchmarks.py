"""Every benchmark runs from end to end on a CPU, as small as it can be: a table, and one JSON line at the end."""

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from benchmarks import (
    attention,
    chart,
    cores,
    decode,
    encoder,
    growth,
    isolation,
    keyframes,
    last_clip,
    nvdec,
    overlap,
    pipeline,
    planes,
    prediction,
    reading,
    recipe,
    roofline,
    small,
    startup,
    transfer,
)
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
    requests = ["2x4x4", "1x4x6+2x4x6"]
    arguments = ["--model", "random:tiny", "--repeats", "1", "--matmul", "64"]
    arguments += [text for request in requests for text in ("--grid", request)]
    results = run(encoder.main, arguments, monkeypatch, capsys)["results"]
    assert [result["grid"] for result in results] == requests
    assert all(result["error"] < 1e-5 for result in results)
    assert all(result["transfer"] == "view" for result in results)


def test_small_requests_have_the_same_vectors_with_graphs_and_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "random:tiny", "--grid", "1x4x4", "--grid", "2x4x6", "--repeats", "1"]
    results = run(small.main, arguments, monkeypatch, capsys)["results"]
    assert [result["grid"] for result in results] == ["1x4x4", "2x4x6"]
    assert all(result["same_vectors"] for result in results)


def test_a_start_is_measured_with_an_empty_and_a_filled_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(startup.main, ["--model", "random:tiny", "--grid", "2x4x4"], monkeypatch, capsys)["results"]
    assert [result["cache"] for result in results] == ["empty", "filled"]
    assert all(result[phase] > 0 for result in results for phase in ("imports", "weights", "first", "second"))
    assert results[1]["kernels"] == 0


def test_attention_is_timed_for_each_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--frames", "2x16", "--frames", "1x20", "--heads", "2", "--repeats", "1"]
    results = run(attention.main, arguments, monkeypatch, capsys)["results"]
    assert [(result["head_dim"], result["frames"]) for result in results] == [
        (64, "2x16"),
        (64, "1x20"),
        (72, "2x16"),
        (72, "1x20"),
    ]
    assert all(result["error"] < 1e-5 and result["seconds"] > 0 for result in results)


@pytest.mark.parametrize("dtype", ["float32", "float8"])
def test_the_parts_of_a_pass_add_up_to_its_operations(
    dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "random:tiny", "--grid", "2x4x4", "--turns", "1", "--matmul", "64"]
    settings = ["--set", f"encode.dtype={dtype}", "--set", "encode.float8_least_cosine=0.9"]
    (result,) = run(roofline.main, [*arguments, *settings], monkeypatch, capsys)["results"]
    assert sum(part["flops"] for part in result["parts"]) == result["flops"] < result["flops_with_deepstack"]
    assert {"qkv, turned", "attention", "pixels"} <= {part["name"] for part in result["parts"]}
    assert result["parts_seconds"] == pytest.approx(sum(part["seconds"] for part in result["parts"]))


def test_records_become_a_chart_with_a_bar_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(settings: list[str], seconds: float) -> dict:
        timing = {"ours": {"median_seconds": seconds}, "transformers": {"median_seconds": 0.2}}
        results = [{"model": "random:2b", "grid": "64x28x28", **timing}]
        return {"benchmark": "encoder", "hardware": {}, "config": {"settings": settings}, "results": results}

    records, target = tmp_path / "records.jsonl", tmp_path / "chart.svg"
    lines = [record([], 0.07), record(["encode.dtype=float8"], 0.05), {"benchmark": "transfer"}]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", ["chart", str(records), str(target)])
    chart.main()
    texts = [element.text for element in ElementTree.parse(target).getroot() if element.tag.endswith("text")]
    assert texts[-4:] == ["2B, 64x28x28", "200.0 ms", "70.0 ms", "50.0 ms"]


def test_a_transfer_on_the_cpu_is_a_view(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(transfer.main, ["--grid", "2x4x4", "--repeats", "2"], monkeypatch, capsys)
    assert [result["way"] for result in record["results"]] == ["uint8, view"]


def test_copies_on_the_cpu_are_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json.gz"
    sizes = ["--model", "random:tiny", "--grid", "2x4x4", "--requests", "2", "--trace", str(trace)]
    assert [result["copies"] for result in run(overlap.main, sizes, monkeypatch, capsys)["results"]] == [0]
    assert json.loads(gzip.decompress(trace.read_bytes())) == {"traceEvents": []}


def test_the_share_of_copies_under_kernels_is_that_of_their_time() -> None:
    works = [
        overlap.Work(name="Memcpy HtoD", start=0, end=10),
        overlap.Work(name="gemm", start=4, end=8),
        overlap.Work(name="norm", start=6, end=9),
        overlap.Work(name="gemm", start=12, end=20),
    ]
    result = overlap.summarise(works, num_requests=1)
    assert (result["copies"], result["hidden"], result["compute_share"]) == (1, 0.5, 13 / 20)


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_the_recipe_and_patchwire_embed_the_same_videos(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    video = make_video(tmp_path / "a.mp4", num_frames=10)
    arguments = [str(video), "--copies", "2", "--model", "random:tiny"]
    results = run(recipe.main, arguments, monkeypatch, capsys)["results"]
    assert [result["videos"] for result in results] == [2, 2]
    assert all(0.99 < result["least_cosine"] <= 1.0001 for result in results)


@pytest.mark.parametrize(("benchmark", "num_runs"), [(nvdec, 2), (planes, 4)], ids=["its decoders", "planes"])
def test_without_a_gpu_what_it_would_do_changes_nothing(
    benchmark: ModuleType,
    num_runs: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    video = make_video(tmp_path / "a.mp4", num_frames=10)
    settings = ["--runner", "local", "--model", "random:tiny", "--set", "encode.device=cpu"]
    (results,) = run(benchmark.main, [str(video), "--copies", "2", *settings], monkeypatch, capsys)["results"]
    assert [result["decoders"] for result in results["runs"]] == [{"pyav": 2}] * num_runs
    assert (results["vectors"]["changed"], results["vectors"]["largest_difference"]) == (0, 0.0)


def test_decoding_alone_is_measured_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(make_video(tmp_path / "v.mp4")), "--workers", "2", "--seconds", "0.2", "--planes"]
    results = run(cores.main, arguments, monkeypatch, capsys)["results"]
    assert (results[0]["workers"], results[0]["of_one"]) == (2, 1.0)
    assert results[0]["clips_per_second"] > 0


@pytest.mark.parametrize("options", [[], ["--planes"]], ids=["rows", "planes"])
def test_isolation_is_measured_beside_the_same_work_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str]
) -> None:
    video = make_video(tmp_path / "v.mp4", num_frames=8)
    results = run(
        isolation.main,
        [str(video), "--runs", "1", "--repeats", "2", "--restarts", "1", "--busy", "0", *options],
        monkeypatch,
        capsys,
    )["results"]
    assert [result["clock"] for result in results[:2]] == ["wall", "cpu"]
    assert all(result["sandbox"]["median"] > 0 for result in results[:2])
    assert {"hung", "crashed"} < {result["what"] for result in results[2:]}


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_every_request_comes_through_ray_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--model", "random:tiny", "--grid", "2x4x4", "--requests", "5", "--warmup", "2"]
    results = run(pipeline.main, sizes, monkeypatch, capsys)["results"]
    assert [result["way"] for result in results] == ["stage alone", "two threads of it", "through Ray"]
    assert results[2]["seconds"] > 0
    assert results[2]["same_vectors"] == 5


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_growth_counts_every_clip_and_measures_the_driver(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--counts", "3", "--workers", "1", "--runner", "local", "--kind", kind, "--shard-sources", "2"]
    (result,) = run(growth.main, arguments, monkeypatch, capsys)["results"]
    assert (result["clips"], result["errors"]) == (3, 0)
    assert result["driver_megabytes"] > 10


def test_copies_of_real_media_grow_with_the_workers_and_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_video(tmp_path / "v.mp4")
    arguments = ["--media", str(video), "--per-worker", "6", "--workers", "1", "2", "--runner", "local"]
    first, second = run(growth.main, [*arguments, "--max-patches", "1"], monkeypatch, capsys)["results"]
    assert (first["clips"], second["clips"], second["requests"]) == (6, 12, 12)
    assert first["speed_up"] == 1.0
    assert second["speed_up"] == first["ms_per_clip"] / second["ms_per_clip"]
    assert (first["middle_speed_up"], second["middle_speed_up"]) == (None, None)
    assert second["middle_ms_per_clip"] > 0


def test_simulated_headers_are_planned_in_shards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--simulate-headers", "250", "--shard-sources", "100"]
    (result,) = run(growth.main, arguments, monkeypatch, capsys)["results"]
    assert (result["sources"], result["shards"]) == (250, 3)
    assert result["peak_megabytes"] >= result["listing_megabytes"] > 10


@pytest.mark.ray
@pytest.mark.usefixtures("one_node_ray")
def test_the_parts_of_a_clip_are_measured_as_far_as_the_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video, image = make_video(tmp_path / "v.mp4"), make_image(tmp_path / "i.jpg")
    record = run(decode.main, ["--parts", "--repeats", "1", str(video), str(image)], monkeypatch, capsys)
    results = [(result["codec"], result["as"]) for result in record["results"]]
    assert results == [("h264", "rows"), ("h264", "planes"), ("jpeg", "rows")]
    assert all(result["seconds"][part] > 0 for result in record["results"] for part in ("container", "arrow"))
    assert all(list(result["seconds"])[-2:] == ["arrow", "store"] for result in record["results"])


def test_every_way_of_decoding_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_video(tmp_path / "v.mp4", num_frames=30)
    record = run(decode.main, ["--repeats", "1", str(video)], monkeypatch, capsys)
    results, left_out = record["results"], record["config"]["left_out"]
    assert len({result["way"] for result in results} | left_out.keys()) == 10
    assert {"decord + transformers", "pyav sequential + transformers"}.isdisjoint(left_out)
    assert all(result["frames_per_core_second"] > 0 for result in results)


def test_what_going_on_saves_is_measured_with_what_splitting_a_file_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_video(tmp_path / "v.mp4", num_frames=75, gop=75)
    (result,) = run(reading.main, ["--seconds", "1", "--repeats", "1", str(video)], monkeypatch, capsys)["results"]
    assert (result["clips"], result["requests"], result["lead_in"]) == (3, 1, 0.0)
    assert min(result[way] for way in ("alone", "in requests", "in one row")) > 0


def test_last_clip_of_a_long_file_is_read_from_its_safe_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--minutes", "1", "--seconds", "20", "--repeats", "1"]
    results = run(last_clip.main, arguments, monkeypatch, capsys)["results"]
    assert [(result["file"], result["has_start"]) for result in results] == [
        ("long.mp4", False),
        ("long.mkv", True),
        ("no_cues.mkv", True),
    ]
    assert all(result["start_bytes"] < result["beginning_bytes"] for result in results[1:])


def test_keyframes_are_measured_beside_exact_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_video(tmp_path / "v.mp4", num_frames=50, gop=25, options={"x264-params": "scenecut=0"})
    (result,) = run(keyframes.main, ["--seconds", "2", "--repeats", "1", str(video)], monkeypatch, capsys)["results"]
    assert (result["clips"], result["frames"]) == (1, [4, 2])
    assert 0 < result["cosines"][0] <= 1.001


def test_a_prediction_stands_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(tmp_path / "v.mp4")
    arguments = [str(tmp_path), "--workers", "1", "--runner", "local"]
    (result,) = run(prediction.main, arguments, monkeypatch, capsys)["results"]
    assert (result["workers"], result["clips"], result["errors"]) == (1, 1, 0)
    assert min(result[name] for name in ("predicted_seconds", "own_rates_seconds", "decode_cpu_seconds")) > 0
