import pytest

from pipeline.encoder.memory import affordable_patches, bytes_per_patch, peak_bytes, request_bytes

from .factories import make_output, make_spec

SPEC_2B = make_spec(
    depth=24, hidden_size=1024, num_heads=16, intermediate_size=4096, out_hidden_size=2048, num_position_embeddings=2304
)


def test_a_patch_costs_its_row_its_values_and_the_widest_half_block() -> None:
    assert bytes_per_patch(SPEC_2B, "bfloat16") == 1536 + 2 * (1536 + 1024 + 5 * 1024)


def test_the_peak_grows_with_patches_and_precision() -> None:
    assert peak_bytes(SPEC_2B, 2000, "bfloat16") == 2 * peak_bytes(SPEC_2B, 1000, "bfloat16")
    assert peak_bytes(SPEC_2B, 1000, "float32") > 1.9 * peak_bytes(SPEC_2B, 1000, "bfloat16")
    assert peak_bytes(SPEC_2B, 1000, "bfloat16", row_bytes=768) == peak_bytes(SPEC_2B, 1000, "bfloat16") - 768_000


def test_a_request_of_pooled_vectors_takes_a_pass_and_the_rows_that_wait_for_theirs() -> None:
    whole = request_bytes(SPEC_2B, 1000, "bfloat16", make_output("clip"), row_bytes=1536)
    halves = request_bytes(SPEC_2B, 1000, "bfloat16", make_output("clip"), row_bytes=1536, max_patches=500)
    assert whole == peak_bytes(SPEC_2B, 1000, "bfloat16")
    assert halves == peak_bytes(SPEC_2B, 500, "bfloat16") + 500 * 1536


def test_tokens_take_more_than_the_pass_that_makes_them() -> None:
    pooled, tokens, half_floats, deepstack = (
        request_bytes(SPEC_2B, 1000, "bfloat16", output, row_bytes=1536)
        for output in (
            make_output("clip"),
            make_output("token"),
            make_output("token", dtype="float16"),
            make_output("token", deepstack=True),
        )
    )
    assert pooled < half_floats < tokens < deepstack
    assert tokens - pooled >= 250 * 2048 * 4


def test_on_a_cpu_a_pass_has_a_fixed_size() -> None:
    assert affordable_patches(SPEC_2B, "float32", None) == 65_536


@pytest.mark.parametrize(("free", "expected"), [(80 << 30, 65_536), (1 << 30, 25_300), (0, 1)])
def test_on_cuda_a_pass_fits_into_the_free_memory(free: int, expected: int) -> None:
    patches = affordable_patches(SPEC_2B, "bfloat16", free)
    assert patches == pytest.approx(expected, rel=0.01)
    assert patches == 1 or peak_bytes(SPEC_2B, patches, "bfloat16") < free / 2
