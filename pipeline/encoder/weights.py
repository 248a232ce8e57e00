"""Weights into a tower: strictly from a checkpoint folder, or as seeded noise.

The tower is built on the meta device and its parameters are assigned, so the memory of the weights is taken once.
Only the vision tensors are read, by name, out of the safetensors files. Every name and shape is checked before the
first byte of data is: a tower that is partly right would still give vectors.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoint import RANDOM_PREFIX, RANDOM_SEED, VISION_PREFIXES, Checkpoint, VisionSpec, weight_files
from pipeline.encoder.kernels import Kernels, TorchKernels, make_kernels
from pipeline.encoder.tower import VisionTower
from pipeline.errors import ModelError

_PATCH_WEIGHT = "patch_embed.proj.weight"
# Anything else is quantised, and means nothing without its scales.
_FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")
_NUM_LISTED = 5
_RANDOM_BIAS_STD = 0.02
_RANDOM_POSITION_STD = 0.1


def load_tower(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, kernels: Kernels | None = None
) -> VisionTower:
    """Build the tower of a checkpoint, frozen and ready.

    Args:
        checkpoint: dimensions, and where the weights are.
        device: where they go.
        dtype: what they become.
        kernels: of the device; None makes them.

    Raises: ModelError that lists missing, unexpected and mis-shaped tensors, or names a file that cannot be read.
    Cost: one pass over the vision weights (0.8 GB for 2B, 1.2 GB for 8B) and their memory on the device.
    """
    tower, shapes = _empty_tower(checkpoint.vision, kernels or make_kernels(device))

    def place(tensor: Tensor) -> Tensor:
        # A copy even where nothing changes: what safetensors returns is a mapping of the file.
        return tensor.to(device=device, dtype=dtype, copy=True)

    if checkpoint.folder is None:
        state = _random_weights(checkpoint, shapes, place)
    else:
        state = _folder_weights(checkpoint.folder, checkpoint.vision, shapes, place)
    tower.load_state_dict(state, strict=True, assign=True)
    tower.arrange()
    return tower.requires_grad_(False).eval().to(device)


def check_weights(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint folder that `load_tower` would, without a byte of its weights.

    Raises: ModelError as `load_tower`. Cost: the headers of the weight files.
    """
    if checkpoint.folder is not None:
        with ExitStack() as files:
            _, shapes = _empty_tower(checkpoint.vision, TorchKernels())
            _checked_tensors(checkpoint.folder, checkpoint.vision, shapes, files)


def _empty_tower(spec: VisionSpec, kernels: Kernels) -> tuple[VisionTower, dict[str, tuple[int, ...]]]:
    with torch.device("meta"):
        tower = VisionTower(spec, kernels)
    return tower, {name: tuple(parameter.shape) for name, parameter in tower.state_dict().items()}


def _random_weights(
    checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], place: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Draw the same noise on every machine: on the CPU in float32, in the order of the sorted names."""
    if not checkpoint.model_id.startswith(RANDOM_PREFIX):
        raise ModelError(
            f"model {checkpoint.model_id}: only its recipe is known here, not its weights; give a checkpoint folder "
            f"or a hub id, or {RANDOM_PREFIX}tiny for seeded weights"
        )
    generator = torch.Generator(device="cpu").manual_seed(RANDOM_SEED)
    return {name: place(_random_tensor(name, shapes[name], generator)) for name in sorted(shapes)}


def _random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Scales that carry differences between inputs to the output: unit gain in every linear layer."""
    *_, layer, kind = name.split(".")
    if "norm" in layer:
        return torch.full(shape, 1.0 if kind == "weight" else 0.0)
    noise = torch.randn(shape, generator=generator)
    if layer == "pos_embed":
        return noise * _RANDOM_POSITION_STD
    return noise * (_RANDOM_BIAS_STD if kind == "bias" else shape[1] ** -0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A tensor in a file, not read yet."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    file: Any  # safetensors' handle, which has no public type


def _folder_weights(
    folder: Path, spec: VisionSpec, shapes: dict[str, tuple[int, ...]], place: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    with ExitStack() as files:
        found = _checked_tensors(folder, spec, shapes, files)
        return {name: place(found[name].file.get_tensor(found[name].key).view(shape)) for name, shape in shapes.items()}


def _checked_tensors(
    folder: Path, spec: VisionSpec, shapes: dict[str, tuple[int, ...]], files: ExitStack
) -> dict[str, _Stored]:
    """Find a folder's vision tensors, all of them and of these shapes; none is read."""
    found = _list_tensors(folder, files)
    problems = _problems({**shapes, _PATCH_WEIGHT: _convolution_shape(spec)}, found)
    if problems:
        listed = "; ".join(problems[:_NUM_LISTED]) + ("; ..." if len(problems) > _NUM_LISTED else "")
        raise ModelError(
            f"{folder}: {len(problems)} vision tensors are not what config.json describes: {listed}. "
            "Fetch the checkpoint again; config.json and the weights must come from one model"
        )
    return found


def _convolution_shape(spec: VisionSpec) -> tuple[int, ...]:
    """How checkpoints store the patch embedding: (D, 3, 2, 16, 16), flattened here in the order of a patch row."""
    return (spec.hidden_size, spec.in_channels, spec.temporal_patch_size, spec.patch_size, spec.patch_size)


def _list_tensors(folder: Path, files: ExitStack) -> dict[str, _Stored]:
    """Find a folder's vision tensors by their name in the tower; their files stay open as long as `files`."""
    found: dict[str, _Stored] = {}
    for path in weight_files(folder):
        try:
            file = files.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a readable safetensors file ({error}). Fetch it again") from error
        for key in file.keys():  # noqa: SIM118 (a handle is not iterable)
            prefix = next((prefix for prefix in VISION_PREFIXES if key.startswith(prefix)), None)
            if prefix is None:
                continue
            name = key.removeprefix(prefix)
            if name in found:
                raise ModelError(f"{path}: {key} is in this checkpoint more than once, also as {found[name].key}")
            header = file.get_slice(key)
            found[name] = _Stored(key=key, shape=tuple(header.get_shape()), dtype=header.get_dtype(), file=file)
    return found


def _problems(expected: dict[str, tuple[int, ...]], found: dict[str, _Stored]) -> list[str]:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{stored.key} is unexpected" for name, stored in found.items() if name not in expected]
    for name in expected.keys() & found.keys():
        stored = found[name]
        if stored.shape != expected[name]:
            problems.append(f"{stored.key} has shape {list(stored.shape)}, expected {list(expected[name])}")
        elif stored.dtype not in _FLOAT_DTYPES:
            problems.append(f"{stored.key} has dtype {stored.dtype}, expected one of {', '.join(_FLOAT_DTYPES)}")
    return sorted(problems)
