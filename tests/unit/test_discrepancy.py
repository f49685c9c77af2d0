"""The discrepancy against a slow float64 reference written from the paper's equations."""

import cmath
import math

import numpy as np
import pytest
import torch

from idc_hub.condensation import discrepancy
from idc_hub.condensation.discrepancy import (
    cf_distance,
    membership,
    phase_penalty,
    segment_sums,
    set_distance,
    set_sums,
)
from idc_hub.recipe import Loss


def slow_ncfd(real: np.ndarray, syn: np.ndarray, freqs: np.ndarray, alpha: float, beta: float) -> float:
    total = 0.0
    for t in freqs:
        a = sum(cmath.exp(1j * float(t @ row)) for row in real) / len(real)
        b = sum(cmath.exp(1j * float(t @ row)) for row in syn) / len(syn)
        amplitude = (abs(a) - abs(b)) ** 2
        phase = 2 * abs(a) * abs(b) * (1 - math.cos(cmath.phase(a) - cmath.phase(b)))
        total += math.sqrt(alpha * amplitude + beta * phase)
    return total / len(freqs)


def samples(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    real = torch.randn(40, 6, generator=rng, dtype=torch.float64)
    syn = torch.randn(15, 6, generator=rng, dtype=torch.float64) * 0.7 + 0.2
    return real, syn, torch.randn(25, 6, generator=rng, dtype=torch.float64)


def between(kind: str, real: torch.Tensor, syn: torch.Tensor, freqs: torch.Tensor, **weights: float) -> torch.Tensor:
    """The distance of two whole sets as the optimization computes it: sums, means, distance."""
    loss = Loss.model_validate({"distance": kind, **weights})
    means = [set_sums(some, freqs, torch.ones(1, len(some)), loss)[0] / len(some) for some in (real, syn)]
    return set_distance(means[0], means[1], loss)


def characteristic_function(samples: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    return torch.exp(1j * (samples @ freqs.T)).mean(0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.8), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_ncfd_is_the_mean_over_frequencies_of_amplitude_and_phase(alpha: float, beta: float) -> None:
    real, syn, freqs = samples()
    expected = slow_ncfd(real.numpy(), syn.numpy(), freqs.numpy(), alpha, beta)
    assert float(between("ncfd", real, syn, freqs, alpha=alpha, beta=beta)) == pytest.approx(expected, abs=1e-9)
    single = between("ncfd", real.float(), syn.float(), freqs.float(), alpha=alpha, beta=beta)
    assert float(single) == pytest.approx(expected, rel=1e-4)


def test_with_both_weights_one_the_square_root_is_of_the_squared_difference() -> None:
    real, syn, freqs = samples()
    a, b = characteristic_function(real, freqs), characteristic_function(syn, freqs)
    assert float(cf_distance(a, b, alpha=1, beta=1)) == pytest.approx(float((a - b).abs().mean()), abs=1e-6)


def test_equal_sets_have_no_distance_even_in_single_precision() -> None:
    real, _, freqs = samples()
    assert float(between("ncfd", real.float(), real.float(), freqs.float())) == pytest.approx(
        math.sqrt(0.8e-12), rel=0.2
    )


def test_gradient_is_finite_at_zero_and_right_elsewhere() -> None:
    real, syn, freqs = samples()
    same = real.clone().requires_grad_()
    between("ncfd", real, same, freqs).backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()
    assert torch.autograd.gradcheck(lambda s: between("ncfd", real, s, freqs), syn.requires_grad_(), atol=1e-6)


def test_opposite_phases_use_the_other_branch_and_stay_differentiable() -> None:
    a = torch.complex(torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64))
    b = (-a).clone().requires_grad_()
    distance = cf_distance(a, b, alpha=0.2, beta=0.8)
    assert float(distance.detach()) == pytest.approx(math.sqrt(0.8 * 2 * (0.25 + 0.25)), rel=1e-6)
    distance.backward()
    assert torch.isfinite(torch.view_as_real(b.grad)).all()


def test_segment_sums_add_up_to_the_whole_and_to_each_part() -> None:
    real, _, freqs = samples()
    labels = torch.arange(40) % 3
    sums = segment_sums(real, freqs, membership(labels, 4))
    assert sums.shape == (4, 25)
    assert torch.allclose(sums.sum(0) / 40, characteristic_function(real, freqs))
    for part in range(3):
        mean = sums[part] / int((labels == part).sum())
        assert torch.allclose(mean, characteristic_function(real[labels == part], freqs))
    assert sums[3].abs().max() == 0


def test_the_slopes_of_segment_sums_are_those_of_the_plain_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrepancy, "_CACHED_SAMPLES", 16)  # 40 samples in three pieces, the last one shorter
    real, _, freqs = samples()
    points = real.clone().requires_grad_()
    members = membership(torch.arange(40) % 3, 4)
    assert torch.autograd.gradcheck(lambda x: segment_sums(x, freqs, members), points)


def test_bfloat16_projections_keep_the_sums_within_their_rounding() -> None:
    real, _, freqs = samples()
    unit, members = torch.nn.functional.normalize(real.float(), dim=1), membership(torch.arange(40) % 3, 4)
    exact = segment_sums(unit, freqs.float(), members)
    rounded = segment_sums(unit.bfloat16(), freqs.bfloat16(), members)
    assert rounded.dtype == torch.complex64
    assert (exact - rounded).abs().max() < 0.2
    assert (exact - rounded).abs().max() > 0


