"""What `patchwire doctor` looks at: each check says what it found and what to do where that is not enough."""

import importlib.metadata
import io
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PACKAGES = ("torch", "ray", "pyarrow", "pillow", "av", "decord", "safetensors")
_SHM = Path("/dev/shm")  # noqa: S108
_SHM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str


def run_checks() -> list[Check]:
    """Run every check; none of them raises."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("pyav", _pyav),
        ("decord", _decord),
        ("pillow", _pillow),
        ("decoder process", _sandbox),
        ("device", _device),
        ("shared memory", _shared_memory),
        ("cores", lambda: f"{os.cpu_count()}"),
    )
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, found=check())
    except Exception as error:
        return Check(name=name, ok=False, found=f"{type(error).__name__}: {error}")


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        raise RuntimeError(f"Python {platform.python_version()}; 3.11 and 3.12 are served")
    return platform.python_version()


def _packages() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)


def _pyav() -> str:
    import av

    wanted = ("h264", "hevc", "vp9", "libdav1d")
    missing = [name for name in wanted if name not in av.codecs_available]
    if missing:
        raise RuntimeError(f"no decoder for {', '.join(missing)}; install av from its wheel")
    return f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def _decord() -> str:
    import torch  # noqa: F401  decord must be imported after torch
    import decord  # isort: skip

    return str(decord.__version__)


def _pillow() -> str:
    from PIL import Image, features

    Image.new("RGB", (8, 8)).save(io.BytesIO(), format="JPEG")
    return ", ".join(name for name in ("jpg", "zlib", "webp", "avif") if features.check(name))


def _sandbox() -> str:
    import tempfile

    from PIL import Image

    from pipeline.config import Config
    from pipeline.media.sandbox import Sandbox

    config = Config()
    with (
        tempfile.NamedTemporaryFile(suffix=".png") as file,
        Sandbox(config.decode, config.images, config.limits) as box,
    ):
        Image.new("RGB", (64, 48)).save(file, format="PNG")
        file.flush()
        info = box.probe(file.name)
    return f"read a {info.width} x {info.height} {info.codec}"


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA: the encoder runs on the CPU"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"


def _shared_memory() -> str:
    free = shutil.disk_usage(_SHM).free
    if free < _SHM_BYTES:
        raise RuntimeError(f"{free / 2**20:.0f} MiB free in {_SHM}: Ray's object store would fall back to disk")
    return f"{free / 2**30:.1f} GiB free in {_SHM}"
