import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoint import official_checkpoint, resolve_model
from pipeline.encoder.encode import Encoder
from pipeline.encoder.weights import check_weights, load_tower
from pipeline.errors import ModelError

from .factories import (
    CPU,
    MIXED_GRIDS,
    make_checkpoint,
    make_output,
    make_pixels,
    make_rows,
    make_spec,
    randomise,
    relative_error,
    vision_config,
)

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 64,
    "pad_token_id": 0,
}
MOE = {"moe_intermediate_size": 32, "num_experts": 2, "num_experts_per_tok": 1}
HYBRID = {"layer_types": ["full_attention"]}
SHARED = {"shared_expert_intermediate_size": 32}
TEXTS = {
    "qwen3_vl": TEXT,
    "qwen3_vl_moe": TEXT | MOE,
    "qwen3_5": TEXT | HYBRID,
    "qwen3_5_moe": TEXT | HYBRID | MOE | SHARED,
}


def save_official(folder: Path, family: str, max_shard_size: str = "1GB") -> torch.nn.Module:
    """Save a tiny model as transformers does, processors and all; return the vision model it loads from there."""
    from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    deepstack = (0, 2) if family.startswith("qwen3_vl") else ()
    spec = make_spec(model_type=family, head_dim=72, deepstack_visual_indexes=deepstack)
    config = AutoConfig.for_model(family, vision_config=vision_config(spec), text_config=TEXTS[family])
    model = AutoModelForImageTextToText.from_config(config)
    randomise(model.model.visual)
    model.bfloat16().save_pretrained(folder, max_shard_size=max_shard_size)
    settings = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Qwen2VLImageProcessorPil(size={"shortest_edge": 65_536, "longest_edge": 16_777_216}, **settings).save_pretrained(
        folder
    )
    Qwen3VLVideoProcessor(size={"shortest_edge": 4_096, "longest_edge": 25_165_824}, **settings).save_pretrained(folder)
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).model.visual.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_official(folder, "qwen3_vl")
    return folder


@pytest.fixture
def editable(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved checkpoint whose files a test may change."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove vision tensors, named with `__` for dots."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        key = "model.visual." + name.replace("__", ".")
        weights.pop(key, None)
        if tensor is not None:
            weights[key] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path):
    """Load a tower, or be refused it, as the check of headers alone must have said."""
    checkpoint = resolve_model(str(folder))
    try:
        tower = load_tower(checkpoint, device=CPU, dtype=torch.float32)
    except ModelError as error:
        with pytest.raises(ModelError, match=f"^{re.escape(str(error))}$"):
            check_weights(checkpoint)
        raise
    check_weights(checkpoint)
    return tower


@torch.inference_mode()
def assert_same_outputs(folder: Path, visual: torch.nn.Module) -> None:
    pixels = make_pixels(MIXED_GRIDS)
    ours = load(folder)(pixels, MIXED_GRIDS, with_deepstack=True)
    for _ in range(2):  # their first pass in a process is off by 2e-5 at times (2 in 150, on a CPU); ours is not
        theirs = visual(pixels, grid_thw=torch.tensor(MIXED_GRIDS))
    expected = [theirs.pooler_output, *getattr(theirs, "deepstack_features", [])]
    assert max(map(relative_error, [ours.tokens, *ours.deepstack], expected)) <= 1e-5


@pytest.mark.parametrize("max_shard_size", ["1GB", "200KB"], ids=["one-file", "sharded"])
@pytest.mark.parametrize("family", list(TEXTS))
def test_a_checkpoint_saved_by_transformers_gives_its_outputs(tmp_path, family, max_shard_size):
    visual = save_official(tmp_path, family, max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "200KB")
    assert_same_outputs(tmp_path, visual)


def test_an_encoder_from_a_folder_gives_the_pooled_official_outputs(tmp_path):
    visual = save_official(tmp_path, "qwen3_vl")
    encoder = Encoder(resolve_model(str(tmp_path)), device=CPU, dtype=torch.float32, max_patches=1000)
    rows, grid = make_rows([(2, 4, 6)]), (2, 4, 6)
    with torch.inference_mode():
        tokens = visual((rows.float() - 127.5) / 127.5, grid_thw=torch.tensor([grid])).pooler_output
    vector = encoder.encode(rows, [grid], make_output("clip")).vectors
    assert relative_error(vector[0], tokens.mean(0)) <= 1e-5


def test_older_names_without_the_model_prefix_load_too(editable):
    expected = load(editable).state_dict()
    weights = load_file(editable / "model.safetensors")
    renamed = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
    save_file(renamed, editable / "model.safetensors", metadata={"format": "pt"})
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(editable).state_dict().items())


