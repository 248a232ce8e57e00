"""Patchwire: embed large corpora of video and images with the Qwen3-VL vision encoder, on Ray.

    from pipeline import Config, embed

    summary = embed(["videos/"], "OUT", model="Qwen/Qwen3-VL-2B-Instruct")

The names are loaded when they are first used: a decoder process imports `pipeline.media` and nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config, load_config
    from pipeline.flow.precomputed import PrecomputedClip, store_precomputed
    from pipeline.flow.run import RunSummary, embed, prepare

__all__ = ["Config", "PrecomputedClip", "RunSummary", "embed", "load_config", "prepare", "store_precomputed"]

_HOMES = {
    "Config": "pipeline.config",
    "load_config": "pipeline.config",
    "RunSummary": "pipeline.flow.run",
    "embed": "pipeline.flow.run",
    "prepare": "pipeline.flow.run",
    "PrecomputedClip": "pipeline.flow.precomputed",
    "store_precomputed": "pipeline.flow.precomputed",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
