from pathlib import Path

import pytest
import yaml

from pipeline.config import Config, load_config, presets_folder
from pipeline.errors import ConfigError


def test_a_file_then_overrides_then_the_model_apply_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("clips: {mode: stride, seconds: 5}\nmodel: random:2b\n")
    config = load_config(file, ["clips.seconds=7", "images.background=[0, 0, 0]"], "random:tiny")
    assert (config.clips.mode, config.clips.seconds, config.model) == ("stride", 7.0, "random:tiny")
    assert config.images.background == (0, 0, 0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("clip.mode=whole", "unknown key 'clip'; the nearest is 'clips.mode'"),
        ("clips.mod=whole", "unknown key 'clips.mod'; the nearest is 'clips.mode'"),
        ("frames.fsp=1", "the nearest is 'frames.fps'"),
        ("output.dtype=float23", "the nearest is 'float32'"),
        ("output.compact=lanse", "False, True or 'lance'; the nearest is 'lance'"),
        ("decode.video=decode", "the nearest is 'decord'"),
        ("frames.fps=-1", "frames.fps = -1: Input should be greater than 0"),
        ("clips", "expected section.key=value"),
        ("model.name=x", "model.name|model ="),
        ("clips.mode=[", "the value is not YAML"),
    ],
)
def test_a_bad_override_is_refused_with_what_would_be_valid(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")):
        load_config(None, [override])


def test_yaml_objects_are_refused_and_not_made(tmp_path: Path) -> None:
    trace, file = tmp_path / "ran", tmp_path / "evil.yaml"
    attack = f"!!python/object/apply:os.mkdir ['{trace}']"
    file.write_text(f"model: {attack}\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(file)
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(None, [f"model={attack}"])
    assert not trace.exists()
    yaml.unsafe_load(file.read_text())
    assert trace.exists()


def test_a_missing_file_names_the_presets() -> None:
    with pytest.raises(ConfigError, match="cluster, corpus, cpu, official"):
        load_config("no-such-preset")


@pytest.mark.parametrize("preset", sorted(presets_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_and_found_by_name(preset: Path) -> None:
    assert load_config(preset.stem) == Config.from_values(yaml.safe_load(preset.read_text()))


def test_the_official_preset_is_the_default() -> None:
    assert load_config("official") == Config()


def test_every_field_says_what_it_does() -> None:
    for section in Config.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        assert all(field.description for field in fields.values()), section


def test_only_what_decides_the_rows_binds_an_output() -> None:
    config = Config()
    faster = Config.from_values({"ray": {"decode_workers": 3}, "decode": {"video": "decord"}, "limits": {}})
    copied = Config.from_values({"output": {"compact": "lance"}})
    assert config.result_values == copied.result_values
    other = Config.from_values({"frames": {"fps": 1}})
    assert config.result_values == faster.result_values
    assert config.result_values != other.result_values


def test_only_a_precision_that_is_not_exact_is_among_what_decides_the_rows() -> None:
    assert "precision" not in Config().result_values["frames"]
    moved = Config.from_values({"frames": {"precision": "keyframe"}})
    assert moved.result_values["frames"]["precision"] == "keyframe"
