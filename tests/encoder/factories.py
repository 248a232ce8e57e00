"""Small towers, requests and checkpoints for the encoder's tests. transformers is imported by `official` alone."""

from collections.abc import Sequence

import torch

from pipeline.checkpoint import Checkpoint, Preprocessing, VisionSpec
from pipeline.config import OutputConfig
from pipeline.encoder.counts import num_patches
from pipeline.encoder.encode import Encoder
from pipeline.encoder.kernels import Kernels
from pipeline.encoder.tower import VisionTower

CPU = torch.device("cpu")
# One temporal patch, many, equal neighbours, equal areas of other shapes, and sides beyond the position table.
MIXED_GRIDS = ((1, 4, 4), (3, 4, 6), (2, 4, 6), (2, 6, 4), (1, 2, 14), (1, 10, 10))


def make_spec(head_dim: int = 64, **changes: object) -> VisionSpec:
    values: dict[str, object] = {
        "model_type": "qwen3_vl",
        "depth": 3,
        "hidden_size": 2 * head_dim,
        "num_heads": 2,
        "intermediate_size": 192,
        "out_hidden_size": 48,
        "deepstack_visual_indexes": (0, 2),
        "num_position_embeddings": 64,
    }
    return VisionSpec(**(values | changes))


def make_checkpoint(spec: VisionSpec | None = None, **changes: object) -> Checkpoint:
    values: dict[str, object] = {
        "model_id": "random:test",
        "revision": "test",
        "folder": None,
        "vision": spec or make_spec(),
        "preprocessing": Preprocessing(),
    }
    return Checkpoint(**(values | changes))


def make_encoder(spec: VisionSpec | None = None, max_patches: int = 100_000, **changes: object) -> Encoder:
    values: dict[str, object] = {"device": CPU, "dtype": torch.float32}
    return Encoder(make_checkpoint(spec), max_patches=max_patches, **(values | changes))


def make_rows(grid_thw: Sequence[Sequence[int]], row_bytes: int = 1536, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_patches(grid_thw), row_bytes), dtype=torch.uint8, generator=generator)


def make_pixels(grid_thw: Sequence[Sequence[int]], seed: int = 0) -> torch.Tensor:
    return make_rows(grid_thw, seed=seed).float() / 127.5 - 1


def make_output(level: str = "token", **changes: object) -> OutputConfig:
    return OutputConfig.model_validate({"level": level, "normalize": False} | changes)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights that make every part of a model matter: no zero biases, norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        is_norm_weight = "norm" in name and name.endswith("weight")
        parameter.data = 1 + 0.2 * noise if is_norm_weight else 0.08 * noise


def official(spec: VisionSpec, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The vision model that transformers has for this family and these dimensions."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionConfig, Qwen3_5VisionModel
    from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeVisionConfig, Qwen3_5MoeVisionModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionConfig, Qwen3VLVisionModel
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionConfig, Qwen3VLMoeVisionModel

    config_class, model_class = {
        "qwen3_vl": (Qwen3VLVisionConfig, Qwen3VLVisionModel),
        "qwen3_vl_moe": (Qwen3VLMoeVisionConfig, Qwen3VLMoeVisionModel),
        "qwen3_5": (Qwen3_5VisionConfig, Qwen3_5VisionModel),
        "qwen3_5_moe": (Qwen3_5MoeVisionConfig, Qwen3_5MoeVisionModel),
    }[spec.model_type]
    model = model_class(config_class(**vision_config(spec))).eval()
    randomise(model)
    model.to(dtype)
    # `from_pretrained` keeps the frequencies in float32 whatever the dtype; `.to` above did not.
    model.rotary_pos_emb = type(model.rotary_pos_emb)(model.config)
    return model


def vision_config(spec: VisionSpec) -> dict[str, object]:
    names = ["depth", "hidden_size", "num_heads", "intermediate_size", "out_hidden_size", "num_position_embeddings"]
    config: dict[str, object] = {name: getattr(spec, name) for name in names}
    if spec.model_type.startswith("qwen3_vl"):
        config["deepstack_visual_indexes"] = list(spec.deepstack_visual_indexes)
    return config


def tower_like(model: torch.nn.Module, spec: VisionSpec, kernels: Kernels | None = None) -> VisionTower:
    """Our tower with an official model's weights."""
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    tower = VisionTower(spec, kernels).to(state["pos_embed.weight"].dtype)
    # Likewise: `load_tower` keeps the frequencies in float32.
    tower.positions = VisionTower(spec).positions
    tower.load_state_dict(state)
    tower.arrange()
    return tower.requires_grad_(False).eval()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
