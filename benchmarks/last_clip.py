"""What does the last clip of a long file cost, with its safe start and without?

    python -m benchmarks.last_clip --minutes 30 --repeats 5

A minute of moving pictures, 640x360 by x264 (ultrafast), is repeated packet by packet into an MP4, a Matroska file, and
a Matroska file without Cues. Each is planned in clips of ten seconds; then its last clip is decoded alone in this
process, from the safe start that the plan carries and as if it carried none: CPU seconds (the least of the turns), and
bytes read, as Linux counts them. Both ways give the same rows, or this fails.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.measure import print_record, print_table
from benchmarks.reading import decode, requests_of
from benchmarks.rows import RowsBuffer
from pipeline.config import Config

WIDTH, HEIGHT, FPS, GOP = 640, 360, 25, 50
FILES: dict[str, dict[str, str]] = {"long.mp4": {}, "long.mkv": {}, "no_cues.mkv": {"live": "1"}}


def main() -> None:
    """Make the files and measure each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=60, help="length of what is repeated")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.from_values(
        {
            "clips": {"mode": "stride", "seconds": 10},
            "decode": {"video": "pyav"},
            "sizes": {"max_tokens_per_frame": 256},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        source = encode(Path(folder, "source.mp4"), arguments.seconds)
        turns = 60 * arguments.minutes // arguments.seconds
        results = []
        for name, options in FILES.items():
            path = repeat(source, Path(folder, name), turns, options)
            results.append(measure(path, config, arguments.repeats))
            path.unlink()
    print_table(
        ["file", "MB", "frames", "from the beginning, CPU-ms", "MB read", "from its safe start, CPU-ms", "MB read"],
        [
            [
                result["file"],
                f"{result['bytes'] / 1e6:.0f}",
                str(result["frames"]),
                f"{result['beginning_ms']:.0f}",
                f"{result['beginning_bytes'] / 1e6:.2f}",
                f"{result['start_ms']:.0f}" if result["has_start"] else "",
                f"{result['start_bytes'] / 1e6:.2f}" if result["has_start"] else "",
            ]
            for result in results
        ],
    )
    print_record("last_clip", vars(arguments), results)


def encode(path: Path, seconds: int) -> Path:
    """Pictures that move and have a little noise, as an MP4."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    noise = np.random.default_rng(0).integers(0, 12, (HEIGHT, WIDTH), np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = GOP
        for number in range(seconds * FPS):
            waves = np.sin((columns + 5 * number) / 40) * np.cos((rows - 3 * number) / 30)
            gray = (127 + 90 * waves).astype(np.uint8) + np.roll(noise, number)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="gray").reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    return path


def repeat(source: Path, target: Path, turns: int, options: dict[str, str]) -> Path:
    """The packets of a video, several times one after the other."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=options) as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        data = [bytes(packet) for packet in packets]
        length = sum(packet.duration or 0 for packet in packets)
        for turn in range(turns):
            for packet, content in zip(packets, data, strict=True):
                assert packet.pts is not None and packet.dts is not None, "an MP4 has all times"
                copy = av.Packet(content)
                copy.pts, copy.dts, copy.duration = (
                    packet.pts + turn * length,
                    packet.dts + turn * length,
                    packet.duration,
                )
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, copied
                output.mux(copy)
    return target


def measure(path: Path, config: Config, repeats: int) -> dict[str, Any]:
    """One file's last clip, both ways."""
    clips = [clip for request in requests_of(str(path), config) for clip in request]
    last = max(clips, key=lambda clip: clip.clip_index)
    ways = {"beginning": replace(last, origin=None), "start": last}
    rows = RowsBuffer([last])
    result: dict[str, Any] = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "frames": last.num_frames,
        "clips": len(clips),
        "has_start": last.origin is not None,
    }
    contents = []
    for way, clip in ways.items():
        seconds = [decode([[clip]], config, rows) for _ in range(repeats)]
        before = bytes_read()
        decode([[clip]], config, rows)
        result |= {f"{way}_ms": 1e3 * min(seconds), f"{way}_bytes": bytes_read() - before}
        contents.append(rows.content(clip))
    assert contents[0] == contents[1], "a safe start changed what comes"
    return result


def bytes_read() -> int:
    """All that this process has read so far."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


if __name__ == "__main__":
    main()
