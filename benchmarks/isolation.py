"""What does decoding in a process that can be killed cost, and how long is a killed one missed?

    python -m benchmarks.isolation MEDIUM... --repeats 7

The same clips, one after the other, through the sandbox and through the same code in this process; which goes first
alternates. CPU counts both processes. Each way writes into a new buffer and reads a byte of every page, as the store
does that the rows go to. Then decoders are made to hang (stopped, and killed at their deadline) or to crash (killed in
mid-clip): seconds from the kill to the next clip's rows, on the machine as it is and with a busy process on every core.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import print_record, print_table
from benchmarks.plans import plan_clips
from pipeline.config import Config, DecodeConfig
from pipeline.errors import MediaError
from pipeline.media.frames import open_frames
from pipeline.media.grid import row_bytes
from pipeline.media.location import open_binary
from pipeline.media.patchify import write_clip
from pipeline.media.sandbox import Sandbox
from pipeline.media.video_pyav import IndexCache
from pipeline.plan.schema import Clip
from pipeline.request.build import clip_job

_DEADLINE_SECONDS = 1.0
_PAGE_BYTES = 4096
_WAYS = ("in this process", "sandbox")


def num_bytes(clip: Clip) -> int:
    """Bytes of a clip's patch rows."""
    return clip.num_patches * row_bytes(clip.media_type)


def read_pages(rows: Any) -> None:
    """What whoever takes the rows does at least."""
    np.frombuffer(rows, np.uint8)[::_PAGE_BYTES].max()


def in_process(clip: Clip, config: Config, cache: IndexCache) -> None:
    """What the decoder process does for a clip, here."""
    job, memory = clip_job(clip, clip.sources[0]), np.empty(num_bytes(clip), np.uint8)
    rows = memory.reshape(clip.num_patches, -1)
    with open_binary(job.uri, max_bytes=config.limits.max_file_bytes) as file:
        frames = open_frames(job, file, config.decode, config.images, config.limits, cache)
        write_clip(frames.frames, rows, clip.media_type, clip.resized_height, clip.resized_width)
    read_pages(memory)


def in_sandbox(clip: Clip, sandbox: Sandbox) -> None:
    """The same through the decoder process."""
    buffer = sandbox.new_buffer(num_bytes(clip))
    sandbox.decode(clip_job(clip, clip.sources[0]), buffer, 0)
    read_pages(buffer.memory)


def cpu_seconds(pid: int | None) -> float:
    """CPU time of this process, and of another one by the clock that Linux keeps of it."""
    return time.process_time() + (0.0 if pid is None else time.clock_gettime((~pid << 3) | 2))


def measure_cost(clips: Sequence[Clip], config: Config, repeats: int) -> dict[str, NDArray[np.float64]]:
    """For each way (repeats, clips, 2) wall and CPU seconds; a first round warms both up and is left out."""
    cache = IndexCache()
    found = {way: np.zeros((repeats + 1, len(clips), 2)) for way in _WAYS}
    with Sandbox(config.decode, config.images, config.limits) as sandbox:
        calls: dict[str, Callable[[Clip], None]] = {
            _WAYS[0]: lambda clip: in_process(clip, config, cache),
            _WAYS[1]: lambda clip: in_sandbox(clip, sandbox),
        }
        for number in range(repeats + 1):
            for place, clip in enumerate(clips):
                for way in _WAYS[:: 1 if (number + place) % 2 else -1]:
                    started = time.perf_counter(), cpu_seconds(sandbox.pid)
                    calls[way](clip)
                    ended = time.perf_counter(), cpu_seconds(sandbox.pid)
                    found[way][number, place] = np.subtract(ended, started)
    return {way: seconds[1:] for way, seconds in found.items()}


def cost_of(here: NDArray[np.float64], there: NDArray[np.float64]) -> dict[str, Any]:
    """What (repeats, clips) seconds in this process became in the sandbox.

    `least` compares each clip's least times, which a machine that is now fast and now slow disturbs least.
    """
    ratios = there.sum(1) / here.sum(1) - 1
    return {
        "in_process": summary(here.sum(1).tolist()),
        "sandbox": summary(there.sum(1).tolist()),
        "cost": summary(ratios.tolist()),
        "least_in_process": float(here.min(0).sum()),
        "least_sandbox": float(there.min(0).sum()),
        "least_cost": float(there.min(0).sum() / here.min(0).sum() - 1),
    }


