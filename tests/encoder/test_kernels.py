import sys
from types import SimpleNamespace

import pytest
import torch

from pipeline.encoder.kernels import TorchKernels, make_kernels

from .factories import CPU

CUDA = torch.device("cuda")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_cpu_is_served_by_plain_torch():
    assert isinstance(make_kernels(CPU), TorchKernels)


def test_without_triton_plain_torch_serves_a_gpu_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "pipeline.encoder.triton_kernels", None)
    assert isinstance(make_kernels(CUDA), TorchKernels)


def test_without_a_c_compiler_plain_torch_serves_a_gpu_too(monkeypatch, caplog):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert isinstance(make_kernels(CUDA), TorchKernels)
    assert "no_c_compiler" in caplog.text


@pytest.mark.parametrize("times", [1, 4])
def test_the_offset_is_added_before_the_norm(times):
    hidden, offset = noise(5, 12 * times), noise(12, seed=1)
    norm = torch.nn.LayerNorm(12 * times, eps=1e-6).requires_grad_(False)
    norm.weight.data, norm.bias.data = noise(12 * times, seed=2), noise(12 * times, seed=3)
    expected = norm(hidden + offset.repeat(times))
    assert torch.allclose(TorchKernels().layer_norm(hidden, offset, norm), expected, atol=1e-6)


def test_one_table_of_angles_serves_every_temporal_patch_and_values_stay():
    qkv, angles = noise(12, 3, 2, 8), noise(4, 4, seed=1)
    together, apart = qkv.clone(), qkv.clone()
    kernels = TorchKernels()
    kernels.rotate_(together, angles.cos(), angles.sin())
    for frame in apart.split(4):
        kernels.rotate_(frame, angles.cos(), angles.sin())
    assert torch.equal(together, apart)
    assert torch.equal(together[:, 2], qkv[:, 2])
    assert not torch.allclose(together[:, :2], qkv[:, :2])


@pytest.mark.parametrize("error", [TypeError("another version"), OSError("no room"), RuntimeError("driver too old")])
def test_where_hoppers_products_cannot_be_compiled_tritons_kernels_serve(monkeypatch, caplog, error):
    def refuse(flash, device):
        raise error

    def tritons(flash):
        return "triton's", flash

    modules = {"triton_kernels": {"TritonKernels": tritons}, "hopper_kernels": {"HopperKernels": refuse}}
    for name, members in modules.items():
        monkeypatch.setitem(sys.modules, f"pipeline.encoder.{name}", SimpleNamespace(**members))
    monkeypatch.setattr("pipeline.encoder.kernels.find_flash_attention", lambda device: "flash")
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert make_kernels(CUDA) == ("triton's", "flash")
    assert f"hopper_products=none reason={error}" in caplog.text
