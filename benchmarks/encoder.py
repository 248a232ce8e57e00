"""How fast is a whole request, from host memory to pooled vectors on the host, and how exact?

    python -m benchmarks.encoder --repeats 8

Two towers and three grids, unless `--model` and `--grid` name others. On CUDA the request lies in shared memory that
stands in for Ray's object store, as in a run. `share of roof` counts the operations that were done, over the rate of a
large bf16 product measured at the start, 20 times in a row on a card that was idle; deepstack mergers, which pooled
vectors do not need and transformers computes all the same, are not among them. A card that is limited by its power runs
slower after a few milliseconds: `of a long one` is the share of the same product, repeated for as long as the request
takes and in turns with it.

Beside it transformers' tower as its users run it: float32 patches from pageable host memory, sdpa, mean over the
clip's tokens. Both run the same weights on the same pixels; errors are against float32 on the same device.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from benchmarks.measure import (
    as_values,
    matmul_burst,
    matmul_rate,
    measure,
    measure_in_turns,
    print_record,
    print_table,
)
from benchmarks.requests import StandInStore, make_store, parse_grids, random_request
from pipeline.checkpoint import VisionSpec, resolve_model
from pipeline.config import Config, load_config
from pipeline.encoder.counts import Grid, num_vectors
from pipeline.encoder.weights import load_tower
from pipeline.request.table import unwrap_request
from pipeline.stages.encode import Encode, encode_device, encode_dtype

_MODELS = ("random:2b", "random:8b")
_GRIDS = ("64x28x28", "32x30x52", "8x28x28")


def peer_tower(spec: VisionSpec, weights: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """Transformers' tower with our weights."""
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    config = Qwen3VLVisionConfig(
        depth=spec.depth,
        hidden_size=spec.hidden_size,
        num_heads=spec.num_heads,
        intermediate_size=spec.intermediate_size,
        out_hidden_size=spec.out_hidden_size,
        deepstack_visual_indexes=list(spec.deepstack_visual_indexes),
        attn_implementation="sdpa",
    )
    tower = Qwen3VLVisionModel(config)
    own = tower.state_dict()
    tower.load_state_dict({name: weights[name].reshape(own[name].shape) for name in own})
    return tower.to(device=device, dtype=dtype).eval()


