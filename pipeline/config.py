"""Typed settings: YAML or Python in, one frozen `Config` out, saved with every output.

Each field's description gives its unit and its effect. An unknown key or a bad value is refused by
name, with the nearest key that exists. Only what decides the vectors enters `Config.result_values`, the part
that an output folder is bound to; how fast they are made may change from run to run.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError


def _positive_or_none(**kwargs: Any) -> Any:
    return Field(default=None, gt=0, **kwargs)


class Section(BaseModel):
    """Base of all sections: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourcesConfig(Section):
    """Which files of a folder are media to embed."""

    include: tuple[str, ...] = Field(default=("*",), description="File name patterns taken from folders.")
    exclude: tuple[str, ...] = Field(default=(), description="File name patterns left out of folders.")
    hidden: bool = Field(default=False, description="Take files and folders whose names begin with a dot.")
    members: tuple[str, ...] = Field(default=("*",), description="Name patterns of the members taken from tar shards.")
    follow_outside: bool = Field(
        default=False,
        description="Follow links, and relative manifest paths, that leave the folder they were found in.",
    )
    shard_sources: int = Field(
        default=32_768,
        gt=0,
        description="Sources planned at a time, while those before them are done; each costs the driver some 150 MB "
        "while it is planned. Equal files are looked for among them.",
    )
    shard_bytes: int = Field(
        default=256 << 30, gt=0, description="Bytes of the sources planned at a time: long videos become many clips."
    )


class ClipsConfig(Section):
    """How a video is cut into clips."""

    mode: Literal["whole", "stride"] = Field(default="whole", description="One clip a video, or one every `seconds`.")
    seconds: float = Field(default=10.0, gt=0, description="Length of a clip in `stride` mode, in seconds.")


class FramesConfig(Section):
    """Which frames of a clip are looked at. None means: as the checkpoint's video processor says."""

    fps: float | None = _positive_or_none(description="Frames sampled a second of video.")
    min_frames: int | None = _positive_or_none(description="At least this many frames a clip, if it has them.")
    max_frames: int | None = _positive_or_none(description="At most this many frames a clip.")
    sampling: Literal["index", "time"] = Field(
        default="index",
        description="`index`: evenly over frame numbers (official). `time`: the frame on screen at even times; "
        "they differ where the frame rate varies.",
    )
    precision: Literal["exact", "keyframe"] = Field(
        default="exact",
        description="`exact`: the sampled frames. `keyframe`: of each sampled frame the nearest keyframe in the clip, "
        "each once: a fraction of the decoding, fewer and other frames, other vectors. A clip without a keyframe stays "
        "exact. Headers cost more: every packet is read, about 1 ms of a core a second of video.",
    )

    @property
    def keyframes_only(self) -> bool:
        """Whether clips are made of keyframes, where they have any."""
        return self.precision == "keyframe"


class SizesConfig(Section):
    """How large a frame is when the encoder sees it."""

    policy: Literal["hf", "hf_capped", "qwen_utils"] = Field(
        default="hf",
        description="`hf`: transformers' default. `hf_capped`: its cap_pixels_per_frame. `qwen_utils`: qwen-vl-utils.",
    )
    max_tokens_per_frame: int | None = _positive_or_none(
        description="Upper bound on merged tokens (32 x 32 pixels each) of one frame or image; None leaves it open."
    )


_Byte = Annotated[int, Field(ge=0, le=255)]


class ImagesConfig(Section):
    """What becomes of images that are not plain RGB."""

    background: tuple[_Byte, _Byte, _Byte] = Field(
        default=(255, 255, 255), description="RGB colour, 0-255, that transparent pixels are laid over."
    )
    animated: Literal["first", "video"] = Field(
        default="first", description="An animated image is its first frame, or a video of all of them."
    )


Device = Literal["cpu", "cuda"]


class DecodeConfig(Section):
    """How media are decoded. Every backend gives the same bytes."""

    video: Literal["auto", "pyav", "decord"] = Field(
        default="auto",
        description="`auto` is PyAV with exact skipping, then decord where PyAV opened a file and got no frame.",
    )
    gpu: Literal["never", "auto"] = Field(
        default="never",
        description="`auto`: where the encoder runs on a GPU with decoders of its own (NVDEC), they take the H.264 and "
        "HEVC videos that they can decode to the same bytes, as many as they have time for; decoder `nvdec`.",
    )
    gpu_decoders: int = Field(
        default=8,
        gt=0,
        le=64,
        description="With `gpu`: clips decoded at once on a GPU, and requests handed to it ahead of time.",
    )
    planes: Literal["auto", "never"] = Field(
        default="auto",
        description="`auto`: where the encoder runs on a GPU, a video clip whose decoded planes (8-bit 4:2:0) are at "
        "most half as large again as its patch rows is sent as planes, and the GPU makes the rows: the same bytes, "
        "less work for the CPU. `never`: patch rows always.",
    )
    timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="Deadline for one clip, in seconds, beside its share of the video's length.",
    )
    timeout_per_video_second: float = Field(
        default=1.0,
        ge=0,
        le=3_600,
        description="Seconds added to the deadline for each second of video read for a clip.",
    )

    def sends_planes(self, device: Device) -> bool:
        """Whether clips may travel as planes to an encoder on a device."""
        return device == "cuda" and self.planes == "auto"