def test_loaded_weights_outlive_their_file(editable):
    tower = load_tower(resolve_model(str(editable)), device=CPU, dtype=torch.bfloat16)
    expected = tower.state_dict()["merger.norm.weight"].clone()
    file = editable / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(tower.state_dict()["merger.norm.weight"], expected)


def test_a_loaded_tower_is_frozen_in_the_dtype_asked_for(saved):
    tower = load_tower(resolve_model(str(saved)), device=CPU, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert tower.positions.inverse_frequencies.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"merger__norm__bias": None}, r"1 vision tensors.*merger\.norm\.bias is missing"),
        ({"blocks__9__norm1__bias": torch.zeros(144)}, r"model\.visual\.blocks\.9\.norm1\.bias is unexpected"),
        ({"pos_embed__weight": torch.zeros(64, 7)}, r"pos_embed\.weight has shape \[64, 7\], expected \[64, 144\]"),
        ({"patch_embed__proj__weight": torch.zeros(144, 1536)}, r"expected \[144, 3, 2, 16, 16\]"),
        ({"merger__norm__bias": torch.zeros(144, dtype=torch.int8)}, "has dtype I8, expected one of BF16"),
    ],
    ids=["missing", "extra", "mis-shaped", "flat patch weight", "quantised"],
)
def test_a_tensor_that_does_not_fit_is_named(editable, changes, expected):
    edit_weights(editable, **changes)
    with pytest.raises(ModelError, match=expected):
        load(editable)


def test_many_problems_are_counted_and_the_first_are_listed(editable):
    config = json.loads((editable / "config.json").read_text())
    config["vision_config"]["depth"] = 2
    (editable / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r": 12 vision tensors.*blocks\.2\..*is unexpected; \.\.\.") as caught:
        load(editable)
    assert str(caught.value).count("unexpected") == 5


def test_a_tensor_under_two_names_is_refused(editable):
    weights = load_file(editable / "model.safetensors")
    weights["visual.merger.norm.bias"] = torch.zeros(144)
    save_file(weights, editable / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"visual\.merger\.norm\.bias.*more than once"):
        load(editable)


def test_a_broken_file_is_named(editable):
    (editable / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"):
        load(editable)


class Burglar:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_and_code_in_a_checkpoint_folder_are_never_run(editable, tmp_path):
    trace = tmp_path / "ran"
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt", "visual.safetensors.bin"):
        torch.save({"model.visual.merger.norm.bias": Burglar(trace)}, editable / name)
    (editable / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    for name in ("config.json", "preprocessor_config.json"):
        settings = json.loads((editable / name).read_text())
        auto = {"AutoModel": "modeling_evil.Evil", "AutoProcessor": "modeling_evil.Evil"}
        (editable / name).write_text(json.dumps(settings | {"auto_map": auto, "trust_remote_code": True}))
    load(editable)
    (editable / "model.safetensors").write_bytes((editable / "pytorch_model.bin").read_bytes())
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load(editable)
    assert not trace.exists()
    torch.load(editable / "model.pt", weights_only=False)  # the attack is one: whoever opens that file runs it
    assert trace.exists()


def test_another_family_is_refused(editable):
    config = json.loads((editable / "config.json").read_text())
    (editable / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_5_vl"}))
    with pytest.raises(ModelError, match=r"model_type is 'qwen2_5_vl'; served are qwen3_vl"):
        load(editable)


def test_random_weights_are_the_same_each_time_whatever_the_dtype():
    first = load_tower(make_checkpoint(), device=CPU, dtype=torch.float32).state_dict()
    second = load_tower(make_checkpoint(), device=CPU, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor.bfloat16(), second[name]) for name, tensor in first.items())


def test_random_weights_have_these_very_values():
    weights = load_tower(resolve_model("random:tiny"), device=CPU, dtype=torch.float32).state_dict()
    assert torch.equal(weights["blocks.0.norm1.weight"], torch.ones(128))
    assert torch.equal(weights["blocks.0.norm1.bias"], torch.zeros(128))
    assert weights["patch_embed.proj.weight"].std().item() == pytest.approx(1536**-0.5, rel=0.01)
    drawn_first = torch.tensor([-0.00256384, -0.02450631, 0.01697967])
    assert torch.allclose(weights["blocks.0.attn.proj.bias"][:3], drawn_first, atol=1e-7)


def test_a_recipe_without_weights_does_not_become_noise():
    with pytest.raises(ModelError, match="only its recipe is known"):
        load_tower(official_checkpoint(), device=CPU, dtype=torch.float32)
