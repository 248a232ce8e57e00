import json
from pathlib import Path

import pytest

from pipeline.checkpoint import (
    FAMILIES,
    Preprocessing,
    VisionSpec,
    official_checkpoint,
    resolve_model,
    weight_files,
)
from pipeline.errors import ModelError, UsageError

VISION = {"depth": 2, "hidden_size": 128, "num_heads": 2, "intermediate_size": 256, "out_hidden_size": 64}
PROCESSOR = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
IMAGE_SIZE = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
VIDEO_SIZE = {"shortest_edge": 4_096, "longest_edge": 25_165_824}


def write_checkpoint(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    values = {"model_type": "qwen3_vl", "vision_config": VISION, **config}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"size": IMAGE_SIZE}))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"size": VIDEO_SIZE, "fps": 2}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_by_its_model_type(tmp_path: Path, family: str) -> None:
    checkpoint = resolve_model(str(write_checkpoint(tmp_path / family, model_type=family, architectures=["Whatever"])))
    assert checkpoint.vision.model_type == family
    assert checkpoint.preprocessing == Preprocessing()
    assert checkpoint.vision.deepstack_visual_indexes == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'; served are qwen3_vl, qwen3_vl_moe"),
        ({"vision_config": {"depth": 2}}, "vision_config lacks hidden_size"),
        ({"vision_config": VISION | {"hidden_act": "silu"}}, "hidden_act is 'silu'"),
        ({"vision_config": VISION | {"patch_size": 14}}, r"\(14, 2, 2\) in config.json"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_by_name(tmp_path: Path, changes: dict, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        resolve_model(str(write_checkpoint(tmp_path / "model", **changes)))


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "video_preprocessor_config.json"])
def test_a_missing_settings_file_is_named_and_no_default_takes_its_place(tmp_path: Path, missing: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        resolve_model(str(folder))


def test_processors_nested_in_one_file_are_read_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    nested = {
        "image_processor": json.loads((folder / "preprocessor_config.json").read_text()),
        "video_processor": json.loads((folder / "video_preprocessor_config.json").read_text()),
    }
    (folder / "preprocessor_config.json").unlink()
    (folder / "video_preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert resolve_model(str(folder)).preprocessing == Preprocessing()


def test_processors_that_would_be_computed_wrongly_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    settings = PROCESSOR | {"size": IMAGE_SIZE, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="do_normalize is False"):
        resolve_model(str(folder))


def test_a_revision_changes_with_the_weights_and_not_with_the_place(tmp_path: Path) -> None:
    first = resolve_model(str(write_checkpoint(tmp_path / "a")))
    second = resolve_model(str(write_checkpoint(tmp_path / "b")))
    changed = write_checkpoint(tmp_path / "c")
    (changed / "model.safetensors").write_bytes(b"other weights")
    assert first.revision == second.revision != resolve_model(str(changed)).revision


def test_only_shards_with_vision_weights_are_listed_and_none_outside_the_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    weight_map = {"model.visual.a": "2.safetensors", "lm_head.weight": "1.safetensors", "visual.b": "3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert [file.name for file in weight_files(folder)] == ["2.safetensors", "3.safetensors"]
    outside = {"weight_map": {"model.visual.a": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(ModelError, match="outside the checkpoint folder"):
        weight_files(folder)


def test_a_folder_with_pickled_weights_alone_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors are read"):
        weight_files(folder)


def test_random_weights_say_what_they_are() -> None:
    checkpoint = resolve_model("random:8b")
    assert checkpoint.is_random
    assert (checkpoint.vision.depth, checkpoint.vision.head_dim) == (27, 72)
    with pytest.raises(UsageError, match="random:tiny, random:2b, random:8b"):
        resolve_model("random:70b")


def test_a_hub_id_without_a_network_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="Give a checkpoint folder, or random:tiny"):
        resolve_model("nobody/no-such-model")


def test_the_cost_of_a_patch_is_the_sum_of_its_matrix_products() -> None:
    spec: VisionSpec = official_checkpoint().vision
    hidden, depth, frame = 1024, 24, 784
    block = 2 * (4 * hidden**2 + 2 * hidden * 4096 + 2 * frame * hidden)
    merger = 2 * (4096 * 4096 + 4096 * 2048) * 4 / 4
    assert spec.flops(4, frame) == 4 * (depth * block + 2 * 1536 * hidden + merger)