class LimitsConfig(Section):
    """What a medium may ask for, checked before memory is allocated."""

    max_file_bytes: int = Field(default=64 << 30, gt=0, description="Bytes of one file.")
    max_image_pixels: int = Field(default=89_478_485, gt=0, description="Width x height of one image.")
    max_video_pixels: int = Field(default=16_777_216, gt=0, description="Width x height of one video frame.")
    max_video_frames: int = Field(default=10_000_000, gt=0, description="Frames of one video.")
    max_video_seconds: float = Field(default=172_800.0, gt=0, description="Length of one video, in seconds.")
    max_decoder_bytes: int = Field(
        default=8 << 30,
        gt=0,
        description="Address space a decoder process may add to its own and a request's buffer, in bytes.",
    )


class ErrorsConfig(Section):
    """When a run that is going wrong stops by itself; it can be taken up again."""

    max_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Stop when more than this share of the sources, or of the clips done so far, failed. None: never.",
    )
    min_clips: int = Field(
        default=100, gt=0, description="Judge `max_rate` only from this many sources or finished clips on."
    )


class RequestConfig(Section):
    """How clips are packed into requests."""

    max_patches: int = Field(
        default=49_152,
        gt=0,
        description="Patches of one request: 1,536 bytes each for video, 768 for images. A larger clip is its own "
        "request. Larger requests keep a GPU busier; smaller ones lose less on a fault.",
    )


Arithmetic = Literal["float32", "bfloat16", "float8"]


