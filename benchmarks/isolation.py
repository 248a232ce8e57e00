"""What does decoding in a process that can be killed cost, and how long is a killed one missed?

    python -m benchmarks.isolation MEDIUM... --runs 9 --repeats 9

The same clips, one after the other, through the sandbox and through the same code in the process that asks it; which
goes first alternates. CPU counts both processes. Where memory comes to lie makes a process faster or slower by some
percent for as long as it lives, and two cores of a virtual machine need not be equally fast: so a run is a new pair of
processes, both kept on one core, the cores taking turns, and what counts is the median of the runs. Each way writes
into memory that it has used before and reads a byte of every page, as the store does that the rows go to. `--planes`
has clips decoded into planes where they may be, as for an encoder on a GPU. Then decoders are made to hang (stopped,
and killed at their deadline) or to crash (killed in mid-clip): seconds from the kill to the next clip's rows, on the
machine as it is and with a busy process on every core.
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import print_record, print_table
from benchmarks.plans import plan_clips
from pipeline.config import Config, DecodeConfig
from pipeline.errors import MediaError
from pipeline.media.container import ClipJob
from pipeline.media.frames import open_frames
from pipeline.media.grid import TABLE_BYTES, frame_bytes
from pipeline.media.location import open_binary
from pipeline.media.patchify import write_clip
from pipeline.media.planes import PlaneWriter
from pipeline.media.sandbox import Sandbox
from pipeline.media.video_pyav import IndexCache
from pipeline.plan.schema import Clip
from pipeline.request.build import clip_job
from pipeline.request.layout import RequestLayout

_DEADLINE_SECONDS = 1.0
_PAGE_BYTES = 4096
_WAYS = ("in this process", "sandbox")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A clip to decode, and whether into planes."""

    clip: Clip
    is_planar: bool

    @classmethod
    def of(cls, clip: Clip, *, with_planes: bool) -> Self:
        """Planes where they are wanted and the clip may have them."""
        return cls(clip=clip, is_planar=with_planes and clip.plane_size is not None)

    @property
    def job(self) -> ClipJob:
        """What the decoder is told."""
        clip = self.clip
        return clip_job(clip, clip.sources[0], size=clip.plane_size if self.is_planar else None)

    @property
    def num_bytes(self) -> int:
        """Bytes of its patch rows or planes."""
        clip = self.clip
        return RequestLayout.of(
            clip.media_type, [clip.grid_thw], [clip.plane_size if self.is_planar else None]
        ).clip_bytes(0)


def read_pages(rows: Any) -> None:
    """What whoever takes the rows does at least."""
    np.frombuffer(rows, np.uint8)[::_PAGE_BYTES].max()


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What the decoder process does, in this one."""

    config: Config
    memory: NDArray[np.uint8]
    cache: IndexCache = field(default_factory=IndexCache)
    writer: PlaneWriter = field(default_factory=PlaneWriter)

    def __call__(self, task: Task) -> None:
        """Decode a clip into memory that was used before."""
        config, clip, job, memory = self.config, task.clip, task.job, self.memory[: task.num_bytes]
        with open_binary(job.uri, max_bytes=config.limits.max_file_bytes) as file:
            found = open_frames(job, file, config.decode, config.images, config.limits, self.cache, self.writer)
            if found.pictures is None:
                rows = memory.reshape(clip.num_patches, -1)
                write_clip(found.frames, rows, clip.media_type, clip.resized_height, clip.resized_width)
            else:
                size = frame_bytes(clip.height, clip.width)
                slots = memory[TABLE_BYTES:][: 2 * clip.grid_thw[0] * size].reshape(-1, 1, size)
                memory[:TABLE_BYTES] = self.writer.write(found.pictures, clip.height, clip.width, slots)
        read_pages(memory)


def in_sandbox(task: Task, sandbox: Sandbox) -> None:
    """The same through the decoder process."""
    clip = task.clip
    rows = RequestLayout.of(clip.media_type, [clip.grid_thw]).clip_bytes(0)
    buffer = sandbox.new_buffer(max(rows, task.num_bytes))
    report = sandbox.decode(task.job, buffer, 0)
    assert report.is_planar == task.is_planar, "the clip is not of planes"
    read_pages(buffer.memory)


def cpu_seconds(pid: int | None) -> float:
    """CPU time of this process, and of another one by the clock that Linux keeps of it."""
    return time.process_time() + (0.0 if pid is None else time.clock_gettime((~pid << 3) | 2))


def measure_cost(tasks: Sequence[Task], config: Config, repeats: int) -> dict[str, NDArray[np.float64]]:
    """For each way (repeats, clips, 2) wall and CPU seconds; a first round warms both up and is left out."""
    found = {way: np.zeros((repeats + 1, len(tasks), 2)) for way in _WAYS}
    with Sandbox(config.decode, config.images, config.limits) as sandbox:
        calls: dict[str, Callable[[Task], None]] = {
            _WAYS[0]: Here(config=config, memory=np.zeros(max(task.num_bytes for task in tasks), np.uint8)),
            _WAYS[1]: lambda task: in_sandbox(task, sandbox),
        }
        for number in range(repeats + 1):
            for place, task in enumerate(tasks):
                for way in _WAYS[:: 1 if (number + place) % 2 else -1]:
                    started = time.perf_counter(), cpu_seconds(sandbox.pid)
                    calls[way](task)
                    ended = time.perf_counter(), cpu_seconds(sandbox.pid)
                    found[way][number, place] = np.subtract(ended, started)
    return {way: seconds[1:] for way, seconds in found.items()}


def measure_on_core(core: int, tasks: Sequence[Task], config: Config, repeats: int) -> dict[str, NDArray[np.float64]]:
    """`measure_cost` in a new process, which stays on a core with its decoder."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    return measure_cost(tasks, config, repeats)


