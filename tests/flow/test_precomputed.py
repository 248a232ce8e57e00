"""Patch rows from another program: taken in as prepared requests, or refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import Config, PrecomputedClip, embed, store_precomputed
from pipeline.errors import OutputError, OutputMismatchError, RequestError
from pipeline.flow.inspect import inspect_media
from pipeline.media.container import MediaType
from pipeline.sink.output import OutputFolder
from pipeline.sink.verify import verify_output
from tests.flow.tables import embeddings_of
from tests.media_factory import make_image, make_video

CONFIG = Config(model="random:tiny")


def clip_of(path: Path) -> PrecomputedClip:
    """What another program would have made of a file: the rows that Patchwire shows of it, an image's frame once."""
    [found] = inspect_media(str(path), CONFIG)
    rows = found.patch_rows
    if found.clip.media_type is MediaType.IMAGE:
        rows = rows.reshape(len(rows), 3, 2, 256)[:, :, 0].reshape(len(rows), 768)
    return PrecomputedClip(
        source_uri=str(path),
        media_type=found.clip.media_type.value,
        grid_thw=found.clip.grid_thw,
        patch_rows=rows,
        timestamps_seconds=found.clip.timestamps_seconds,
        start_seconds=found.clip.start_seconds,
        end_seconds=found.clip.end_seconds,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("media")
    return [make_video(folder / "v.mp4", num_frames=30), make_image(folder / "i.png")]


@pytest.fixture(scope="module")
def clips(files: list[Path]) -> list[PrecomputedClip]:
    return [clip_of(path) for path in files]


def test_rows_from_elsewhere_give_the_vectors_of_their_media(
    files: list[Path], clips: list[PrecomputedClip], tmp_path: Path
) -> None:
    video, image = clips
    wider = replace(image, patch_rows=image.patch_rows.astype(np.int64))
    assert store_precomputed([video, wider], tmp_path / "P", config=CONFIG) == 2
    embed(tmp_path / "P", tmp_path / "OUT", runner="local")
    embed(files, tmp_path / "DIRECT", config=CONFIG, runner="local")
    found, expected = embeddings_of(tmp_path / "OUT"), embeddings_of(tmp_path / "DIRECT")
    for name in ("source_uri", "embedding", "grid_thw", "frame_timestamps_seconds", "start_seconds", "end_seconds"):
        assert found[name].equals(expected[name])
    assert set(found["decoder"].to_pylist()) == {"precomputed"}
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok
    with pytest.raises(OutputMismatchError, match=r"model\.id"):
        embed(tmp_path / "P", tmp_path / "OUT2", model="random:2b", runner="local")


ROWS = np.zeros((2 * 4 * 6, 1536), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"media_type": "audio"}, "expected video or image, got 'audio'"),
        ({"media_type": "image", "grid_thw": (1, 4, 12)}, r"expected \(48, 768\), got \(48, 1536\)"),
        ({"grid_thw": (2, 4)}, "three positive integers"),
        ({"grid_thw": (2, -4, -6)}, "three positive integers"),
        ({"grid_thw": (2, 4, 6.0)}, "three positive integers"),
        ({"grid_thw": None}, "three positive integers"),
        ({"grid_thw": (2, 4, 5)}, r"expected \(40, 1536\), got \(48, 1536\)"),
        ({"grid_thw": (2, 8, 3)}, "h and w multiples of 2"),
        ({"grid_thw": (2**40, 4, 6)}, r"expected \(26388279066624, 1536\)"),
        ({"patch_rows": ROWS.reshape(-1)}, r"got \(73728,\)"),
        ({"patch_rows": ROWS / 255}, "expected uint8 pixels, got float64"),
        ({"patch_rows": ROWS.astype(np.int16) - 1}, "expected 0 to 255, got -1 to -1"),
        ({"patch_rows": ROWS.astype(np.uint16) + 256}, "expected 0 to 255, got 256 to 256"),
        ({"timestamps_seconds": (0.0,)}, "1 timestamps for 2 temporal patches"),
        ({"timestamps_seconds": (0.0, float("nan"))}, "not a finite number"),
        ({"end_seconds": float("inf")}, "not a finite number"),
        ({"clip_index": -1}, "clip_index is -1"),
    ],
)
def test_rows_that_are_not_what_they_claim_are_refused_by_name(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    clip = PrecomputedClip(source_uri="s3://b/a.mp4", media_type="video", grid_thw=(2, 4, 6), patch_rows=ROWS)
    with pytest.raises(RequestError, match=message):
        store_precomputed([replace(clip, **changes)], tmp_path / "P", config=CONFIG)
    with pytest.raises(OutputError, match="no plan yet"):
        embed(tmp_path / "P", tmp_path / "OUT", runner="local")


def test_a_clip_that_comes_twice_and_a_folder_that_is_not_new_are_refused(tmp_path: Path) -> None:
    clip = PrecomputedClip(source_uri="/a", media_type="video", grid_thw=(2, 4, 6), patch_rows=ROWS)
    with pytest.raises(RequestError, match="clip 0 of this source came before"):
        store_precomputed([clip, clip], tmp_path / "P", config=CONFIG)
    assert store_precomputed([clip], tmp_path / "P", config=CONFIG) == 1
    with pytest.raises(OutputError, match=r"expected a new folder.*name another, or remove it"):
        store_precomputed([clip], tmp_path / "P", config=CONFIG)


def test_a_call_that_was_refused_in_the_middle_can_be_made_again_and_leaves_nothing_of_the_first(
    tmp_path: Path,
) -> None:
    clips = [
        PrecomputedClip(source_uri=f"/{number}", media_type="video", grid_thw=(2, 4, 6), patch_rows=ROWS + number)
        for number in range(4)
    ]
    small = Config.from_values({"model": "random:tiny", "request": {"max_patches": 48}})
    bad = replace(clips[3], grid_thw=(2, 4, 5))
    with pytest.raises(RequestError):
        store_precomputed([*clips[:3], bad], tmp_path / "P", config=small)
    assert list((tmp_path / "P" / "requests").iterdir())
    with pytest.raises(OutputError, match="no plan yet"):
        embed(tmp_path / "P", tmp_path / "OUT", runner="local")
    assert store_precomputed(clips[2:], tmp_path / "P", config=small) == 2
    assert len(list((tmp_path / "P" / "requests").iterdir())) == 2
    embed(tmp_path / "P", tmp_path / "OUT", runner="local")
    assert embeddings_of(tmp_path / "OUT")["source_uri"].to_pylist() == ["/2", "/3"]
    assert verify_output(OutputFolder(str(tmp_path / "OUT"))).ok


def test_a_finished_output_of_embeddings_is_never_taken_for_an_unfinished_store(tmp_path: Path) -> None:
    clip = PrecomputedClip(source_uri="/a", media_type="video", grid_thw=(2, 4, 6), patch_rows=ROWS)
    embed(make_image(tmp_path / "a.png"), tmp_path / "OUT", config=CONFIG, runner="local")
    with pytest.raises(OutputError, match="expected a new folder"):
        store_precomputed([clip], tmp_path / "OUT", config=CONFIG)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_grid_of_numpys_integers_is_one_of_pythons(tmp_path: Path, kind: type[np.integer]) -> None:
    for out, grid in (("P", (2, 4, 6)), ("N", np.array((2, 4, 6), kind))):
        clip = PrecomputedClip(source_uri="/a", media_type="video", grid_thw=grid, patch_rows=ROWS)
        assert store_precomputed([clip], tmp_path / out, config=CONFIG) == 1
    names = [[path.name for path in (tmp_path / out / "requests").iterdir()] for out in ("P", "N")]
    assert names[0] == names[1]
