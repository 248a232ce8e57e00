"""What bounds a pass over a request: each of its parts alone on the device, at its shape, beside the pass itself.

    python -m benchmarks.roofline --model random:2b --model random:8b --grid 64x28x28 --grid 8x28x28

A part is what the tower calls between two others: a product with what its epilogue does, attention, or one kernel of
element-wise work. It is recorded in a CUDA graph by itself, so that nothing of it is the host's, and replayed in
short bursts, which a power-limited card runs faster than a whole pass. Parts, pass and the large bf16 product that
sets the roof take turns; each one's best turn counts. `parts` is their sum: what the pass would take if every call ran
as fast as it does alone, and nothing came between two calls. A target above its share of the roof is out of
these kernels' reach. The roof's target is the share with only the operations that are done; `with deepstack`
counts the mergers that pooled vectors do not need, too. `--kernels` lists the pass by kernel, as the profiler saw it.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.attention import device_seconds
from benchmarks.measure import matmul_rate, print_record, print_table
from benchmarks.requests import parse_grid
from pipeline.checkpoint import resolve_model
from pipeline.config import load_config
from pipeline.encoder.attention import FrameRun, Place
from pipeline.encoder.counts import Grid
from pipeline.encoder.encode import Encoder
from pipeline.encoder.float8 import Float8Block
from pipeline.encoder.pooling import frame_means
from pipeline.encoder.tower import Block, Merger
from pipeline.stages.encode import encode_device, encode_dtype

_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One kind of call of a pass: what it does once, and how often.

    `flops` counts a multiply-add twice, of products and attention; `num_bytes` is what an element-wise call reads and
    writes. One of the two is 0.
    """

    name: str
    calls: int
    call: Callable[[], object]
    flops: int = 0
    num_bytes: int = 0


