import pytest
import torch

from .factories import MIXED_GRIDS, make_pixels, make_spec, official, relative_error, tower_like

FAMILIES = ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]


def family_spec(family: str, **changes: object):
    deepstack = (0, 2) if family.startswith("qwen3_vl") else ()
    return make_spec(**({"model_type": family, "deepstack_visual_indexes": deepstack} | changes))


@torch.inference_mode()
def run_official(model: torch.nn.Module, pixels: torch.Tensor, grids) -> list[torch.Tensor]:
    result = model(pixels, grid_thw=torch.tensor([list(grid) for grid in grids]))
    return [result.pooler_output, *getattr(result, "deepstack_features", [])]


@torch.inference_mode()
def run_ours(model: torch.nn.Module, spec, pixels: torch.Tensor, grids) -> list[torch.Tensor]:
    result = tower_like(model, spec)(pixels, grids, with_deepstack=True)
    return [result.tokens, *result.deepstack]


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_grids_in_float32_match_the_official_model(family, head_dim):
    spec = family_spec(family, head_dim=head_dim)
    model, pixels = official(spec), make_pixels(MIXED_GRIDS)
    ours, theirs = run_ours(model, spec, pixels, MIXED_GRIDS), run_official(model, pixels, MIXED_GRIDS)
    assert len(ours) == len(theirs) == 1 + len(spec.deepstack_visual_indexes)
    assert max(map(relative_error, ours, theirs)) <= 1e-5


@pytest.mark.parametrize("grid", [(1, 2, 2), (4, 8, 6), (1, 32, 18)])
def test_a_single_medium_in_float32_matches_the_official_model(grid):
    spec = family_spec("qwen3_vl", num_position_embeddings=2304)
    model, pixels = official(spec), make_pixels([grid])
    ours, theirs = run_ours(model, spec, pixels, [grid]), run_official(model, pixels, [grid])
    assert max(map(relative_error, ours, theirs)) <= 1e-5


def test_deepstack_indexes_out_of_order_keep_their_own_mergers():
    spec = family_spec("qwen3_vl", deepstack_visual_indexes=(2, 0))
    model, pixels = official(spec), make_pixels([(2, 4, 4)])
    ours, theirs = run_ours(model, spec, pixels, [(2, 4, 4)]), run_official(model, pixels, [(2, 4, 4)])
    assert max(map(relative_error, ours, theirs)) <= 1e-5


def test_deepstack_mergers_do_not_run_unless_asked_for():
    spec = family_spec("qwen3_vl")
    tower = tower_like(official(spec), spec)
    calls = []
    for merger in tower.deepstack_merger_list:
        merger.register_forward_hook(lambda *_: calls.append(1))
    result = tower(make_pixels([(1, 4, 4)]), [(1, 4, 4)])
    assert result.deepstack == ()
    assert calls == []


@pytest.mark.parametrize("head_dim", [64, 72])
def test_bfloat16_is_as_close_to_float32_as_the_official_bfloat16(head_dim):
    spec = family_spec("qwen3_vl", head_dim=head_dim)
    rounded = official(spec, torch.bfloat16)
    pixels = make_pixels(MIXED_GRIDS).bfloat16()
    ours, theirs = run_ours(rounded, spec, pixels, MIXED_GRIDS), run_official(rounded, pixels, MIXED_GRIDS)
    reference = run_official(official(spec, torch.bfloat16).float(), pixels.float(), MIXED_GRIDS)

    def error(tokens: torch.Tensor, exact: torch.Tensor) -> float:
        return float((tokens.float() - exact).square().mean().sqrt())

    for our_tokens, their_tokens, exact in zip(ours, theirs, reference, strict=True):
        assert our_tokens.dtype == torch.bfloat16
        assert error(our_tokens, exact) <= 1.1 * error(their_tokens, exact)


def test_the_input_is_left_as_it_was():
    spec = family_spec("qwen3_vl")
    pixels = make_pixels([(2, 4, 4)])
    before = pixels.clone()
    tower_like(official(spec), spec)(pixels, [(2, 4, 4)])
    assert torch.equal(pixels, before)