@torch.inference_mode()
def peer_vectors(tower: Any, pixel_values: torch.Tensor, grids: Sequence[Grid], device: torch.device) -> np.ndarray:
    """The clips' normalised vectors by transformers, from float32 patches on the host: float32 (clips, O)."""
    pixels = pixel_values.to(device=device, dtype=tower.dtype)
    tokens = tower(pixels, grid_thw=torch.tensor(grids, device=device)).pooler_output.float()
    splits = tokens.split([num_vectors(grid, "token", merged_patches=tower.spatial_merge_unit) for grid in grids])
    means = torch.stack([clip.mean(0) for clip in splits])
    return np.asarray(torch.nn.functional.normalize(means, dim=1).cpu().numpy())


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Distance of vectors over the length of the second, all clips together."""
    return float(np.linalg.norm(found.astype(np.float64) - reference) / np.linalg.norm(reference))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Towers:
    """One model's weights in the stage and in transformers' tower, and there in float32 too."""

    model: str
    device: torch.device
    stage: Encode
    peer: Any
    exact_peer: Any

    @classmethod
    def of(cls, model: str, settings: Sequence[str]) -> Self:
        """Load all three."""
        config = load_config(None, settings, model)
        device = encode_device(config)
        dtype = torch.bfloat16 if config.encode.dtype == "float8" else encode_dtype(config, device)
        spec = resolve_model(model).vision
        stage = Encode(config, model)
        weights = load_tower(resolve_model(model), device=torch.device("cpu"), dtype=dtype).state_dict()
        return cls(
            model=model,
            device=device,
            stage=stage,
            peer=peer_tower(spec, weights, device, dtype),
            exact_peer=peer_tower(spec, weights, device, torch.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """The large product: its side, and its rate in FLOP/s at the start."""

    side: int
    rate: float


def run(towers: Towers, grids: Sequence[Grid], repeats: int, roof: Roof, store: StandInStore | None) -> dict[str, Any]:
    """Time and compare one model on one request."""
    device = towers.device
    table = random_request(*grids) if store is None else store.request(*grids)
    request = unwrap_request(table)
    layout, spec = request.meta.layout, resolve_model(towers.model).vision
    first = measure(lambda: towers.stage(table), repeats=3, device=device.type)
    burst, burst_flops = matmul_burst(device.type, roof.side, first.median_seconds)
    ours, long_roof = measure_in_turns([lambda: towers.stage(table), burst], repeats=repeats, device=device.type)
    encoded = towers.stage(table)
    vectors = np.frombuffer(encoded["vectors"][0].as_py(), dtype=np.float32).reshape(len(grids), -1)

    rows = torch.from_numpy(request.buffer[layout.rows_start :].copy()).view(layout.num_patches, -1)
    pixel_values = (rows.float() - 127.5) / 127.5
    theirs = measure(
        lambda: peer_vectors(towers.peer, pixel_values, grids, device), repeats=repeats, device=device.type
    )
    peer_result = peer_vectors(towers.peer, pixel_values, grids, device)
    reference = peer_vectors(towers.exact_peer, pixel_values, grids, device)

    flops_done, flops_of_all = (
        sum(tower.flops(t * h * w, h * w) for t, h, w in grids)
        for tower in (replace(spec, deepstack_visual_indexes=()), spec)
    )
    return {
        "model": towers.model,
        "grid": "+".join("x".join(map(str, grid)) for grid in grids),
        "patches": layout.num_patches,
        "ours": as_values(ours),
        "transformers": as_values(theirs),
        "times": theirs.median_seconds / ours.median_seconds,
        "transfer": encoded["transfer"][0].as_py(),
        "flops_done": flops_done,
        "roof_share": flops_done / ours.median_seconds / roof.rate,
        "roof_share_with_deepstack": flops_of_all / ours.median_seconds / roof.rate,
        "long_roof_flops": burst_flops / long_roof.median_seconds,
        "long_roof_share": flops_done / ours.median_seconds / (burst_flops / long_roof.median_seconds),
        "error": relative_error(vectors, reference),
        "transformers_error": relative_error(peer_result, reference),
    }


def run_model(
    model: str,
    settings: Sequence[str],
    requests: Sequence[Sequence[Grid]],
    repeats: int,
    roof: Roof,
    store: StandInStore | None,
) -> list[dict[str, Any]]:
    """Every request on one model, whose towers are let go afterwards."""
    towers = Towers.of(model, settings)
    return [run(towers, grids, repeats, roof, store) for grids in requests]


def main() -> None:
    """Measure every model on every grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument(
        "--grid",
        action="append",
        help="TxHxW in patches: temporal patches x rows x columns; TxHxW+TxHxW: clips of one request",
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the product that sets the roof")
    arguments = parser.parse_args()

    device = encode_device(Config())
    roof = Roof(side=arguments.matmul, rate=matmul_rate(device.type, arguments.matmul))
    requests = [parse_grids(grids) for grids in arguments.grid or _GRIDS]
    store = make_store(requests, device)
    results = [
        result
        for model in arguments.model or _MODELS
        for result in run_model(model, arguments.settings, requests, arguments.repeats, roof, store)
    ]
    print_table(
        [
            "model",
            "request",
            "patches",
            "Patchwire",
            "transformers",
            "times",
            "share of roof",
            "of a long one",
            "error",
            "theirs",
        ],
        [
            [
                result["model"],
                result["grid"],
                result["patches"],
                f"{result['ours']['median_seconds'] * 1e3:.1f} ms",
                f"{result['transformers']['median_seconds'] * 1e3:.1f} ms",
                f"{result['times']:.2f}",
                f"{result['roof_share']:.1%}",
                f"{result['long_roof_share']:.1%}",
                f"{result['error']:.1e}",
                f"{result['transformers_error']:.1e}",
            ]
            for result in results
        ],
    )
    print_record("encoder", {**vars(arguments), "roof_tflops": roof.rate / 1e12}, results)


if __name__ == "__main__":
    main()