class EncodeConfig(Section):
    """Where and how the encoder runs."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="`auto` takes CUDA where there is one.")
    dtype: Literal["auto", "float32", "bfloat16", "float8"] = Field(
        default="auto",
        description="Encoder arithmetic: `auto` is bfloat16 on CUDA and float32 on a CPU; all runs of an output must "
        "compute in what it was begun with. `float8`: bfloat16, with the blocks' matrix products in 8 bits; a model "
        "that this changes too much is refused.",
    )
    float8_least_cosine: float = Field(
        default=0.999,
        gt=0,
        le=1,
        description="With dtype `float8`: the least cosine to bfloat16 of the worst calibration picture.",
    )
    max_patches: int | None = _positive_or_none(
        description="Patches of one forward pass; a larger request is encoded in chunks of whole temporal patches. "
        "None: at most 65,536, and what fits into 40 % of the device memory that is free at the start.",
    )
    register_store: Literal["auto", "never"] = Field(
        default="auto",
        description="`auto` page-locks Ray's object store once an encode actor, at about 0.8 s a GiB, so that requests "
        "reach the GPU without a memcpy; above 32 GiB, or where CUDA refuses, pinned slots serve, as with `never`.",
    )
    threads: int | None = _positive_or_none(
        le=1024, description="CPU threads of the encoder. None: every core. The same number gives the same bits."
    )

    def arithmetic(self, device: Device) -> Arithmetic:
        """What the encoder computes in on a device."""
        if self.dtype == "auto":
            return "bfloat16" if device == "cuda" else "float32"
        return self.dtype


class OutputConfig(Section):
    """What comes back."""

    level: Literal["clip", "frame", "token"] = Field(
        default="clip", description="A vector a clip, a temporal patch (two frames), or a merged token."
    )
    dtype: Literal["float16", "float32"] = Field(default="float32", description="Type of the stored vectors.")
    normalize: bool = Field(default=True, description="Scale each vector to length 1.")
    deepstack: bool = Field(default=False, description="At level `token`: the deepstack features too.")
    compact: Literal[False, True, "lance"] = Field(
        default=False,
        description="End a run by copying the embeddings: `true` into Parquet files of about 512 MB, named by an "
        "atomic manifest (OUT/table), anew by each run that adds rows; `lance` into a Lance dataset for vector search "
        "(OUT/embeddings.lance, needs pylance), what is new alone. Off by default: the rows take their space twice.",
    )


class RayConfig(Section):
    """How much of a cluster is used. None means: all of it."""

    decode_workers: int | None = _positive_or_none(
        description="Decode actors at most, however many nodes come. None: one less than the cores that the cluster "
        "has when a pass of requests begins."
    )
    decode_cores: float | None = _positive_or_none(
        le=64,
        description="Cores that a decode actor reserves. None: one, or less where there are fewer cores than workers. "
        "Set it to 1 where a cluster adds nodes to a run: then as many start as have a core, and the others with the "
        "nodes.",
    )
    encode_workers: int | None = _positive_or_none(description="Encode actors, one GPU each.")
    num_cpus: int | None = _positive_or_none(description="Cores of a Ray that is started here.")
    object_store_bytes: int | None = _positive_or_none(
        description="Object store of a Ray that is started here, in bytes; at least 16 requests keep a GPU fed. None: "
        "two requests a decode worker and ten a GPU, so that registering the store takes seconds; without a GPU as Ray "
        "chooses."
    )
    requests_in_flight: int = Field(default=8, gt=0, description="Requests queued at one encode actor.")


class Config(Section):
    """All settings of a run."""

    model: str | None = Field(
        default=None,
        description="A checkpoint folder, a hub id (`name` or `name@revision`), or seeded weights: random:tiny, "
        "random:2b, random:8b. None: Qwen/Qwen3-VL-2B-Instruct.",
    )
    sources: SourcesConfig = SourcesConfig()
    clips: ClipsConfig = ClipsConfig()
    frames: FramesConfig = FramesConfig()
    sizes: SizesConfig = SizesConfig()
    images: ImagesConfig = ImagesConfig()
    decode: DecodeConfig = DecodeConfig()
    limits: LimitsConfig = LimitsConfig()
    errors: ErrorsConfig = ErrorsConfig()
    request: RequestConfig = RequestConfig()
    encode: EncodeConfig = EncodeConfig()
    output: OutputConfig = OutputConfig()
    ray: RayConfig = RayConfig()

    @property
    def result_values(self) -> dict[str, Any]:
        """The settings that decide the rows, as plain values; an output folder is bound to them."""
        return {
            "clips": self.clips.model_dump(mode="json"),
            # Left out where it changes nothing: outputs that were made before there was a choice go on.
            "frames": self.frames.model_dump(
                mode="json", exclude={"precision"} if self.frames.precision == "exact" else None
            ),
            "sizes": self.sizes.model_dump(mode="json"),
            "images": self.images.model_dump(mode="json"),
            "encode": {"dtype": self.encode.dtype},
            "output": self.output.model_dump(mode="json", exclude={"compact"}),
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build from nested plain values. Raises ConfigError that names the key and the nearest valid one."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(cls, dict(item)) for item in error.errors())) from None


def load_config(path: Path | str | None = None, overrides: Sequence[str] = (), model: str | None = None) -> Config:
    """Read a YAML file or a preset's name, then apply `key=value` overrides, then the model.

    Args:
        path: a YAML file, the name of a preset in `configs/`, or None for the defaults.
        overrides: `section.key=value`, the value read as YAML.
        model: replaces `model` if given.
    Raises: ConfigError for a missing file, bad YAML, an unknown key or a refused value.
    """
    values = _read_yaml(_find(path)) if path is not None else {}
    for override in overrides:
        _apply(values, override)
    if model is not None:
        values["model"] = model
    return Config.from_values(values)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Apply `section.key=value` overrides to a config. Raises: ConfigError as `load_config` does."""
    values = config.model_dump(mode="json")
    for override in overrides:
        _apply(values, override)
    return Config.from_values(values)


def _find(path: Path | str) -> Path:
    file = Path(path)
    preset = presets_folder() / f"{path}.yaml"
    if not file.exists() and preset.exists():
        return preset
    return file


def presets_folder() -> Path:
    """The folder of the presets that come with Patchwire."""
    return Path(__file__).resolve().parent.parent / "configs"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        presets = ", ".join(sorted(preset.stem for preset in presets_folder().glob("*.yaml")))
        raise ConfigError(f"config {file}: {error.strerror}. Presets that can be named: {presets}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {file}: not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config {file}: expected sections of keys, got {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: expected section.key=value, such as clips.mode=stride")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error
    *sections, last = key.split(".")
    for section in sections:
        below = values.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
        values = below
    values[last] = value


def _explain(model: type[BaseModel], item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(model)
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"config: unknown key {key!r}; the nearest is {nearest[0]!r}"
    message = f"config: {key} = {item['input']!r}: {item['msg']}"
    if item["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        nearest = difflib.get_close_matches(str(item["input"]), choices, n=1, cutoff=0.0)
        message += f"; the nearest is {nearest[0]!r}"
    return message


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys.extend(_known_keys(annotation, f"{prefix}{name}."))
        else:
            keys.append(prefix + name)
    return keys
