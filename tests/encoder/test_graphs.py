from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoder.graphs import FrameShape, bucket_of


def test_buckets_are_every_length_to_eight_and_then_four_a_doubling() -> None:
    buckets = sorted({bucket_of(length) for length in range(1, 65)})
    assert buckets == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]


@given(length=st.integers(1, 100_000))
def test_a_bucket_holds_its_length_with_at_most_a_quarter_to_spare(length: int) -> None:
    assert length <= bucket_of(length) <= 1.25 * length
    assert bucket_of(bucket_of(length)) == bucket_of(length)


def test_a_shape_counts_its_dummy_frames() -> None:
    assert FrameShape(row_bytes=1536, num_frames=10, height=4, width=6).num_patches == 240
