from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional

from pipeline.device.turns import IndivisibleError
from pipeline.encoder.encode import Encoder, wants_deepstack
from pipeline.errors import ModelError, RequestError

from .factories import (
    CPU,
    MIXED_GRIDS,
    make_checkpoint,
    make_encoder,
    make_output,
    make_rows,
    make_spec,
    relative_error,
)

LEVELS = ["clip", "frame", "token"]


@pytest.mark.parametrize(("level", "expected"), [("clip", 6), ("frame", 10), ("token", 78)])
def test_each_level_gives_one_vector_for_each_of_its_units(level, expected):
    encoded = make_encoder().encode(make_rows(MIXED_GRIDS), MIXED_GRIDS, make_output(level))
    assert encoded.vectors.shape == (expected, make_encoder().vector_dim)
    assert encoded.vectors.dtype == torch.float32
    assert encoded.deepstack is None


def test_levels_are_means_of_the_level_below():
    encoder, rows = make_encoder(), make_rows(MIXED_GRIDS)
    tokens, frames, clips = (
        encoder.encode(rows, MIXED_GRIDS, make_output(level)).vectors for level in ("token", "frame", "clip")
    )
    per_frame = tokens.split([h * w // 4 for t, h, w in MIXED_GRIDS for _ in range(t)])
    assert torch.allclose(frames, torch.stack([frame.mean(0) for frame in per_frame]), atol=1e-6)
    per_clip = frames.split([t for t, _, _ in MIXED_GRIDS])
    assert torch.allclose(clips, torch.stack([clip.mean(0) for clip in per_clip]), atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_vectors_are_normalised_after_pooling(level):
    encoder, rows = make_encoder(), make_rows(MIXED_GRIDS)
    plain = encoder.encode(rows, MIXED_GRIDS, make_output(level)).vectors
    unit = encoder.encode(rows, MIXED_GRIDS, make_output(level, normalize=True)).vectors
    assert torch.allclose(unit, functional.normalize(plain, dim=-1), atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("row_bytes", [768, 1536], ids=["image", "video"])
def test_packed_together_equals_encoded_alone(level, row_bytes):
    encoder, rows = make_encoder(), make_rows(MIXED_GRIDS, row_bytes)
    packed = encoder.encode(rows, MIXED_GRIDS, make_output(level)).vectors
    alone = [
        encoder.encode(part, [grid], make_output(level)).vectors
        for part, grid in zip(rows.split([t * h * w for t, h, w in MIXED_GRIDS]), MIXED_GRIDS, strict=True)
    ]
    assert relative_error(packed, torch.cat(alone)) <= 1e-6


@pytest.mark.parametrize("max_patches", [1, 16, 50, 100])
@pytest.mark.parametrize("level", LEVELS)
def test_encoded_in_chunks_equals_encoded_whole(level, max_patches):
    rows, output = make_rows(MIXED_GRIDS), make_output(level, deepstack=True)
    whole = make_encoder().encode(rows, MIXED_GRIDS, output)
    chunked = make_encoder(max_patches=max_patches).encode(rows, MIXED_GRIDS, output)
    assert relative_error(chunked.vectors, whole.vectors) <= 1e-6
    if level == "token":
        assert relative_error(chunked.deepstack, whole.deepstack) <= 1e-6


def test_deepstack_comes_beside_the_tokens_of_the_tower():
    spec = make_spec()
    encoder, rows, output = make_encoder(spec), make_rows([(2, 4, 4)]), make_output(deepstack=True)
    encoded = encoder.encode(rows, [(2, 4, 4)], output)
    assert encoded.deepstack.shape == (8, 2, spec.out_hidden_size)
    plain = encoder.encode(rows, [(2, 4, 4)], make_output())
    assert torch.equal(plain.vectors, encoded.vectors)
    assert not torch.allclose(encoded.deepstack[:, 0], encoded.deepstack[:, 1])


def test_deepstack_is_for_tokens_alone():
    assert wants_deepstack(make_spec(), make_output("token", deepstack=True))
    assert not wants_deepstack(make_spec(), make_output("clip", deepstack=True))
    assert not wants_deepstack(make_spec(), make_output("token"))


def test_deepstack_of_a_model_without_it_is_refused():
    spec = make_spec(model_type="qwen3_5", deepstack_visual_indexes=())
    with pytest.raises(ModelError, match=r"qwen3_5.*output\.deepstack=false"):
        make_encoder(spec).encode(make_rows([(1, 2, 2)]), [(1, 2, 2)], make_output(deepstack=True))


def test_float16_output_is_the_float32_output_rounded():
    encoder, rows = make_encoder(), make_rows(MIXED_GRIDS)
    full = encoder.encode(rows, MIXED_GRIDS, make_output("clip", normalize=True)).vectors
    half = encoder.encode(rows, MIXED_GRIDS, make_output("clip", normalize=True, dtype="float16")).vectors
    assert torch.equal(half, full.half())


def test_an_image_equals_a_video_of_that_frame_twice():
    encoder, image = make_encoder(), make_rows([(1, 4, 6)], 768)
    video = image.view(24, 3, 1, 256).expand(-1, -1, 2, -1).reshape(24, 1536)
    results = [encoder.encode(rows, [(1, 4, 6)], make_output("clip")).vectors for rows in (image, video)]
    assert torch.equal(*results)


def test_random_weights_tell_inputs_apart():
    encoder = make_encoder()
    dark, light = (torch.full((16, 1536), value, dtype=torch.uint8) for value in (20, 230))
    noise = [make_rows([(1, 4, 4)], seed=seed) for seed in (1, 2)]
    vectors = encoder.encode(torch.cat([dark, light, *noise]), [(1, 4, 4)] * 4, make_output("clip", normalize=True))
    similarity = vectors.vectors @ vectors.vectors.T - torch.eye(4)
    assert similarity.max() < 0.99


def test_threads_may_share_an_encoder():
    encoder, output = make_encoder(max_patches=40), make_output("frame")
    requests = [(make_rows([grid]), [grid]) for grid in MIXED_GRIDS * 4]
    expected = [encoder.encode(*request, output).vectors for request in requests]
    with ThreadPoolExecutor(2) as pool:
        vectors = list(pool.map(lambda request: encoder.encode(*request, output).vectors, requests))
    # A new thread may split products over another number of cores.
    assert max(map(relative_error, vectors, expected)) <= 1e-6


def test_float32_switches_tf32_off():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        make_encoder()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("rows", "grids", "expected"),
    [
        (torch.zeros(16, 1536), [(1, 4, 4)], "uint8"),
        (torch.zeros(16, 1000, dtype=torch.uint8), [(1, 4, 4)], r"768 or 1536.*\(16, 1000\)"),
        (torch.zeros(16 * 1536, dtype=torch.uint8), [(1, 4, 4)], "num_patches"),
        (torch.zeros(15, 1536, dtype=torch.uint8), [(1, 4, 4)], "15 rows for 1 clips of 16 patches"),
        (torch.zeros(12, 1536, dtype=torch.uint8), [(1, 3, 4)], r"multiples of 2, got \[1, 3, 4\]"),
        (torch.zeros(0, 1536, dtype=torch.uint8), [(0, 4, 4)], "positive"),
        (torch.zeros(0, 1536, dtype=torch.uint8), [], "at least one clip"),
    ],
)
def test_rows_that_contradict_their_grids_are_refused(rows, grids, expected):
    with pytest.raises(RequestError, match=expected):
        make_encoder().encode(rows, grids, make_output())


def test_a_bfloat16_encoder_is_close_to_the_float32_one():
    rows, output = make_rows(MIXED_GRIDS), make_output("clip", normalize=True)
    exact = make_encoder().encode(rows, MIXED_GRIDS, output).vectors
    encoder = Encoder(make_checkpoint(), device=CPU, dtype=torch.bfloat16, max_patches=1000)
    rounded = encoder.encode(rows, MIXED_GRIDS, output).vectors
    assert (exact * rounded).sum(-1).min() > 0.999


class RefusesAbove:
    """Stands for a device whose memory holds so many patches, in front of a real tower."""

    def __init__(self, tower: torch.nn.Module, max_patches: int) -> None:
        self.tower, self.max_patches, self.sizes = tower, max_patches, []

    def __call__(self, pixel_values, grids, **settings):
        self.sizes.append(pixel_values.shape[0])
        if pixel_values.shape[0] > self.max_patches:
            raise torch.OutOfMemoryError("no memory left")
        return self.tower(pixel_values, grids, **settings)


@pytest.mark.parametrize("level", LEVELS)
def test_out_of_device_memory_halves_the_chunk_and_loses_nothing(level):
    rows, output = make_rows(MIXED_GRIDS), make_output(level, deepstack=True)
    whole = make_encoder().encode(rows, MIXED_GRIDS, output)
    encoder = make_encoder()
    encoder._tower = RefusesAbove(encoder._tower, 110)
    halved = encoder.encode(rows, MIXED_GRIDS, output)
    assert max(encoder._tower.sizes) > 110
    assert relative_error(halved.vectors, whole.vectors) <= 1e-6
    encoder._tower.sizes.clear()
    encoder.encode(rows, MIXED_GRIDS, output)
    assert max(encoder._tower.sizes) <= 110, "what did not fit once is not tried again"


def test_a_temporal_patch_that_does_not_fit_changes_nothing_for_later_requests():
    rows, output = make_rows(MIXED_GRIDS), make_output("clip")
    whole = make_encoder().encode(rows, MIXED_GRIDS, output)
    encoder = make_encoder()
    tower = encoder._tower
    encoder._tower = RefusesAbove(tower, 5)
    with pytest.raises(IndivisibleError, match=r"patches does not fit .*max_tokens_per_frame"):
        encoder.encode(rows, MIXED_GRIDS, output)
    encoder._tower = RefusesAbove(tower, 1000)
    assert torch.equal(encoder.encode(rows, MIXED_GRIDS, output).vectors, whole.vectors)
    assert encoder._tower.sizes == [rows.shape[0]]
