"""Which attention kernel for which size: ours, FlashAttention 4, and torch's cuDNN and flash.

    python -m benchmarks.attention --head-dim 64 --head-dim 72 --frames 64x784 --frames 32x1560

One call over a run of equal temporal patches, queries, keys and values where the fused projection wrote them. On CUDA
the call is recorded in a graph and replayed, so that it is the device's time; `host` is what a call costs the thread
that queues it. Errors are against float32. `pipeline/encoder/hopper_attention.py` chooses by this table.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import measure, print_record, print_table
from pipeline.config import Config
from pipeline.encoder.attention import FrameRun, attend
from pipeline.encoder.hopper_attention import find_flash_attention
from pipeline.encoder.kernels import TorchKernels
from pipeline.stages.encode import encode_device

_CALLS = 10  # in one recording


def ways(device: torch.device, run: FrameRun) -> dict[str, Callable[[Tensor], Tensor]]:
    """What there is on this device."""
    if device.type != "cuda":
        return {"torch": lambda qkv: TorchKernels().attend(qkv, (run,))}
    from pipeline.encoder.triton_kernels import TritonKernels

    found = {
        "ours": lambda qkv: TritonKernels().attend(qkv, (run,)),
        "cuDNN": _by_backend(SDPBackend.CUDNN_ATTENTION, run),
        "flash": _by_backend(SDPBackend.FLASH_ATTENTION, run),
    }
    flash = find_flash_attention(device)
    if flash is not None:
        found["FlashAttention 4"] = lambda qkv: flash(qkv, run)
    return found


def _by_backend(backend: SDPBackend, run: FrameRun) -> Callable[[Tensor], Tensor]:
    def call(qkv: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return attend(qkv, (run,))

    return call


def device_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of one call on the device, without what it costs to queue it."""
    if device.type != "cuda":
        return measure(call, repeats=repeats).median_seconds
    call()  # compiled and planned outside the recording
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            call()
    return measure(graph.replay, repeats=repeats, device=device.type).median_seconds / _CALLS


def host_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds until one of several calls in a row returns."""
    call()
    started = time.perf_counter()
    for _ in range(_CALLS):
        call()
    seconds = (time.perf_counter() - started) / _CALLS
    if device.type == "cuda":
        torch.cuda.synchronize()
    return seconds


@torch.inference_mode()
def compare(device: torch.device, run: FrameRun, num_heads: int, head_dim: int, repeats: int) -> list[dict[str, Any]]:
    """Time and error of each way for one size."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    num_patches = run.num_frames * run.num_patches
    qkv = torch.randn(num_patches, 3, num_heads, head_dim, device=device, dtype=dtype)
    first = FrameRun(num_frames=1, num_patches=run.num_patches)
    exact = attend(qkv[: run.num_patches].float(), (first,))
    operations = 4 * num_patches * run.num_patches * num_heads * head_dim
    results = []
    for name, call in ways(device, run).items():
        found = call(qkv)[: run.num_patches].float()
        seconds = device_seconds(lambda call=call: call(qkv), device, repeats)
        results.append(
            {
                "head_dim": head_dim,
                "frames": f"{run.num_frames}x{run.num_patches}",
                "way": name,
                "seconds": seconds,
                "operations_per_second": operations / seconds,
                "host_seconds": host_seconds(lambda call=call: call(qkv), device),
                "error": float((found - exact).norm() / exact.norm()),
            }
        )
    return results


def _parse_frames(text: str) -> FrameRun:
    frames, patches = text.split("x")
    return FrameRun(num_frames=int(frames), num_patches=int(patches))


def _table(results: Sequence[dict[str, Any]]) -> None:
    print_table(
        ["head_dim", "frames x patches", "way", "ms", "TFLOP/s", "host", "error"],
        [
            [
                result["head_dim"],
                result["frames"],
                result["way"],
                f"{result['seconds'] * 1e3:.3f}",
                f"{result['operations_per_second'] / 1e12:.0f}",
                f"{result['host_seconds'] * 1e6:.0f} us",
                f"{result['error']:.1e}",
            ]
            for result in results
        ],
    )


def main() -> None:
    """Measure each way for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", action="append", help="FxS: temporal patches, patches of each")
    parser.add_argument("--head-dim", action="append", type=int)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    device = encode_device(Config())
    results: list[dict[str, Any]] = []
    for head_dim in arguments.head_dim or [64, 72]:
        for frames in arguments.frames or ["64x784"]:
            results += compare(device, _parse_frames(frames), arguments.heads, head_dim, arguments.repeats)
    _table(results)
    print_record("attention", vars(arguments), results)


if __name__ == "__main__":
    main()