def test_mmd_is_the_squared_difference_of_characteristic_functions() -> None:
    real, syn, freqs = samples()
    expected = 0.0
    for t in freqs.numpy():
        a, b = (sum(cmath.exp(1j * float(t @ row)) for row in rows.numpy()) / len(rows) for rows in (real, syn))
        expected += abs(a - b) ** 2 / len(freqs)
    assert float(between("mmd", real, syn, freqs)) == pytest.approx(expected, rel=1e-9)
    assert float(between("mmd", real, real, freqs)) == 0


def test_mmd_tends_to_that_of_the_gaussian_kernel() -> None:
    real, syn, _ = samples()
    scale = 0.5
    freqs = scale * torch.randn(20_000, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def kernel(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((-(scale**2) / 2 * torch.cdist(one, other).square()).exp().mean())

    exact = kernel(real, real) + kernel(syn, syn) - 2 * kernel(real, syn)
    assert float(between("mmd", real, syn, freqs)) == pytest.approx(exact, rel=0.03)


def test_mse_compares_mean_samples_by_hand() -> None:
    real = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean (2, 4)
    syn = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 0.0]])  # mean (1, 1)
    freqs = torch.ones(5, 2)
    assert float(between("mse", real, syn, freqs)) == pytest.approx((1 + 9) / 2)
    assert float(between("mse", real, real.flip(0), freqs)) == 0
    sums = set_sums(syn, freqs, membership(torch.tensor([0, 1, 0]), 3), Loss(distance="mse"))
    assert sums.tolist() == [[2, 1], [1, 2], [0, 0]]


@pytest.mark.parametrize("kind", ["ncfd", "mmd", "mse"])
def test_every_distance_has_the_right_slope_and_none_at_equal_sets(kind: str) -> None:
    real, syn, freqs = samples()
    assert torch.autograd.gradcheck(lambda s: between(kind, real, s, freqs), syn.requires_grad_(), atol=1e-6)
    same = real.clone().requires_grad_()
    between(kind, real, same, freqs).backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()
    if kind != "ncfd":  # a square root, whose slope jumps there
        assert float(same.grad.abs().max()) < 1e-12


def test_the_phase_penalty_is_the_squared_angle_where_phases_are_defined() -> None:
    real, syn, freqs = samples()
    total, plain = 0.0, slow_ncfd(real.numpy(), syn.numpy(), freqs.numpy(), 0.2, 0.8)
    for t in freqs.numpy():
        a, b = (sum(cmath.exp(1j * float(t @ row)) for row in rows.numpy()) / len(rows) for rows in (real, syn))
        angle = math.remainder(cmath.phase(a) - cmath.phase(b), 2 * math.pi)
        total += angle**2 * abs(a * b) / (abs(a * b) + 0.05**2) / len(freqs)
    assert total > 0.1
    assert float(between("ncfd", real, syn, freqs, phase_penalty=0.3)) == pytest.approx(plain + 0.3 * total, rel=1e-9)
    single = between("ncfd", real.float(), syn.float(), freqs.float(), phase_penalty=0.3)
    assert float(single) == pytest.approx(plain + 0.3 * total, rel=1e-4)


def test_the_phase_penalty_tells_small_functions_apart_that_the_distance_hardly_does() -> None:
    """The distance of functions with opposite phases is proportional to their amplitude, the penalty is pi^2 w."""
    for amplitude, share in [(0.5, 0.99), (0.05, 0.5), (0.005, 0.0099)]:
        a = torch.tensor([amplitude + 0j], dtype=torch.complex128)
        assert float(phase_penalty(a, -a)) == pytest.approx(share * math.pi**2, rel=1e-3)
        assert float(phase_penalty(a, 3 * a)) == 0


def test_the_phase_penalty_has_the_slope_of_the_angle_and_none_of_its_weight() -> None:
    rng = torch.Generator().manual_seed(2)
    real, syn = (torch.randn(12, 2, generator=rng, dtype=torch.float64) * 0.3 for _ in range(2))
    syn.requires_grad_()
    a, b = torch.view_as_complex(real), torch.view_as_complex(syn)
    phase_penalty(a, b).backward()
    assert syn.grad is not None
    product = (a * b.conj()).abs().detach()
    angle = (a * b.conj()).angle()
    (slope,) = torch.autograd.grad((product / (product + 0.05**2) * angle.square()).mean(), syn)
    assert torch.allclose(syn.grad, slope)
    # An angle does not change along its ray: the penalty cannot be lowered by a smaller amplitude.
    assert torch.allclose((syn.grad * syn.detach()).sum(1), torch.zeros(12, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("amplitude", [0.0, 1e-30, 1e-10, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_of_the_phase_penalty_is_bounded_where_functions_vanish(amplitude: float, dtype: torch.dtype) -> None:
    real = torch.tensor([[0.3, 0.4], [0.0, 0.0], [-0.5, 0.0]], dtype=dtype)
    syn = (amplitude * torch.tensor([[-0.6, 0.8], [1.0, 0.0], [1.0, 0.0]], dtype=dtype)).requires_grad_()
    phase_penalty(torch.view_as_complex(real), torch.view_as_complex(syn)).backward()
    assert syn.grad is not None
    # The slope of the squared angle is at most 2 pi / |b|, that of the weight |a||b| / 0.05^2, and T is 3.
    assert float(syn.grad.norm(dim=1).max()) <= 1.001 * 2 * math.pi * 0.5 / 0.05**2 / 3
