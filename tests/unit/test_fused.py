"""The Triton kernels of `segment_sums`, in Triton's interpreter on a CPU, against slow sums in doubles."""

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from idc_hub.condensation import discrepancy
from idc_hub.condensation.discrepancy import membership, segment_sums
from tests.unit.test_batch import SmallNetwork, recipe, refuse_surprises

NAME = "idc_hub.condensation.fused"


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA; on a CPU: pip install triton")
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was found out about the kernels is forgotten after a test."""
    yield
    discrepancy._kernels_work.cache_clear()


def problem(count: int, dtype: torch.dtype, frequencies: int = 70) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, frequencies and four segments: the second is empty, and every fifth sample is in none."""
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(count, 35, generator=rng, dtype=torch.float64) / 6
    members = membership(torch.tensor([0, 2, 3])[torch.arange(count) % 3], 4)
    members[:, 4::5] = 0
    return samples.to(dtype), torch.randn(frequencies, 35, generator=rng, dtype=torch.float64).to(dtype), members


def slow(samples: Tensor, freqs: Tensor, members: Tensor) -> np.ndarray:
    sums = np.zeros((len(members), len(freqs)), complex)
    for row, weights in zip(samples.double().numpy(), members.T.numpy(), strict=True):
        sums += np.outer(weights, np.exp(1j * (freqs.double().numpy() @ row)))
    return sums


# Blocks have 64 samples, 64 frequencies and 32 channels; 2,113 samples are 34 blocks, in 17 parts of 32.
@pytest.mark.parametrize("count", [1, 63, 130, 2113])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_sums_are_those_of_a_loop(fused: ModuleType, count: int, dtype: torch.dtype, bound: float) -> None:
    arguments = problem(count, dtype)
    found = torch.complex(*fused.FusedSums.apply(*arguments)).numpy()
    assert np.abs(found - slow(*arguments)).max() <= bound * count
    assert (found[1] == 0).all()


def test_slopes_are_those_of_the_sums(fused: ModuleType) -> None:
    samples, freqs, members = problem(70, torch.float64, 9)
    # All numeric slopes would take a thousand calls; this compares them along a random direction.
    sums = lambda some: fused.FusedSums.apply(some, freqs, members)  # noqa: E731
    assert torch.autograd.gradcheck(sums, samples.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("count", [1, 63, 130, 2113])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    # Float16 instead of bfloat16, which the interpreter does not know.
    [(torch.float32, 1e-6), (torch.float16, 2e-3)],
)
def test_gradients_are_those_of_the_plain_sums(fused: ModuleType, count: int, dtype: torch.dtype, bound: float) -> None:
    samples, freqs, members = problem(count, dtype)
    found = []
    for sums in (discrepancy._SegmentSums, fused.FusedSums):
        leaf = samples.clone().requires_grad_()
        real, imaginary = sums.apply(leaf, freqs, members)
        weights = torch.linspace(-1, 2, real.numel()).view_as(real)
        found.append(torch.autograd.grad((weights * real + weights.flip(1) * imaginary.square()).sum(), leaf)[0])
    expected, gradient = found
    assert gradient.dtype == dtype
    assert gradient[4::5].abs().max() == 0 if count > 4 else True
    assert float((gradient - expected).abs().max()) <= bound * float(expected.abs().max())


def test_more_channels_than_a_block_of_the_gradient(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "GRADIENT_CHANNELS", 16)
    test_gradients_are_those_of_the_plain_sums(fused, 63, torch.float32, 1e-6)


def check(size: int = 35) -> bool:
    return discrepancy._kernels_work(torch.device("cpu"), torch.float32, False, 4, 70, size)


def test_kernels_that_work_are_used(fused: ModuleType) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings(action="error"), torch.no_grad():
        assert check()
    assert torch.equal(torch.get_rng_state(), state)


def test_kernels_that_err_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(discrepancy._SegmentSums):
        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            gradient, *rest = discrepancy._SegmentSums.backward(ctx, *gradients)
            return gradient * 1.03, *rest

    monkeypatch.setitem(sys.modules, NAME, SimpleNamespace(FusedSums=Wrong))
    with pytest.warns(UserWarning, match=r"workers.fused has no effect.*: their results differ by 3.0e-02"):
        assert not check()
    with warnings.catch_warnings(action="error"):  # said once
        assert not check()


def test_without_triton_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    samples, freqs, members = (each.to("meta") for each in problem(10, torch.float32))
    with pytest.warns(UserWarning, match=r"workers.fused has no effect.*: import of triton halted"):
        assert segment_sums(samples, freqs, members, fused=True).shape == (4, 70)


def test_a_cpu_never_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrepancy, "_kernels_work", cache(lambda *shape: pytest.fail("asked")))
    arguments = problem(10, torch.float32)
    assert torch.equal(segment_sums(*arguments, fused=True), segment_sums(*arguments))


def test_a_step_with_them_stays_on_its_device(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[Any, ...]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            return lambda *tensors, **rest: launches.append((grid, [(t.device.type, t.shape) for t in tensors], rest))

    for name in ("_sums", "_gradient"):
        monkeypatch.setattr(fused, name, Kernel())
    monkeypatch.setattr(discrepancy, "_kernels_work", cache(lambda *shape: True))
    refuse_surprises(SmallNetwork(), recipe(workers={"fused": True}), fixed=True)
    assert len(launches) == 3 * 2 * 2  # steps, photographs, kernels
    assert launches[4:8] == launches[8:]
    assert {device for _, tensors, _ in launches for device, _ in tensors} == {"meta"}


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from idc_hub.condensation import fused
import sys, torch

dtype, tensors, kernels = sys.argv[1], {"samples", "freqs", "gradient"}, (fused._sums, fused._gradient)
sizes = fused._sizes(torch.zeros(99, 256), torch.zeros(1024, 256), torch.zeros(17, 99)) | {"GRADIENT_CHANNELS": 256}
for kernel in kernels:
    fixed = {name: sizes[name] for name in kernel.arg_names if name.isupper()}
    floats = {"members", "real", "imaginary", "grad_real", "grad_imaginary"}
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(fixed, "constexpr")
    types |= {name: f"*{dtype}" if name in tensors else "*fp32" for name in types if name in tensors | floats}
    source = ASTSource(kernel, types, fixed)
    made = compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": sizes["num_warps"]})
    assert len(made.asm["cubin"]) > 1000
    assert made.metadata.shared <= 163 * 1024, made.metadata.shared  # what a block has on an A100
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_they_compile_for_a_gpu(dtype: str) -> None:
    pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA; on a CPU: pip install triton")
    subprocess.run([sys.executable, "-c", COMPILE, dtype], check=True, timeout=500)