@contextmanager
def busy_cores(num_processes: int) -> Iterator[None]:
    """Keep cores busy with something else."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def serve(sandbox: Sandbox, clip: Clip) -> float:
    """Seconds of a clip, with a start where there is no decoder."""
    started = time.perf_counter()
    in_sandbox(clip, sandbox)
    return time.perf_counter() - started


def hang(sandbox: Sandbox, clip: Clip) -> float:
    """Seconds from the deadline of a decoder that was stopped to the next clip's rows."""
    assert sandbox.pid is not None
    os.kill(sandbox.pid, signal.SIGSTOP)
    deadline = time.perf_counter() + _DEADLINE_SECONDS
    with suppress(MediaError):
        in_sandbox(clip, sandbox)
    in_sandbox(clip, sandbox)
    return time.perf_counter() - deadline


def crash(sandbox: Sandbox, clip: Clip) -> float:
    """Seconds from the kill of a decoder that has a clip to the next clip's rows."""
    assert sandbox.pid is not None
    pid, killed = sandbox.pid, []
    os.kill(pid, signal.SIGSTOP)

    def kill() -> None:
        killed.append(time.perf_counter())
        os.kill(pid, signal.SIGKILL)

    threading.Timer(0.1, kill).start()
    with suppress(MediaError):
        in_sandbox(clip, sandbox)
    in_sandbox(clip, sandbox)
    return time.perf_counter() - killed[0]


_ENDS = {"first start, everything is loaded": serve, "the clip alone": serve, "hung": hang, "crashed": crash}


def measure_restarts(clip: Clip, config: Config, repeats: int, num_others: int) -> Iterator[dict[str, Any]]:
    """How long a decoder is missed, alone and beside busy processes; a first start loads all, a restart nothing."""
    decode = DecodeConfig(timeout_seconds=_DEADLINE_SECONDS, timeout_per_video_second=0)
    for num_busy in sorted({0, num_others}):
        seconds: dict[str, list[float]] = {what: [] for what in _ENDS}
        for _ in range(repeats):
            with Sandbox(decode, config.images, config.limits) as sandbox, busy_cores(num_busy):
                for what, measured in _ENDS.items():
                    seconds[what].append(measured(sandbox, clip))
        for what, times in seconds.items():
            yield {"what": what, "busy_processes": num_busy, **summary(times)}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and the ends."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main() -> None:
    """Measure the cost of the sandbox, then the time until it serves again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="+")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="processes that keep cores busy")
    parser.add_argument("--max-tokens", type=int, help="bound on merged tokens a frame; default: official sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.from_values({"sizes": {"max_tokens_per_frame": arguments.max_tokens}})
    clips = plan_clips(arguments.media, config)
    cost = measure_cost(clips, config, arguments.repeats)
    results = [
        {"clock": clock, **cost_of(*(cost[way][:, :, place] for way in _WAYS))}
        for place, clock in enumerate(("wall", "cpu"))
    ]
    restarts = list(measure_restarts(min(clips, key=num_bytes), config, arguments.restarts, arguments.busy))
    print_table(
        ["clock", "in this process", "sandbox", "cost (lowest to highest of the rounds)", "least", "least", "cost"],
        [
            [
                result["clock"],
                f"{result['in_process']['median']:.3f} s",
                f"{result['sandbox']['median']:.3f} s",
                "{median:+.1%} ({lowest:+.1%} to {highest:+.1%})".format(**result["cost"]),
                f"{result['least_in_process']:.3f} s",
                f"{result['least_sandbox']:.3f} s",
                f"{result['least_cost']:+.1%}",
            ]
            for result in results
        ],
    )
    print_table(
        ["until the next clip is served", "busy processes beside it", "seconds (lowest to highest)"],
        [
            [
                restart["what"],
                restart["busy_processes"],
                "{median:.3f} ({lowest:.3f} to {highest:.3f})".format(**restart),
            ]
            for restart in restarts
        ],
    )
    print_record("isolation", {**vars(arguments), "clips": len(clips)}, [*results, *restarts])


if __name__ == "__main__":
    main()
