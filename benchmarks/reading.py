"""What does it save that the clips of a request go on where the last one ended?

    python -m benchmarks.reading VIDEO... --seconds 4 --repeats 5

Every video is cut into clips and packed into requests as a run would do it; then all its clips are decoded, resized and
written as patch rows in this process: each by itself, as neighbours in their requests, and all in one row. CPU seconds
count; the ways take turns, and the least of each counts, because other processes only ever add time.

`lead-in` are packets from the keyframe before a request's first frame to that frame, as a share of all packets: what
splitting a file among workers costs, whatever is kept open.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import print_record, print_table
from benchmarks.rows import RowsBuffer
from pipeline.config import Config, DecodeConfig
from pipeline.flow.local import LocalRunner
from pipeline.flow.run import plan_only
from pipeline.media.container import identify
from pipeline.media.frames import open_frames
from pipeline.media.location import open_binary
from pipeline.media.reading import VideoSource, starts_before
from pipeline.media.video_pyav import IndexCache
from pipeline.plan.schema import Clip
from pipeline.request.build import clip_job

Runs = Sequence[Sequence[Clip]]


def main() -> None:
    """Measure every video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    parser.add_argument("--max-tokens", type=int, help="bound on merged tokens a frame; default: official sizes")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.from_values(
        {
            "clips": {"mode": "stride", "seconds": arguments.seconds},
            "sizes": {"max_tokens_per_frame": arguments.max_tokens},
            "decode": {"video": "pyav"},
        }
    )
    results = [measure(video, config, arguments.repeats) for video in arguments.videos]
    ways = ("alone", "in requests", "in one row")
    print_table(
        ["video", "clips", "requests", *(f"{way}, CPU-ms/s" for way in ways), "lead-in"],
        [
            [
                result["video"],
                str(result["clips"]),
                str(result["requests"]),
                *(f"{result[way]:.1f}" for way in ways),
                f"{result['lead_in']:.0%}",
            ]
            for result in results
        ],
    )
    print_record("reading", vars(arguments), results)


def measure(video: str, config: Config, repeats: int) -> dict[str, object]:
    """One video's CPU milliseconds per second of video, for each way."""
    requests = requests_of(video, config)
    clips = [clip for request in requests for clip in request]
    ways: dict[str, Runs] = {"alone": [[clip] for clip in clips], "in requests": requests, "in one row": [clips]}
    rows, seconds = RowsBuffer(clips), sum(clip.video_seconds for clip in clips)
    turns = [[decode(runs, config, rows) for runs in ways.values()] for _ in range(1 + repeats)]
    least = np.min(turns[1:], axis=0)
    return {
        "video": Path(video).name,
        "clips": len(clips),
        "requests": len(requests),
        "lead_in": lead_in(requests, config),
        **{way: 1e3 * float(value) / seconds for way, value in zip(ways, least, strict=True)},
    }


def requests_of(video: str, config: Config) -> list[tuple[Clip, ...]]:
    """A video's clips, request by request."""
    with LocalRunner(config) as runner:
        plans, _ = plan_only([video], config, runner)
        return [request.clips for plan in plans for request in plan.requests]


def decode(runs: Runs, config: Config, rows: RowsBuffer) -> float:
    """Decode runs of clips as the decoder process does, nothing kept from run to run: CPU seconds of this process."""
    started = time.process_time()
    for clips in runs:
        cache = IndexCache()
        for clip, following in zip_longest(clips, clips[1:]):
            job = clip_job(clip, clip.sources[0], following)
            with ExitStack() as stack:
                file = stack.enter_context(open_binary(job.uri))
                frames = open_frames(job, file, DecodeConfig(video="pyav"), config.images, config.limits, cache).frames
                rows.fill(clip, frames)
                if cache.keeps(file):
                    stack.pop_all()
    return time.process_time() - started


def lead_in(runs: Runs, config: Config) -> float:
    """Packets between a run's first start and its first wanted one, over all packets of the video."""
    num_packets = 0
    for clips in runs:
        first = clips[0].frame_indices[0]
        uri = clips[0].source_uris[0]
        with open_binary(uri) as file:
            source = VideoSource(file=file, uri=uri, file_format=identify(file, uri), limits=config.limits)
            index = IndexCache().get(source, first, first)
        target = index.numbers[[first - index.first_number]]
        num_packets += int(target[0] - starts_before(index, target)[0])
    return num_packets / runs[0][0].num_frames


if __name__ == "__main__":
    main()
