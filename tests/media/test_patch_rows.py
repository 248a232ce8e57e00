"""Patch rows equal the official path's to the byte: its patchify, its resize, called one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pipeline.media.container import MediaType
from pipeline.media.grid import grid_of, row_bytes
from pipeline.media.patchify import write_clip
from pipeline.media.resize import resize_taps, resize_to_planes
from tests.media.helpers import evenly, make_job, probe, rows_of
from tests.media_factory import decode_plainly, make_image, picture
from tests.oracles import official_patch_rows


def official_resize(frames, height, width):
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    if stacked.shape[-2:] == (height, width):
        return stacked.contiguous()
    return torch.nn.functional.interpolate(stacked.contiguous(), (height, width), mode="bicubic", antialias=True)


def official_image_rows(planes):
    processor = Qwen2VLImageProcessorPil.__new__(Qwen2VLImageProcessorPil)
    rows, *_ = processor.patchify(planes, patch_size=16, merge_size=2, temporal_patch_size=2)
    both = rows.reshape(len(rows), 3, 2, 256)
    assert np.array_equal(both[:, :, 0], both[:, :, 1])
    return both[:, :, 0].reshape(len(rows), 768).astype(np.uint8)


def our_rows(frames, media_type, height, width):
    t, h, w = grid_of(media_type, len(frames), height, width)
    rows = np.full((t * h * w, row_bytes(media_type)), 77, np.uint8)
    write_clip(frames, rows, media_type, height, width)
    return rows


@given(
    num_frames=st.integers(1, 5),
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_video_rows_equal_the_official_ones(num_frames, source, blocks):
    height, width = (32 * side for side in blocks)
    frames = [picture(number, source[1], source[0]) for number in range(num_frames)]
    expected = official_patch_rows(official_resize(frames, height, width)).numpy()
    assert np.array_equal(our_rows(frames, MediaType.VIDEO, height, width), expected)


@given(source=st.tuples(st.integers(1, 90), st.integers(1, 90)), blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_image_rows_equal_the_official_ones(source, blocks):
    height, width = (32 * side for side in blocks)
    frame = picture(0, source[1], source[0])
    expected = official_image_rows(official_resize([frame], height, width)[0].numpy())
    assert np.array_equal(our_rows([frame], MediaType.IMAGE, height, width), expected)


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_resize_to_the_same_size_changes_nothing(size):
    frame = picture(1, size[1], size[0])
    assert np.array_equal(resize_to_planes(frame, *size), frame.transpose(2, 0, 1))


def test_odd_number_of_frames_repeats_the_last_one_and_a_single_frame_is_used_twice():
    first, second, third = (picture(number, 50, 40) for number in range(3))
    three = our_rows([first, second, third], MediaType.VIDEO, 32, 64)
    assert np.array_equal(three, our_rows([first, second, third, third], MediaType.VIDEO, 32, 64))
    alone = our_rows([first], MediaType.VIDEO, 32, 64)
    assert np.array_equal(alone, our_rows([first, first], MediaType.VIDEO, 32, 64))


@pytest.mark.parametrize("num_frames", [0, 1, 2, 5])
def test_wrong_number_of_frames_is_our_own_bug(num_frames):
    rows = np.zeros((2 * 4, 1536), np.uint8)
    with pytest.raises(AssertionError):
        write_clip([picture(number, 32, 32) for number in range(num_frames)], rows, MediaType.VIDEO, 32, 32)


@pytest.mark.parametrize(
    "name",
    ["b_frames.mp4", "quarter_turn.mp4", "odd_sides.webm", "one_frame.mp4", "odd_count.mp4", "variable_rate.mp4"],
)
def test_rows_of_a_video_file_equal_the_official_path(made, sandbox, name):
    frames, info = decode_plainly(made(name)), probe(made(name))
    indices = evenly(len(frames), 7)
    expected = official_patch_rows(official_resize([frames[index] for index in indices], 96, 64)).numpy()
    assert np.array_equal(rows_of(sandbox, make_job(made(name), info, indices, 96, 64)), expected)


def test_rows_of_an_image_file_equal_the_official_path(tmp_path, sandbox):
    path = make_image(tmp_path / "a.png")
    expected = official_image_rows(official_resize([picture(0, 80, 56)], 64, 96)[0].numpy())
    assert np.array_equal(rows_of(sandbox, make_job(path, probe(path), [0])), expected)


@given(
    size=st.tuples(st.integers(16, 200), st.integers(16, 200)),
    new_size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 999),
)
def test_taps_resize_to_torchs_own_bytes(size, new_size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = (32 * blocks for blocks in new_size)
    columns = apply_taps(image.transpose(2, 0, 1), width)
    both = apply_taps(columns.transpose(0, 2, 1), height).transpose(0, 2, 1)
    assert np.array_equal(both, resize_to_planes(image, height, width))


def apply_taps(planes, new_size):
    taps = resize_taps(planes.shape[-1], new_size)
    places = np.minimum(taps.starts[:, None] + np.arange(taps.weights.shape[1]), planes.shape[-1] - 1)
    total = (planes[..., places].astype(np.int64) * taps.weights).sum(-1) + (1 << (taps.precision - 1))
    return (total >> taps.precision).clip(0, 255).astype(np.uint8)
