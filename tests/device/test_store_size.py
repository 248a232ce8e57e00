from pathlib import Path

import pytest

from pipeline.device.store_size import num_gpus_here, suggested_store_bytes


def test_the_store_s_size_is_ray_s_choice_without_a_gpu() -> None:
    assert suggested_store_bytes(75 << 20, 15, 0) is None


def test_the_store_holds_what_gpus_and_workers_need() -> None:
    assert suggested_store_bytes(16 << 20, 3, 2) == 1 << 30
    assert suggested_store_bytes(16 << 20, 54, 2) == 2 << 30
    assert suggested_store_bytes(1 << 60, 3, 2) < 1 << 60


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("GPU-8f2", 1), ("0,1,2", 2)]
)
def test_gpus_are_counted_by_their_files_and_by_what_may_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: int
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr("pipeline.device.store_size._DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_gpus_here() == expected
