"""The selective scan against a loop over tokens in float64: values, gradients, memory, and the compiled kernel."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from idc_hub.networks.selective_scan import compiled_kernel, selective_scan

RATES = {
    "slow": (1e-7, 1e-5),
    "medium": (0.01, 1.0),
    "fast": (10.0, 100.0),
    "instant": (1e3, 1e6),
    "mixed": (1e-7, 1e6),
}
"""Range of delta * |A|: from a memory of everything to exp(-1000) = 0, a memory of nothing."""


def arguments(length: int, rates: str = "medium", dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Two sequences with three channels and four states; rates spread evenly over their logarithms."""
    generator = torch.Generator().manual_seed(length)
    low, high = torch.tensor(RATES[rates], dtype=torch.float64).log()
    exponents = torch.rand(3, 4, dtype=torch.float64, generator=generator) * (high - low) + low
    shapes = {"u": (2, length, 3), "B": (2, length, 4), "C": (2, length, 4)}
    values = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    values["delta"] = torch.rand(2, length, 3, dtype=torch.float64, generator=generator) + 0.5
    values["A"] = -exponents.exp()
    return {name: value.to(dtype) for name, value in values.items()}


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence as it is written in the docstring, token by token."""
    h = torch.zeros(len(u), *A.shape, dtype=u.dtype)
    outputs = []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1))
    return torch.stack(outputs, 1)


def gradients(function: Any, values: dict[str, Tensor], **options: int) -> dict[str, Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    y = function(**leaves, **options)
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7))
    return dict(zip(leaves, torch.autograd.grad((y * weights).sum(), list(leaves.values())), strict=True))


def test_three_tokens_by_hand() -> None:
    u, delta, B, C = ([1.0, 2.0, 3.0], [1.0, 0.5, 2.0], [1.0, 1.0, -1.0], [1.0, 2.0, 1.0])
    columns = [torch.tensor(x)[None, :, None] for x in (u, delta, B, C)]
    decay = 0.5  # of one unit of time
    h = [1.0, decay**0.5 + 1.0, decay**2 * (decay**0.5 + 1.0) - 6.0]
    expected = torch.tensor([h[0], 2 * h[1], h[2]])
    y = selective_scan(columns[0], columns[1], torch.tensor([[decay]]).log(), *columns[2:])
    torch.testing.assert_close(y[0, :, 0], expected)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("length", [1, 2, 7, 33, 100])
@pytest.mark.parametrize("chunk", [1, 5, 16, 256])
def test_values_are_those_of_the_loop(length: int, chunk: int, rates: str) -> None:
    values = arguments(length, rates)
    torch.testing.assert_close(selective_scan(**values, chunk=chunk), loop(**values), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize(("length", "chunk"), [(1, 1), (2, 2), (7, 3), (33, 8), (40, 64), (100, 25)])
def test_gradients_are_those_of_the_loop(length: int, chunk: int, rates: str) -> None:
    values = arguments(length, rates)
    ours, expected = gradients(selective_scan, values, chunk=chunk), gradients(loop, values)
    for name in values:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("rates", RATES)
def test_float32_keeps_its_digits_over_a_long_sequence(rates: str) -> None:
    values = arguments(2000, rates)
    single = {name: value.float() for name, value in values.items()}
    expected = loop(**values)
    y = selective_scan(**single)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert all(gradient.isfinite().all() for gradient in gradients(selective_scan, single).values())


def test_half_precision_is_computed_in_float32() -> None:
    values = arguments(50, dtype=torch.bfloat16)
    y = selective_scan(**values)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, selective_scan(**{name: value.float() for name, value in values.items()}))


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_memory_is_that_of_a_chunk_with_gradients_too() -> None:
    values = {name: value.requires_grad_() for name, value in arguments(512).items()}
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan(**values, chunk=16).sum().backward()
    assert largest.elements == 2 * 512 * 4 > 2 * 16 * 3 * 4  # B and C, not the hidden states of all tokens
    arguments_once = sum(values[name].numel() for name in ("u", "delta", "B", "C"))
    assert kept <= arguments_once + 512 // 16 * (2 + 1) * 3 * 4  # and for each chunk its first states, and A


# The compiled kernel


def published_kernel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What mamba_ssm's function computes: tokens last in every argument."""
    assert u.shape == delta.shape == (2, 3, 20)
    assert B.shape == C.shape == (2, 4, 20)
    assert all(x.is_contiguous() and x.dtype == torch.float32 for x in (u, delta, A, B, C))
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    return 2 * loop(u, delta, A, B, C).transpose(1, 2)  # twice, to be told apart


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of that name with a kernel for the CPU."""
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = published_kernel  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops", interface.__name__):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    compiled_kernel.cache_clear()
    yield
    compiled_kernel.cache_clear()


@pytest.mark.usefixtures("mamba_ssm")
def test_the_kernel_is_used_on_the_gpu_with_the_tokens_last(monkeypatch: pytest.MonkeyPatch) -> None:
    values = arguments(20, dtype=torch.float32)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    torch.testing.assert_close(selective_scan(**values), 2 * loop(**values))


@pytest.mark.usefixtures("mamba_ssm")
@pytest.mark.parametrize(("dtype", "cuda"), [(torch.float32, False), (torch.float64, True)])
def test_the_kernel_is_not_used_on_the_cpu_nor_in_float64(
    dtype: torch.dtype, cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = arguments(20, dtype=dtype)
    monkeypatch.setattr(torch.Tensor, "is_cuda", cuda)
    torch.testing.assert_close(selective_scan(**values), loop(**values))


def test_without_the_package_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    compiled_kernel.cache_clear()
    assert compiled_kernel() is None
    compiled_kernel.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rates", RATES)
def test_the_gpu_computes_what_the_loop_computes_with_and_without_the_kernel(
    rates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = arguments(1000, rates)
    expected = loop(**values)
    on_gpu = {name: value.float().cuda() for name, value in values.items()}
    for kernel in (compiled_kernel(), None):
        monkeypatch.setattr("idc_hub.networks.selective_scan.compiled_kernel", lambda kernel=kernel: kernel)
        y = selective_scan(**on_gpu).double().cpu()
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
