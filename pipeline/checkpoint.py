"""What a checkpoint says about itself, read without its weights.

`--model` names a folder, a hub id or seeded random weights; all three become one `Checkpoint`: the vision
tower's dimensions, the numbers of the image and video processors, and a revision that ends up beside every
vector. Families are told apart by `model_type`, never by class name. The processor files are required:
the class defaults in transformers differ badly from what the checkpoints ship.
Source: transformers 5.23, models/qwen3_vl and models/qwen3_5.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from pipeline.digest import digest_bytes, digest_values
from pipeline.errors import ModelError, UsageError

DEFAULT_MODEL = "Qwen/Qwen3-VL-2B-Instruct"
FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
VISION_PREFIXES = ("model.visual.", "visual.")
RANDOM_PREFIX = "random:"
RANDOM_SEED = 20260101
_JSON_FILES = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_FINGERPRINT_BYTES = 1 << 20


def _require(where: str, settings: dict[str, Any], **expected: object) -> None:
    """Refuse a setting that would be computed wrongly without a word; one that is absent has its usual value."""
    for key, value in expected.items():
        found = settings.get(key)
        if found is not None and found != value:
            raise ModelError(f"{where}: {key} is {found!r}; Patchwire computes with {value!r} alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """Dimensions of a vision tower, all plain integers, as in `vision_config`."""

    model_type: str
    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]
    num_position_embeddings: int = 2304
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Values of one patch row as the encoder sees it (1536)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_patches(self) -> int:
        """Patches that become one output token (4)."""
        return self.spatial_merge_size**2

    def flops(self, num_patches: int, patches_per_frame: int) -> int:
        """Multiply-adds counted twice, for patches whose attention spans one temporal patch."""
        hidden, merged = self.hidden_size, self.hidden_size * self.merged_patches
        block = 4 * hidden * hidden + 2 * hidden * self.intermediate_size + 2 * patches_per_frame * hidden
        merger = (merged * merged + merged * self.out_hidden_size) * (1 + len(self.deepstack_visual_indexes))
        return (
            2 * num_patches * (self.depth * block + self.patch_values * hidden)
            + 2 * (num_patches // self.merged_patches) * merger
        )

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> Self:
        """Read `config.json`. Raises ModelError for another family or a missing dimension."""
        model_type = config.get("model_type")
        if model_type not in FAMILIES:
            raise ModelError(f"{where}: model_type is {model_type!r}; served are {', '.join(FAMILIES)}")
        vision = config.get("vision_config") or {}
        names = ("depth", "hidden_size", "num_heads", "intermediate_size", "out_hidden_size")
        optional = ("num_position_embeddings", "in_channels", "patch_size", "temporal_patch_size", "spatial_merge_size")
        missing = [name for name in names if name not in vision]
        if missing:
            raise ModelError(f"{where}: vision_config lacks {', '.join(missing)}")
        _require(f"{where}: vision_config", vision, hidden_act="gelu_pytorch_tanh")
        _require(f"{where}: vision_config.rope_parameters", vision.get("rope_parameters") or {}, rope_theta=10_000.0)
        return cls(
            model_type=model_type,
            deepstack_visual_indexes=tuple(vision.get("deepstack_visual_indexes") or ()),
            **{name: int(vision[name]) for name in names + optional if name in vision},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """The numbers of a checkpoint's image and video processors.

    Pixel bounds count height x width for an image, and frames x height x width for a video.
    """

    image_min_pixels: int = 65_536
    image_max_pixels: int = 16_777_216
    video_min_pixels: int = 4_096
    video_max_pixels: int = 25_165_824
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def factor(self) -> int:
        """Pixels that both sides of a resized frame are multiples of (32)."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_files(cls, image: dict[str, Any], video: dict[str, Any], where: str) -> Self:
        """Read both processors' settings. Raises ModelError where they contradict each other or lack a size."""
        for name, settings in (("image", image), ("video", video)):
            size = settings.get("size") or {}
            if not {"shortest_edge", "longest_edge"} <= size.keys():
                raise ModelError(f"{where}: the {name} processor's size lacks shortest_edge or longest_edge: {size}")
            fixed = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
            _require(f"{where}: the {name} processor", settings, **fixed)
        shared = {
            "patch_size": ("patch_size", int),
            "temporal_patch_size": ("temporal_patch_size", int),
            "merge_size": ("merge_size", int),
            "mean": ("image_mean", tuple),
            "std": ("image_std", tuple),
        }
        values: dict[str, Any] = {}
        for name, (key, kind) in shared.items():
            if key not in image or key not in video or image[key] != video[key]:
                raise ModelError(
                    f"{where}: {key} is {image.get(key)!r} for images and {video.get(key)!r} for videos; "
                    "one tower needs one value in both processor files"
                )
            values[name] = kind(image[key])
        return cls(
            image_min_pixels=int(image["size"]["shortest_edge"]),
            image_max_pixels=int(image["size"]["longest_edge"]),
            video_min_pixels=int(video["size"]["shortest_edge"]),
            video_max_pixels=int(video["size"]["longest_edge"]),
            **{name: kind(video[name]) for name, kind in _VIDEO_SAMPLING if video.get(name) is not None},
            **values,
        )


