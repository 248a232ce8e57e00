"""One long video whose clips are requests of several workers: nobody's work is the file, and nobody sees the seams."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import Config, embed
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.flow.tables import embeddings_of
from tests.media_factory import make_video

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_node_ray")]

_MINUTES = 20


def test_long_video_is_split_among_two_workers_and_gives_the_serial_runners_rows_to_the_bit(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", num_frames=60 * _MINUTES, fps=1, gop=90, options={"preset": "veryfast", "bf": "2"})
    config = Config.from_values(
        {
            "model": "random:tiny",
            "clips": {"mode": "stride", "seconds": 10},
            "frames": {"fps": 1},
            "request": {"max_patches": 1000},
            "ray": {"decode_workers": 2, "decode_cores": 0.5},
        }
    )
    outs = {runner: tmp_path / runner for runner in ("local", "ray")}
    for runner, out in outs.items():
        embed(tmp_path / "v.mp4", out, config=config, runner=runner)
        assert verify_output(OutputFolder(str(out))).ok
    (plan,) = outs["ray"].glob("plan/*.parquet")
    assert pq.read_metadata(plan).num_rows >= 10
    rows = embeddings_of(outs["ray"])
    assert rows["clip_index"].to_pylist() == list(range(6 * _MINUTES))
    assert rows.equals(embeddings_of(outs["local"]))
