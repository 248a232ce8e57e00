import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import patchwire
from tests.faults import processes
from tests.media_factory import make_image, make_video


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    make_video(folder / "v.mp4", num_frames=33)
    make_image(folder / "i.png")
    (folder / "not media.txt").write_text("text")
    return folder


@pytest.fixture(scope="module")
def done(media: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("out") / "OUT"
    return out, processes.patchwire("embed", media, "--out", out, "--model", "random:tiny", "--runner", "local")


def test_embed_ends_with_counts_the_bottleneck_and_the_next_command(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, finished = done
    assert finished.returncode == 3
    assert "3 sources: 0 were there, 2 new rows, 1 errors" in finished.stdout
    assert "limited by" in finished.stdout
    assert f"next:  patchwire errors {out}" in finished.stdout
    assert "random weights" in finished.stdout
    assert "clips 2/2" in finished.stderr


def test_the_version_is_the_packages() -> None:
    done = processes.patchwire("--version")
    assert (done.returncode, done.stdout.split()) == (0, ["patchwire", version("patchwire")])


def test_a_plan_is_made_without_torch_and_ray(media: Path) -> None:
    command = "import sys; from pipeline.cli.app import app; app(standalone_mode=False); print(*sys.modules)"
    arguments = [sys.executable, "-c", command, "plan", str(media), "--model", "random:tiny"]
    finished = subprocess.run(arguments, capture_output=True, text=True, timeout=170, check=True)
    assert not {"torch", "ray", "decord"} & set(finished.stdout.splitlines()[-1].split())


def test_verify_and_errors_read_the_output_back(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = done
    verified = patchwire("verify", out, "--json")
    assert (verified.returncode, json.loads(verified.stdout)["ok"]) == (0, True)
    errors = patchwire("errors", out)
    assert errors.returncode == 0
    assert "unsupported_media: 1" in errors.stdout
    assert "not media.txt" in errors.stdout


def test_verify_finds_a_lost_fragment_and_exits_with_one(media: Path, tmp_path: Path) -> None:
    patchwire("embed", media / "i.png", "--out", tmp_path / "OUT", "--model", "random:tiny", "--runner", "local")
    next((tmp_path / "OUT" / "embeddings").glob("*.parquet")).unlink()
    verified = processes.patchwire("verify", tmp_path / "OUT")
    assert verified.returncode == 1
    assert "NOT ok" in verified.stdout


def test_plan_prints_counts_and_shapes_and_needs_no_model(media: Path) -> None:
    planned = json.loads(patchwire("plan", media, "--json").stdout)
    assert (planned["num_sources"], planned["num_clip_rows"], planned["num_failures"]) == (3, 2, 1)
    assert planned["num_patches"] == sum(shape["num_patches"] for shape in planned["shapes"])
    assert planned["flops"] > 0
    assert planned["prediction"]["seconds"] > 0
    assert planned["prediction"]["cost"] is None
    rows = max(shape["most_patches"] for shape in planned["shapes"]) * 768
    assert planned["prediction"]["device_memory_bytes"] > rows
    as_text = patchwire("plan", media, "--cores", 96, "--gpus", 4, "--core-price", 40, "--gpu-price", 2_000).stdout
    assert "at the prices given" in as_text
    assert "TFLOP" in as_text
    assert "unsupported_media" in as_text
    assert "on 4 GPUs and 96 cores; " in as_text
    assert "-bound" in as_text


def test_plan_predicts_with_the_rates_of_an_earlier_run(
    media: Path, done: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out, _ = done
    rates = json.loads((out / "run.json").read_text())["rates"]
    assert rates.keys() == {"decode_pace", "core_flops_per_second"}
    assert min(rates.values()) > 0
    planned = patchwire("plan", media, "--model", "random:tiny", "--rates", out)
    assert f"rates: core_flops_per_second, decode_pace by {out}" in planned.stdout
    refused = patchwire("plan", media, "--rates", tmp_path)
    assert refused.returncode == 1
    assert "expected an output" in refused.stderr


def test_inspect_shows_what_the_encoder_would_see(media: Path, tmp_path: Path) -> None:
    finished = patchwire("inspect", media / "v.mp4", "--npz", tmp_path / "v.npz", "--png", tmp_path / "v.png")
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    clip = json.loads(line)
    assert (clip["media_type"], clip["num_frames"], clip["fps"]) == ("video", 33, 25.0)
    assert len(clip["frame_indices"]) == 4
    assert len(clip["timestamps_seconds"]) == clip["grid_thw"][0] == 2
    with np.load(tmp_path / "v.npz") as stored:
        arrays = dict(stored)
    assert arrays["patch_rows_0"].shape == (clip["num_patches"], 1536)
    assert arrays["patch_rows_0"].dtype == np.uint8
    assert arrays["grid_thw"].tolist() == [clip["grid_thw"]]
    with Image.open(tmp_path / "v.png") as sheet:
        assert sheet.size == (4 * clip["resized_width"], clip["resized_height"])


def test_inspect_prints_a_line_for_each_clip(media: Path) -> None:
    finished = patchwire("inspect", media / "v.mp4", "--set", "clips.mode=stride", "--set", "clips.seconds=0.5")
    starts = [json.loads(line)["start_seconds"] for line in finished.stdout.splitlines()]
    assert starts == [0.0, 0.52, 1.0]


def test_an_images_patch_rows_hold_its_frame_twice(media: Path, tmp_path: Path) -> None:
    patchwire("inspect", media / "i.png", "--npz", tmp_path / "i.npz")
    with np.load(tmp_path / "i.npz") as arrays:
        rows = arrays["patch_rows_0"].reshape(-1, 3, 2, 256)
    assert np.array_equal(rows[:, :, 0], rows[:, :, 1])


def test_inspect_of_a_bad_file_says_why_and_what_to_do(media: Path) -> None:
    finished = patchwire("inspect", media / "not media.txt")
    assert finished.returncode == 1
    assert "unsupported_media" in finished.stderr
    assert "Convert it" in finished.stderr


def test_a_command_that_lacks_an_argument_exits_with_two() -> None:
    done = processes.patchwire("embed")
    assert done.returncode == 2
    assert "Missing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "{media}", "--out", "{out}", "--runner", "spark"], "spark"),
        (["embed", "{media}/nothing", "--out", "{out}", "--model", "random:tiny", "--runner", "local"], "nothing"),
        (["plan", "{media}", "--model", "random:foo"], "random:tiny, random:2b, random:8b"),
        (["embed", "{media}", "--out", "{out}", "--model", "random:foo"], "random:tiny, random:2b, random:8b"),
        (["prepare", "{media}", "--out", "{out}", "--model", "random:foo"], "random:tiny, random:2b, random:8b"),
        (["plan", "{media}", "--set", "clips.mod=whole"], "the nearest is 'clips.mode'"),
        (["plan", "{media}", "--set", "clips.mode=strid"], "the nearest is 'stride'"),
        (["plan", "{media}", "--config", "corpse"], "Presets that can be named: cluster, corpus, cpu, official"),
    ],
)
def test_wrong_usage_exits_with_two_and_names_the_fault(
    media: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    finished = patchwire(*(argument.format(media=media, out=tmp_path / "OUT") for argument in arguments))
    assert finished.returncode == 2
    assert says in finished.stderr
    assert not (tmp_path / "OUT").exists()


def test_a_model_that_cannot_be_had_exits_with_one(media: Path, tmp_path: Path) -> None:
    finished = patchwire("embed", media, "--out", tmp_path / "OUT", "--model", tmp_path / "none", "--runner", "local")
    assert finished.returncode == 1
    assert "no such folder" in finished.stderr
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("preset", ["official", "corpus", "cpu", "cluster"])
def test_every_preset_plans(media: Path, preset: str) -> None:
    assert patchwire("plan", media, "--config", preset, "--json").returncode == 0


def test_doctor_finds_nothing_wrong_here() -> None:
    finished = processes.patchwire("doctor", "--json")
    assert finished.returncode == 0, finished.stdout
    assert all(check["ok"] for check in json.loads(finished.stdout))


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "\x1b]0;owned\x07.mp4").write_text("x")
    finished = patchwire("plan", tmp_path / "m")
    assert "\x1b" not in finished.stdout
    assert r"\x1b]0;owned" in finished.stdout


def test_errors_of_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    finished = processes.patchwire("errors", tmp_path)
    assert finished.returncode == 1
    assert "expected an output of `patchwire embed`, found none" in finished.stderr


def test_inspect_refuses_an_output_that_cannot_be_written_before_it_decodes(media: Path, tmp_path: Path) -> None:
    finished = patchwire("inspect", media / "i.png", "--npz", tmp_path / "none" / "i.npz")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "does not exist" in finished.stderr