def parts_of(encoder: Encoder, grid: Grid) -> Iterator[Part]:
    """Every call of a pass over one request of `grid` that takes time worth naming, on seeded noise."""
    spec, tower, normaliser, dtype = encoder.spec, encoder._tower, encoder._pixels, encoder._dtype
    device = tower.pos_embed.weight.device
    t, h, w = grid
    num_patches, hidden = t * h * w, spec.hidden_size
    rows = torch.randint(0, 256, (num_patches, spec.patch_values), dtype=torch.uint8, device=device)
    pixels = normaliser(rows, dtype)
    stream = torch.randn(num_patches, hidden, device=device, dtype=dtype)
    positions = tower.hold(h, w)
    learned = stream.view(t, h * w, hidden)
    size = dtype.itemsize
    yield Part(
        name="pixels",
        calls=1,
        call=lambda: normaliser(rows, dtype),
        num_bytes=num_patches * spec.patch_values * (1 + size),
    )
    yield Part(
        name="patch embedding",
        calls=1,
        call=lambda: tower.patch_embed(pixels),
        flops=2 * num_patches * spec.patch_values * hidden,
    )
    yield Part(
        name="positions",
        calls=1,
        call=lambda: learned.add_(positions.learned),
        num_bytes=2 * num_patches * hidden * size,
    )
    block = tower.typed_blocks[0]
    run = FrameRun(num_frames=t, num_patches=h * w)
    coordinates = positions.coordinates.repeat(1, t)
    place = Place(cos=positions.cos, sin=positions.sin, coordinates=coordinates, runs=(run,))
    yield from _attention_parts(block, stream, run, spec.depth)
    if isinstance(block, Float8Block):
        yield from _float8_parts(block, stream, place, spec.depth)
    else:
        yield from _block_parts(block, stream, place, spec.depth)
    yield from _merger_parts(tower.merger, stream)
    tokens = torch.randn(num_patches // spec.merged_patches, spec.out_hidden_size, device=device, dtype=dtype)
    yield Part(
        name="means",
        calls=1,
        call=lambda: frame_means(tokens, [grid], spec.merged_patches),
        num_bytes=tokens.numel() * size,
    )


def _attention_parts(block: Block | Float8Block, stream: Tensor, run: FrameRun, depth: int) -> Iterator[Part]:
    heads = block.heads if isinstance(block, Float8Block) else block.attn.heads
    num_patches, hidden = stream.shape
    qkv = torch.randn(num_patches, *heads, device=stream.device, dtype=stream.dtype)
    yield Part(
        name="attention",
        calls=depth,
        call=lambda: block._kernels.attend(qkv, (run,)),
        flops=4 * num_patches * run.num_patches * hidden,
    )


def _block_parts(block: Block, stream: Tensor, place: Place, depth: int) -> Iterator[Part]:
    kernels, (num_patches, hidden) = block._kernels, stream.shape
    widened = torch.randn(num_patches, block.mlp.linear_fc1.out_features, device=stream.device, dtype=stream.dtype)
    normed, offset = torch.randn_like(stream), torch.zeros(hidden, device=stream.device)
    result = torch.zeros_like(stream)
    product = 2 * num_patches * hidden
    yield Part(
        name="LayerNorm",
        calls=2 * depth,
        call=lambda: kernels.layer_norm(stream, offset, block.norm1),
        num_bytes=2 * num_patches * hidden * stream.element_size(),
    )
    yield Part(
        name="qkv, turned",
        calls=depth,
        call=lambda: kernels.project(normed, block.attn.qkv, block.attn.heads, place),
        flops=product * 3 * hidden,
    )
    yield Part(
        name="attention's output, added",
        calls=depth,
        call=lambda: kernels.add_product_(result, normed, block.attn.proj.weight),
        flops=product * hidden,
    )
    yield Part(
        name="fc1 with GELU",
        calls=depth,
        call=lambda: kernels.linear_gelu(normed, block.mlp.linear_fc1),
        flops=product * widened.shape[1],
    )
    yield Part(
        name="fc2, added",
        calls=depth,
        call=lambda: kernels.add_product_(result, widened, block.mlp.linear_fc2.weight),
        flops=product * widened.shape[1],
    )


def _float8_parts(block: Float8Block, stream: Tensor, place: Place, depth: int) -> Iterator[Part]:
    kernels, (num_patches, hidden), size = block._kernels, stream.shape, stream.element_size()
    offset, result = torch.zeros(hidden, device=stream.device), torch.zeros_like(stream)
    normed = kernels.layer_norm_float8(stream, None, offset, block.norm1)
    wide = kernels.linear_gelu_float8(normed, block.linear_fc1.layer)
    late = kernels.add_float8_(result, normed, block.proj.weight)
    product = 2 * num_patches * hidden
    yield Part(
        name="LayerNorm to 8 bits, what is late added",
        calls=2 * depth,
        call=lambda: kernels.layer_norm_float8(stream, late, offset, block.norm1),
        num_bytes=num_patches * hidden * (size + 1 + (0 if late is None else 2 * size)),
    )
    yield Part(
        name="attended to 8 bits",
        calls=depth,
        call=lambda: kernels.to_float8(stream),
        num_bytes=num_patches * hidden * (size + 1),
    )
    yield Part(
        name="qkv, turned",
        calls=depth,
        call=lambda: kernels.project_float8(normed, block.qkv.layer, block.heads, place),
        flops=product * 3 * hidden,
    )
    yield Part(
        name="attention's output",
        calls=depth,
        call=lambda: kernels.add_float8_(result, normed, block.proj.weight),
        flops=product * hidden,
    )
    yield Part(
        name="fc1 with GELU, to 8 bits",
        calls=depth,
        call=lambda: kernels.linear_gelu_float8(normed, block.linear_fc1.layer),
        flops=product * block.intermediate_size,
    )
    yield Part(
        name="fc2",
        calls=depth,
        call=lambda: kernels.add_float8_(result, wide, block.linear_fc2.weight),
        flops=product * block.intermediate_size,
    )


def _merger_parts(merger: Merger, stream: Tensor) -> Iterator[Part]:
    joined = torch.randn_like(stream).view(-1, merger.merged_size)
    num_tokens, merged = joined.shape
    offset = torch.zeros(stream.shape[1], device=stream.device)
    yield Part(
        name="merger's LayerNorm",
        calls=1,
        call=lambda: merger._kernels.layer_norm(stream, offset, merger.norm),
        num_bytes=2 * stream.numel() * stream.element_size(),
    )
    yield Part(
        name="merger's products and GELU",
        calls=1,
        call=lambda: merger.linear_fc2(functional.gelu(merger.linear_fc1(joined))),
        flops=2 * num_tokens * merged * (merged + merger.linear_fc2.out_features),
    )


@torch.inference_mode()
def bound(model: str, settings: Sequence[str], grid: Grid, turns: int, side: int, with_kernels: bool) -> dict[str, Any]:
    """Measure one model's parts, its pass and the roof in turns."""
    config = load_config(None, settings, model)
    device = encode_device(config)
    encoder = Encoder(
        resolve_model(model),
        device=device,
        dtype=encode_dtype(config, device),
        max_graphs=0,
        float8_least_cosine=config.encode.float8_least_cosine,
    )
    parts = list(parts_of(encoder, grid))
    rows = torch.randint(0, 256, (grid[0] * grid[1] * grid[2], 1536), dtype=torch.uint8, device=device)
    whole = [grid]

    def one_pass() -> Tensor:
        return encoder._plain_means(rows, whole)

    best = dict.fromkeys([*(part.name for part in parts), "pass"], float("inf"))
    roof = copy_rate = 0.0
    for _ in range(turns):
        roof = max(roof, matmul_rate(device.type, side))
        copy_rate = max(copy_rate, _copy_rate(device))
        best["pass"] = min(best["pass"], device_seconds(one_pass, device, _REPEATS))
        for part in parts:
            best[part.name] = min(best[part.name], device_seconds(part.call, device, _REPEATS))
    spec = encoder.spec
    num_patches, frame_patches = grid[0] * grid[1] * grid[2], grid[1] * grid[2]
    done = replace(spec, deepstack_visual_indexes=()).flops(num_patches, frame_patches)
    assert sum(part.flops * part.calls for part in parts) == done, "the parts are not the pass"
    alone = sum(best[part.name] * part.calls for part in parts)
    return {
        "model": model,
        "grid": "x".join(map(str, grid)),
        "arithmetic": encoder._arithmetic,
        "roof_flops": roof,
        "copy_bytes_per_second": copy_rate,
        "flops": done,
        "flops_with_deepstack": spec.flops(num_patches, frame_patches),
        "pass_seconds": best["pass"],
        "parts_seconds": alone,
        "parts": [
            {
                "name": part.name,
                "calls": part.calls,
                "seconds": best[part.name] * part.calls,
                "flops": part.flops * part.calls,
                "num_bytes": part.num_bytes * part.calls,
            }
            for part in parts
        ],
        "kernels": _kernels(one_pass) if with_kernels and device.type == "cuda" else [],
    }


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a copy within the device."""
    source = torch.empty(1 << (28 if device.type == "cuda" else 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / device_seconds(lambda: target.copy_(source), device, _REPEATS)


def _kernels(call: Callable[[], object]) -> list[dict[str, Any]]:
    """One call by kernel, the longest first."""
    call()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        call()
        torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type == DeviceType.CUDA:
            seconds[event.name] += event.time_range.elapsed_us() * 1e-6
            calls[event.name] += 1
    return [{"name": name[:100], "calls": calls[name], "seconds": taken} for name, taken in seconds.most_common(16)]


def _print(result: dict[str, Any]) -> None:
    head = f"{result['model']}, {result['arithmetic']}, {result['grid']}"
    lines = []
    for part in result["parts"]:
        rate = (
            f"{part['flops'] / part['seconds'] / 1e12:.0f} TFLOP/s"
            if part["flops"]
            else f"{part['num_bytes'] / part['seconds'] / 1e12:.2f} TB/s"
        )
        lines.append([head, part["name"], part["calls"], f"{part['seconds'] * 1e3:.2f}", rate])
    roof = result["roof_flops"]
    for name in ("parts", "pass"):
        seconds = result[f"{name}_seconds"]
        share, every = (result[key] / seconds / roof for key in ("flops", "flops_with_deepstack"))
        lines.append([head, name, "", f"{seconds * 1e3:.2f}", f"{share:.1%} of the roof, {every:.1%} with deepstack"])
    lines.append([head, "roof", "", "", f"{roof / 1e12:.0f} TFLOP/s"])
    lines.append([head, "copy", "", "", f"{result['copy_bytes_per_second'] / 1e12:.2f} TB/s"])
    lines += [[head, k["name"], k["calls"], f"{k['seconds'] * 1e3:.2f}", "kernel"] for k in result["kernels"]]
    print_table(["request", "part", "calls", "ms", "rate"], lines)


def main() -> None:
    """Measure every model on every grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--grid", action="append", help="TxHxW in patches: temporal patches x rows x columns")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value of the config")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the product that sets the roof")
    parser.add_argument("--kernels", action="store_true", help="list the pass by kernel, too")
    arguments = parser.parse_args()
    results = []
    for model in arguments.model or ["random:2b"]:
        for grid in map(parse_grid, arguments.grid or ["64x28x28"]):
            result = bound(model, arguments.settings, grid, arguments.turns, arguments.matmul, arguments.kernels)
            _print(result)
            results.append(result)
    print_record("roofline", vars(arguments), results)


if __name__ == "__main__":
    main()
