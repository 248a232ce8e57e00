"""The faults of the contract at length: each scenario is a function that says what it did and whether that held.

`scale` shortens a scenario (1.0 is its full length); what must hold is the same at any length.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.dataset as ds
from PIL import Image

from pipeline.config import DecodeConfig, ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.flow.run import retry
from pipeline.media.attempts import Attempts
from pipeline.media.container import ClipJob, MediaType
from pipeline.media.grid import planes_bytes
from pipeline.media.sandbox import Sandbox, SharedBuffer
from pipeline.media.template import DECODER_NAME
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.conftest import SAMPLES
from tests.faults.processes import (
    REPOSITORY,
    SETTINGS,
    Command,
    embed_here,
    fragment_bytes,
    num_fragments,
    send,
    wait_until,
)
from tests.media_factory import make_image, make_video, picture
from tests.soak.fuzzing import MOST_SEED_BYTES, make_seeds, mutate


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a scenario did; `holds` is whether the contract did."""

    holds: bool
    facts: dict[str, Any]


def driver_killed(folder: Path, scale: float) -> Outcome:
    """SIGKILL of the driver at 50 random points (at full length), its output resumed each time until it is whole."""
    videos = _videos(folder / "videos", 24)
    embed_here(videos, folder / "WHOLE")
    whole = fragment_bytes(folder / "WHOLE")
    rng, num_kills, num_outputs, holds = random.Random(0), 0, 0, True
    while num_kills < max(5, int(50 * scale)):
        out, points = folder / f"OUT{num_outputs}", [str(rng.randrange(1, 60)) for _ in range(24)]
        module = [sys.executable, "-m", "tests.faults.killed_driver", str(videos), str(out), *points, "1000000"]
        ends = subprocess.run(module, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
        holds &= fragment_bytes(out) == whole and verify_output(OutputFolder(str(out))).ok and ends[-1] == "0"
        num_kills, num_outputs = num_kills + ends.count("-9"), num_outputs + 1
    facts = {"kills": num_kills, "outputs": num_outputs, "clips_each": len(whole), "same_bytes": holds}
    return Outcome(holds=holds, facts=facts)


@dataclass(frozen=True, slots=True)
class _Victim:
    """Who is killed, how often, and how long it is left alone in between."""

    actor: str
    num_kills: int
    every_seconds: float


def workers_killed(folder: Path, scale: float) -> Outcome:
    """SIGKILL of the decode actor 20 times, every 5 s; of the encode actor 5 times (2,000 clips, at full length)."""
    num_clips = int(2000 * max(scale, 0.2))
    # Pictures of a size that a run outlasts its kills, on as many cores as it was chosen for.
    images = _large_images(folder / "images", num_clips)
    victims = [_Victim("DecodeActor", max(4, int(20 * scale)), 5), _Victim("EncodeActor", max(2, int(5 * scale)), 15)]
    # Undisturbed before and after, because this machine is not as fast at all times.
    undisturbed = [_seconds_with_kills(images, folder / "WHOLE")[0]]
    runs = {victim: _seconds_with_kills(images, folder / victim.actor, victim) for victim in victims}
    undisturbed.append(_seconds_with_kills(images, folder / "AGAIN")[0])
    facts: dict[str, Any] = {"clips": num_clips, "undisturbed_seconds": " and ".join(f"{s:.1f}" for s in undisturbed)}
    holds = True
    for victim, (seconds, num_killed) in runs.items():
        out = folder / victim.actor
        report = verify_output(OutputFolder(str(out)))
        same = fragment_bytes(out) == fragment_bytes(folder / "WHOLE")
        slower = 2 * seconds / sum(undisturbed) - 1
        within = "within" if slower <= 0.15 else "beyond"
        facts[victim.actor] = (
            f"{num_killed} of {victim.num_kills} kills, {report.num_rows} rows, {report.num_error_rows} errors, "
            f"same bytes {same}, {seconds:.1f} s, {slower:.0%} slower ({within} the 15% aimed at, not part of `holds`)"
        )
        holds &= report.ok and same and report.num_rows == num_clips and num_killed == victim.num_kills
    return Outcome(holds=holds, facts=facts)


def _seconds_with_kills(images: Path, out: Path, victim: _Victim | None = None) -> tuple[float, int]:
    """One run on two cores, from the command to its end, and how many of the kills happened."""
    started, num_killed = time.monotonic(), 0
    with Command("embed", images, "--out", out, *SETTINGS, "--runner", "ray", "--set", "ray.num_cpus=2") as command:
        if victim is not None:
            num_killed = _kill(command, victim, out, len(list(images.iterdir())))
        if command.finish(1200).returncode:
            raise RuntimeError(f"the run into {out.name} failed")
    return time.monotonic() - started, num_killed


def _kill(command: Command, victim: _Victim, out: Path, num_clips: int) -> int:
    """Kill a run's actors from its first fragment to its last; how many times there was one."""
    words, num_killed = f"({victim.actor})", 0
    wait_until(lambda: num_fragments(out))
    for _ in range(victim.num_kills):
        wait_until(lambda: command.has_ended() or command.processes(words), 60)
        pids = command.processes(words) if num_fragments(out) < num_clips else []
        for pid in pids:
            send(pid, signal.SIGKILL)
        num_killed += bool(pids)
        wait_until(command.has_ended, victim.every_seconds)
    return num_killed


def node_killed(folder: Path, scale: float) -> Outcome:
    """SIGKILL of the raylet of a worker node, which ends its workers, in a Ray cluster at work."""
    del scale
    return _in_a_cluster("tests.soak.lost_node", folder)


def _in_a_cluster(module: str, folder: Path) -> Outcome:
    images = _images(folder / "images", 400)
    embed_here(images, folder / "WHOLE")
    done = subprocess.run(
        [sys.executable, "-m", module, str(images), str(folder / "OUT")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    report = verify_output(OutputFolder(str(folder / "OUT"))) if not done.returncode else None
    same = fragment_bytes(folder / "OUT") == fragment_bytes(folder / "WHOLE")
    said = done.stdout.splitlines()[-1] if report else " ".join(done.stderr.split())[-300:]
    facts = {"clips": 400, "it_said": said, "same_bytes": same}
    return Outcome(holds=report is not None and report.ok and same, facts=facts)


def corrupt_files(folder: Path, scale: float) -> Outcome:
    """1, 10 and 100 % corrupt files (of 1,000 at full length)."""
    count = int(1000 * max(scale, 0.2))
    images = _images(folder / "images", count)
    embed_here(images, folder / "WHOLE")
    whole = _vectors(folder / "WHOLE")
    facts: dict[str, Any] = {"files": count}
    holds = True
    for percent in (1, 10, 100):
        media, out = folder / f"media{percent}", folder / f"OUT{percent}"
        media.mkdir()
        for number, path in enumerate(sorted(images.iterdir())):
            content = path.read_bytes()
            (media / path.name).write_bytes(content[: len(content) // 3] if number % (100 // percent) == 0 else content)
        summary = embed_here(media, out)
        same = all(whole[name] == vector for name, vector in _vectors(out).items()) if percent < 100 else True
        facts[f"{percent}%"] = f"{summary.num_new_rows} rows, {summary.num_errors} errors"
        holds &= same and summary.num_new_rows + summary.num_errors == count
        holds &= verify_output(OutputFolder(str(out))).ok
    return Outcome(holds=holds, facts=facts)


def decoders_hang(folder: Path, scale: float) -> Outcome:
    """Decoders stopped for ever, once for every tenth file; then a retry."""
    num_hangs = max(2, int(10 * scale))
    videos = _videos(folder / "videos", num_hangs * 10)
    out = folder / "OUT"
    hasty = ("--set", "decode.timeout_seconds=2")
    hung: set[int] = set()
    with Command("embed", videos, "--out", out, *SETTINGS, *hasty, "--runner", "local") as command:
        while not command.has_ended():
            done = num_fragments(out)
            for pid in command.processes(DECODER_NAME):
                if len(hung) < num_hangs and done >= 9 * len(hung) + 1 and pid not in hung:
                    hung.add(pid)
                    send(pid, signal.SIGSTOP)
            time.sleep(0.05)
        command.finish()
    first = verify_output(OutputFolder(str(out)))
    retry(out, overrides=["decode.timeout_seconds=60"], runner="local")
    last = verify_output(OutputFolder(str(out)))
    facts = {"clips": first.num_clips, "hangs": len(hung), "errors": first.num_error_rows, "after_retry": last.num_rows}
    within = first.num_error_rows <= len(hung)
    return Outcome(holds=first.ok and last.ok and within and last.num_rows == num_hangs * 10, facts=facts)


def many_images(folder: Path, scale: float) -> Outcome:
    """Many images (100,000 of 32x32 at one token, 256 a request): the driver's memory and the output's files."""
    count = max(2000, int(100_000 * scale))
    images = folder / "images"
    images.mkdir()
    for number in range(count):
        picture = np.full((32, 32, 3), number % 251, dtype=np.uint8)
        picture[0, 0] = (number & 255, number >> 8 & 255, number >> 16)
        (images / f"{number}.ppm").write_bytes(b"P6 32 32 255\n" + picture.tobytes())
    out = folder / "OUT"
    peak_kib = 0
    # One token an image: 100,000 files are the point, and not their pixels.
    small = ("--set", "sizes.max_tokens_per_frame=1", "--set", "request.max_patches=1024")
    with Command("embed", images, "--out", out, "--model", "random:tiny", *small, "--runner", "ray") as command:
        while not command.has_ended():
            status = Path(f"/proc/{command.pid}/status").read_text()
            if "VmHWM" in status:
                peak_kib = max(peak_kib, int(status.split("VmHWM:")[1].split()[0]))
            time.sleep(0.2)
        ended = command.finish(1200)
    files = sum(1 for path in out.rglob("*") if path.is_file())
    report = verify_output(OutputFolder(str(out)))
    facts = {"images": count, "rows": report.num_rows, "driver_peak_mib": peak_kib >> 10, "output_files": files}
    holds = report.ok and ended.returncode == 0 and report.num_rows == count and peak_kib < 1 << 20 and files <= 1000
    return Outcome(holds=holds, facts=facts)


def long_video(folder: Path, scale: float) -> Outcome:
    """A long video (ten hours of 96x64 at one frame a second) by the serial runner, killed in the middle."""
    num_frames = int(36_000 * max(scale, 0.1))
    video = folder / "long.mp4"
    with av.open(str(video), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(num_frames):
            picture = np.full((64, 96, 3), number % 256, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    out = folder / "OUT"
    settings = ("--set", "clips.mode=stride", "--set", "clips.seconds=60", *SETTINGS, "--runner", "local")
    peaks_kib: dict[str, int] = {}
    with Command("embed", video, "--out", out, *settings) as command:
        wait_until(lambda: num_fragments(out) >= num_frames // 120, 600)
        for name, pids in {"decoder": command.processes(DECODER_NAME), "runner": [command.pid]}.items():
            statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
            peaks_kib[name] = max(int(status.split("VmHWM:")[1].split()[0]) for status in statuses)
        os.kill(command.pid, signal.SIGKILL)
    before = {
        path.name: path.stat().st_mtime_ns for path in (out / "embeddings").iterdir() if path.suffix == ".parquet"
    }
    config = {"clips": {"mode": "stride", "seconds": 60}}
    summary = embed_here(video, out, **config)
    kept = all((out / "embeddings" / name).stat().st_mtime_ns == written for name, written in before.items())
    report = verify_output(OutputFolder(str(out)))
    facts = {
        "video_seconds": num_frames,
        "clips": report.num_clips,
        "done_before_the_kill": len(before),
        "done_after": summary.num_requests,
        **{f"{name}_peak_mib": peak >> 10 for name, peak in peaks_kib.items()},
    }
    return Outcome(
        holds=report.ok and kept and sum(peaks_kib.values()) < 2 << 20 and summary.num_errors == 0, facts=facts
    )


def fuzz(folder: Path, scale: float) -> Outcome:
    """Mutated media through probe and decode, into planes too: pixels or one error each, and the next one is served."""
    seeds = make_seeds(folder)
    num_samples = len(seeds)
    seeds += sorted(path for path in SAMPLES.rglob("*.*") if path.stat().st_size <= MOST_SEED_BYTES)
    num_samples = len(seeds) - num_samples
    rng, end = random.Random(int(1000 * scale)), time.monotonic() + max(20, 180 * scale)
    codes: dict[str, int] = {}
    num_inputs = 0
    limits, attempts = LimitsConfig(max_decoder_bytes=1 << 30), Attempts(str(folder / "attempts"))
    auto, animated = DecodeConfig(timeout_seconds=5), ImagesConfig(animated="video")
    decord = DecodeConfig(timeout_seconds=2, video="decord")
    with Sandbox(auto, ImagesConfig(), limits, attempts) as box, Sandbox(decord, animated, limits, attempts) as other:
        while time.monotonic() < end:
            seed = rng.choice(seeds)
            target = folder / f"m{num_inputs}{seed.suffix}"
            target.write_bytes(mutate(seed.read_bytes(), rng))
            code = _outcome(other if num_inputs % 4 == 0 else box, target)
            codes[code] = codes.get(code, 0) + 1
            target.unlink()
            num_inputs += 1
        good = {_outcome(sandbox, seeds[0]) for sandbox in (box, other)}
    facts = {"inputs": num_inputs, "seeds": len(seeds), "of_them_samples": num_samples, **dict(sorted(codes.items()))}
    return Outcome(holds=good == {"rows"}, facts=facts)


def _outcome(box: Sandbox, path: Path) -> str:
    try:
        info = box.probe(str(path))
        indices = tuple(range(min(info.num_frames, 4)))
        is_even = info.media_type is MediaType.VIDEO and info.height % 2 == info.width % 2 == 0
        num_bytes = planes_bytes(len(indices), info.height, info.width) if is_even else 0
        job = ClipJob(
            uri=str(path),
            media_type=info.media_type,
            frame_indices=indices,
            num_source_frames=info.num_frames,
            resized_height=64,
            resized_width=64,
            plane_size=(info.height, info.width) if is_even else None,
        )
        report = box.decode(job, SharedBuffer(max(1 << 20, num_bytes)), 0)
    except MediaError as error:
        return ErrorCode(error.code).value
    return "planes" if report.is_planar else "rows"


def _videos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        make_video(folder / f"{number:04}.mp4", num_frames=10 + number % 30, width=64 + 16 * (number // 30))
    return folder


def _images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        make_image(folder / f"{number:05}.png", width=64, height=64, seed=number)
    return folder


def _large_images(folder: Path, count: int, side: int = 512) -> Path:
    folder.mkdir()
    first = picture(0, side, side)
    for number in range(count):
        moved = np.roll(first, (number // side, number % side), axis=(0, 1))
        Image.fromarray(moved).save(folder / f"{number:05}.jpg")
    return folder


def _vectors(out: Path) -> dict[str, list[float]]:
    rows = ds.dataset(out / "embeddings", format="parquet").to_table(["source_uri", "embedding"]).to_pylist()
    return {Path(row["source_uri"]).name: row["embedding"] for row in rows}


SCENARIOS: tuple[Callable[[Path, float], Outcome], ...] = (
    driver_killed,
    workers_killed,
    node_killed,
    corrupt_files,
    decoders_hang,
    many_images,
    long_video,
    fuzz,
)