def measure_runs(
    tasks: Sequence[Task], config: Config, repeats: int, num_runs: int
) -> list[dict[str, NDArray[np.float64]]]:
    """One `measure_on_core` after the other, each in a process of its own."""
    cores = sorted(os.sched_getaffinity(0))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return [
            pool.submit(measure_on_core, cores[run % len(cores)], tasks, config, repeats).result()
            for run in range(num_runs)
        ]


def cost_of(runs: Sequence[dict[str, NDArray[np.float64]]], clock: int) -> dict[str, Any]:
    """What seconds in one process became in the sandbox, run by run.

    A round's seconds are those of all clips; a run's are the median of its rounds, its cost the median of their ratios.
    `least` compares each clip's least times in a run, which a machine that is now fast and now slow disturbs least.
    """
    here, there = (np.array([run[way][:, :, clock] for run in runs]) for way in _WAYS)  # (runs, repeats, clips)
    rounds_here, rounds_there = here.sum(2), there.sum(2)
    least = there.min(1).sum(1) / here.min(1).sum(1) - 1
    return {
        "in_process": summary(np.median(rounds_here, axis=1).tolist()),
        "sandbox": summary(np.median(rounds_there, axis=1).tolist()),
        "cost": summary((np.median(rounds_there / rounds_here, axis=1) - 1).tolist()),
        "least_cost": summary(least.tolist()),
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


def serve(sandbox: Sandbox, task: Task) -> float:
    """Seconds of a clip, with a start where there is no decoder."""
    started = time.perf_counter()
    in_sandbox(task, sandbox)
    return time.perf_counter() - started


def hang(sandbox: Sandbox, task: Task) -> float:
    """Seconds from the deadline of a decoder that was stopped to the next clip's rows."""
    assert sandbox.pid is not None
    os.kill(sandbox.pid, signal.SIGSTOP)
    deadline = time.perf_counter() + _DEADLINE_SECONDS
    with suppress(MediaError):
        in_sandbox(task, sandbox)
    in_sandbox(task, sandbox)
    return time.perf_counter() - deadline


def crash(sandbox: Sandbox, task: Task) -> float:
    """Seconds from the kill of a decoder that has a clip to the next clip's rows."""
    assert sandbox.pid is not None
    pid, killed = sandbox.pid, []
    os.kill(pid, signal.SIGSTOP)

    def kill() -> None:
        killed.append(time.perf_counter())
        os.kill(pid, signal.SIGKILL)

    threading.Timer(0.1, kill).start()
    with suppress(MediaError):
        in_sandbox(task, sandbox)
    in_sandbox(task, sandbox)
    return time.perf_counter() - killed[0]


_ENDS = {"first start, everything is loaded": serve, "the clip alone": serve, "hung": hang, "crashed": crash}


def measure_restarts(task: Task, config: Config, repeats: int, num_others: int) -> Iterator[dict[str, Any]]:
    """How long a decoder is missed, alone and beside busy processes; a first start loads all, a restart nothing."""
    decode = DecodeConfig(timeout_seconds=_DEADLINE_SECONDS, timeout_per_video_second=0)
    for num_busy in sorted({0, num_others}):
        seconds: dict[str, list[float]] = {what: [] for what in _ENDS}
        for _ in range(repeats):
            with Sandbox(decode, config.images, config.limits) as sandbox, busy_cores(num_busy):
                for what, measured in _ENDS.items():
                    seconds[what].append(measured(sandbox, task))
        for what, times in seconds.items():
            yield {"what": what, "busy_processes": num_busy, **summary(times)}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and the ends."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main() -> None:
    """Measure the cost of the sandbox, then the time until it serves again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="+")
    parser.add_argument("--runs", type=int, default=9, help="pairs of processes")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of a run")
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="processes that keep cores busy")
    parser.add_argument("--planes", action="store_true", help="decode into planes what may be")
    parser.add_argument("--max-tokens", type=int, help="bound on merged tokens a frame; default: official sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.from_values({"sizes": {"max_tokens_per_frame": arguments.max_tokens}})
    tasks = [Task.of(clip, with_planes=arguments.planes) for clip in plan_clips(arguments.media, config)]
    runs = measure_runs(tasks, config, arguments.repeats, arguments.runs)
    results = [{"clock": clock, **cost_of(runs, place)} for place, clock in enumerate(("wall", "cpu"))]
    restarts = list(
        measure_restarts(min(tasks, key=lambda task: task.num_bytes), config, arguments.restarts, arguments.busy)
    )
    print_table(
        ["clock", "in one process", "sandbox", "cost (lowest to highest of the runs)", "by least times"],
        [
            [
                result["clock"],
                f"{result['in_process']['median']:.3f} s",
                f"{result['sandbox']['median']:.3f} s",
                "{median:+.1%} ({lowest:+.1%} to {highest:+.1%})".format(**result["cost"]),
                "{median:+.1%} ({lowest:+.1%} to {highest:+.1%})".format(**result["least_cost"]),
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
    print_record("isolation", {**vars(arguments), "clips": len(tasks)}, [*results, *restarts])


if __name__ == "__main__":
    main()