_VIDEO_SAMPLING: tuple[tuple[str, type], ...] = (("fps", float), ("min_frames", int), ("max_frames", int))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as the pipeline knows it before any weight is read.

    `folder` is None for random weights. `model_id` and `revision` are written beside every vector.
    """

    model_id: str
    revision: str
    folder: Path | None
    vision: VisionSpec
    preprocessing: Preprocessing

    @property
    def is_random(self) -> bool:
        """Whether the weights are seeded noise."""
        return self.folder is None

    @property
    def reference(self) -> str:
        """What another process passes to `resolve_model` to get the same checkpoint."""
        is_path = self.is_random or Path(self.model_id).exists()
        return self.model_id if is_path else f"{self.model_id}@{self.revision}"


_RANDOM: dict[str, VisionSpec] = {
    "tiny": VisionSpec(
        model_type="qwen3_vl",
        depth=2,
        hidden_size=128,
        num_heads=2,
        intermediate_size=256,
        out_hidden_size=64,
        deepstack_visual_indexes=(0,),
    ),
    "2b": VisionSpec(
        model_type="qwen3_vl",
        depth=24,
        hidden_size=1024,
        num_heads=16,
        intermediate_size=4096,
        out_hidden_size=2048,
        deepstack_visual_indexes=(5, 11, 17),
    ),
    "8b": VisionSpec(
        model_type="qwen3_vl",
        depth=27,
        hidden_size=1152,
        num_heads=16,
        intermediate_size=4304,
        out_hidden_size=4096,
        deepstack_visual_indexes=(8, 16, 24),
    ),
}


def official_checkpoint() -> Checkpoint:
    """The default model's dimensions and recipe, without its files: enough to plan and to inspect."""
    return Checkpoint(
        model_id=DEFAULT_MODEL,
        revision="recipe-only",
        folder=None,
        vision=_RANDOM["2b"],
        preprocessing=Preprocessing(),
    )


@cache
def resolve_model(model: str | None) -> Checkpoint:
    """Find a checkpoint and read what it says about itself.

    Args:
        model: a folder, a hub id (`name` or `name@revision`), `random:tiny|2b|8b`, or None for the default.
    Raises: ModelError when it cannot be found, fetched or served; UsageError for random weights of another size.
    Cost: a few small files; from a hub, the shards that hold vision weights are downloaded too.
    """
    name = model or DEFAULT_MODEL
    if name.startswith(RANDOM_PREFIX):
        return _random_checkpoint(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _read_folder(str(folder.resolve()), folder.resolve(), _fingerprint(folder))
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"model {name}: no such folder")
    model_id, _, revision = name.partition("@")
    snapshot = _download(model_id, revision or None)
    return _read_folder(model_id, snapshot, snapshot.name)


def _random_checkpoint(name: str) -> Checkpoint:
    size = name.removeprefix(RANDOM_PREFIX)
    if size not in _RANDOM:
        raise UsageError(
            f"model {name}: random weights come as {', '.join(RANDOM_PREFIX + known for known in _RANDOM)}"
        )
    revision = f"seed-{RANDOM_SEED}"
    return Checkpoint(
        model_id=name, revision=revision, folder=None, vision=_RANDOM[size], preprocessing=Preprocessing()
    )


def _read_folder(model_id: str, folder: Path, revision: str) -> Checkpoint:
    vision = VisionSpec.from_config(_read_json(folder / "config.json"), str(folder))
    image, video = _processor_settings(folder)
    preprocessing = Preprocessing.from_files(image, video, str(folder))
    expected = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    found = (preprocessing.patch_size, preprocessing.temporal_patch_size, preprocessing.merge_size)
    if expected != found:
        raise ModelError(
            f"{folder}: patch, temporal patch and merge size are {expected} in config.json "
            f"and {found} in the processor files"
        )
    return Checkpoint(model_id=model_id, revision=revision, folder=folder, vision=vision, preprocessing=preprocessing)


def _processor_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both processors, from a file each (as the hub has them) or nested in processor_config.json."""
    nested = _read_json(folder / "processor_config.json") if (folder / "processor_config.json").exists() else {}
    found: list[dict[str, Any]] = []
    for file, key in (
        ("preprocessor_config.json", "image_processor"),
        ("video_preprocessor_config.json", "video_processor"),
    ):
        if (folder / file).exists():
            found.append(_read_json(folder / file))
        elif nested.get(key):
            found.append(nested[key])
        else:
            raise ModelError(
                f"{folder}: {file} is missing; without it the sizes the model was trained with are unknown. "
                "Copy it from the model's repository"
            )
    return found[0], found[1]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder that hold vision weights, sorted by name.

    Raises: ModelError when there is none, or the index is broken.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index).get("weight_map") or {}
        names = {file for key, file in weight_map.items() if key.startswith(VISION_PREFIXES)}
        files = sorted(folder / name for name in names)
    else:
        files = sorted(folder.glob("*.safetensors"))
    if any(file.parent != folder for file in files):
        raise ModelError(f"{index}: a shard lies outside the checkpoint folder")
    if not files:
        raise ModelError(f"{folder}: no safetensors file with vision weights (only safetensors are read)")
    return files


def _fingerprint(folder: Path) -> str:
    """A revision for a folder without one: its settings, and each weight file's size, head and tail."""
    settings = [file.read_text(encoding="utf-8") for name in _JSON_FILES if (file := folder / name).exists()]
    shards = [(file.name, file.stat().st_size, _ends(file)) for file in sorted(folder.glob("*.safetensors"))]
    return digest_values(settings, shards)


def _ends(file: Path) -> str:
    with file.open("rb") as stream:
        head = stream.read(_FINGERPRINT_BYTES)
        stream.seek(max(0, file.stat().st_size - _FINGERPRINT_BYTES))
        return digest_bytes([head, stream.read()])


def _download(model_id: str, revision: str | None) -> Path:
    """Fetch the settings, then only the shards with vision weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = fetch(*_JSON_FILES, "model.safetensors.index.json")
        if (folder / "model.safetensors.index.json").exists():
            return fetch(*(file.name for file in weight_files(folder)))
        return fetch("*.safetensors")
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {model_id}: no such folder, and the hub could not be used ({type(error).__name__}). "
            "Give a checkpoint folder, or random:tiny to try the pipeline without weights"
        ) from error
