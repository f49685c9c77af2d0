"""The distance between two sets of local features (paper section 3; `loss.distance`).

A sample is one local feature vector. `set_sums` sums a statistic over the samples of a set, and `set_distance`
compares the means of two sets.

- `ncfd`, Neural Characteristic Function Discrepancy (paper Eq. 2-3): the statistic is `exp(i <t, sample>)` at `T`
  frequencies `t`. Its mean, the empirical characteristic function, is compared by amplitude and by phase;
  `loss.phase_penalty` adds `phase_penalty`.
- `mmd`, Maximum Mean Discrepancy: the mean over `t` of the squared difference of the same functions. With `t` from
  N(0, s^2) it is the random-feature estimate of the squared MMD with the kernel `exp(-s^2 |u - v|^2 / 2)`.
- `mse`, Mean Squared Error: the squared difference of the mean samples, averaged over their elements; frequencies
  are not used.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idc_hub.errors import one_line

if TYPE_CHECKING:
    from idc_hub.recipe import Loss

_EPS = 1e-12

_PHASE_FLOOR = 0.05
"""Amplitude below which `phase_penalty` fades. The mean of n independent samples has a random phase below 1/sqrt(n).
Neighboring samples overlap: four patches of 64 x 64 have about 400 independent ones of 6 x 6 pixels."""

_CACHED_SAMPLES = 1024
"""Samples that `segment_sums` projects at a time on a CPU."""

_TOLERANCE = 0.02
"""Largest relative difference of the Triton kernels from the plain sums: bfloat16 has 8 bits."""


def set_sums(samples: Tensor, freqs: Tensor, members: Tensor, loss: Loss, *, fused: bool = False) -> Tensor:
    """Sum the statistic that `set_distance` compares over the samples of each segment.

    Args:
        samples: `[S, C]`; differentiable.
        freqs: `[T, C]`, of the same dtype.
        members: float `[G, S]` from `membership`.
        loss: The recipe's loss.
        fused: As for `segment_sums`.

    Returns:
        complex `[G, T]` as `segment_sums` returns, or for `mse` float `[G, C]`, the sums of the samples.
    """
    if loss.distance != "mse":
        return segment_sums(samples, freqs, members, fused=fused)
    dtype = torch.promote_types(samples.dtype, torch.float32)
    return members.to(dtype) @ samples.to(dtype)


def set_distance(real: Tensor, syn: Tensor, loss: Loss) -> Tensor:
    """Distance between two sets, from their means.

    Args:
        real: `[..., T]` or `[..., C]`: `set_sums` of the real samples, divided by their number.
        syn: The same for the synthetic samples; differentiable.
        loss: The recipe's loss.

    Returns:
        float `[...]`, at least 0.
    """
    if loss.distance == "ncfd":
        distance = cf_distance(real, syn, alpha=loss.alpha, beta=loss.beta)
        return distance + loss.phase_penalty * phase_penalty(real, syn) if loss.phase_penalty else distance
    return (real - syn).abs().square().mean(-1)


def membership(labels: Tensor, segments: int) -> Tensor:
    """One-hot membership for `set_sums`: float32 `[segments, S]` from int64 labels `[S]`."""
    return torch.nn.functional.one_hot(labels, segments).float().T.contiguous()


def segment_sums(samples: Tensor, freqs: Tensor, members: Tensor, *, fused: bool = False) -> Tensor:
    """Sum `exp(i <t, sample>)` over each segment; one projection serves all segments.

    Args:
        samples: `[S, C]`; the only differentiable argument.
        freqs: `[T, C]`, of the same dtype, which is also the dtype of the projection: bfloat16 accumulates in
            float32 and rounds once. Cosines, sines and their sums are at least float32.
        members: float `[G, S]` from `membership`.
        fused: On a GPU, use the Triton kernels of `fused.py` if they work there (`workers.fused`).

    Returns:
        complex `[G, T]`.
    """
    if fused and samples.device.type != "cpu":
        shape = len(members), len(freqs), samples.shape[1]
        if _kernels_work(samples.device, samples.dtype, torch.backends.cuda.matmul.allow_tf32, *shape):
            from idc_hub.condensation.fused import FusedSums

            return torch.complex(*FusedSums.apply(samples, freqs, members))
    return torch.complex(*_SegmentSums.apply(samples, freqs, members))


@cache
def _kernels_work(device: torch.device, dtype: torch.dtype, tf32: bool, segments: int, count: int, size: int) -> bool:
    """Whether the Triton kernels compile and agree with the plain sums, for a shape; otherwise a warning says so."""
    rng = torch.Generator().manual_seed(0)
    samples, freqs = (torch.randn((rows, size), generator=rng) / size**0.5 for rows in (200, count))
    members = membership(torch.arange(200) % segments, segments).to(device)
    found = []
    try:
        from idc_hub.condensation.fused import FusedSums

        for sums in (_SegmentSums, FusedSums):
            leaf = samples.to(device, dtype).requires_grad_()
            with torch.enable_grad():
                values = torch.stack(sums.apply(leaf, (freqs * size**0.5).to(device, dtype), members))
                found.append((values.detach(), torch.autograd.grad(values.square().sum(), leaf)[0]))
        errors = [float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True)]
        if not max(errors) < _TOLERANCE:
            raise ArithmeticError(f"their results differ by {max(errors):.1e}")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        what = one_line(error)
        warnings.warn(f"workers.fused has no effect, since its Triton kernels do not work here: {what}", stacklevel=2)
        return False
    return True


class _SegmentSums(torch.autograd.Function):
    """`segment_sums` in pieces small enough that their phases stay in a CPU's cache.

    The backward pass needs only the cosines and sines, since each is the derivative of the other.
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, freqs: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(samples.dtype, torch.float32)
        members = members.to(dtype)
        real = torch.zeros(len(members), len(freqs), dtype=dtype, device=samples.device)
        imaginary = torch.zeros_like(real)
        kept = []
        for here in _pieces(samples):
            phases = (samples[here] @ freqs.T).to(dtype)
            cosines, sines = phases.cos(), phases.sin_()
            # A matrix product adds in a fixed order; on a GPU a scatter would not.
            real.addmm_(members[:, here], cosines)
            imaginary.addmm_(members[:, here], sines)
            if ctx.needs_input_grad[0]:
                kept += [cosines, sines]
        ctx.save_for_backward(freqs, members, *kept)
        ctx.samples = samples.shape, samples.dtype
        return real, imaginary

    @staticmethod
    def backward(ctx: Any, grad_real: Tensor, grad_imaginary: Tensor) -> tuple[Tensor, None, None]:
        freqs, members, *kept = ctx.saved_tensors
        shape, dtype = ctx.samples
        gradient = torch.empty(shape, dtype=dtype, device=freqs.device)
        for number, here in enumerate(_pieces(gradient)):
            cosines, sines = kept[2 * number], kept[2 * number + 1]
            of_samples = members[:, here].T
            phases = (of_samples @ grad_imaginary).mul_(cosines).addcmul_(of_samples @ grad_real, sines, value=-1)
            torch.mm(phases.to(dtype), freqs, out=gradient[here])
        return gradient, None, None


def _pieces(samples: Tensor) -> list[slice]:
    size = _CACHED_SAMPLES if samples.device.type == "cpu" else len(samples)
    return [slice(start, start + size) for start in range(0, len(samples), size)]


def cf_distance(real: Tensor, syn: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Distance between characteristic functions (paper Eq. 3): `mean_t sqrt(alpha * amplitude + beta * phase)`.

    `amplitude = (|a| - |b|)^2` and `phase = 2 (|a||b| - Re(a conj b))`, as in the released code of NCFM, which
    introduced this distance. With `alpha = beta = 1` the sum is `|a - b|^2`.

    Args:
        real: complex `[..., T]`, functions of the real samples.
        syn: complex `[..., T]`, functions of the synthetic samples.
        alpha: Weight of the amplitude term.
        beta: Weight of the phase term.

    Returns:
        float `[...]`, at least 0.
    """
    amplitude_real = (real.real.square() + real.imag.square() + _EPS).sqrt()
    amplitude_syn = (syn.real.square() + syn.imag.square() + _EPS).sqrt()
    amplitude = (amplitude_real - amplitude_syn).square()
    product = amplitude_real * amplitude_syn
    dot = real.real * syn.real + real.imag * syn.imag
    cross = real.imag * syn.real - real.real * syn.imag
    # product - dot cancels catastrophically when the phases agree; cross^2 / (product + dot) is the same number.
    agree = dot >= 0
    phase = 2 * torch.where(agree, cross.square() / torch.where(agree, product + dot, 1.0), product - dot)
    # The clamp keeps the gradient finite: the square root has infinite slope at 0.
    return (alpha * amplitude + beta * phase).clamp(min=beta * _EPS + _EPS**2).sqrt().mean(-1)


def phase_penalty(real: Tensor, syn: Tensor) -> Tensor:
    """Squared difference of the phases of characteristic functions, mean over frequencies (`loss.phase_penalty`).

    The phase term of `cf_distance` is scaled by both amplitudes, so it fades where they are small: at medium and high
    frequencies. FAST (arXiv 2511.19476) adds the bare difference of phases, damped by `1 / (1 + a |t|^2)`. In hundreds
    of dimensions all frequencies of one scale have nearly the same length, so the amplitudes damp it here:
    `w = |a||b| / (|a||b| + _PHASE_FLOOR^2)` is near 1 where phases are defined and 0 where they are noise.
    `w` is constant to the gradient, which would otherwise lower the penalty by making `|b|` small.

    Args:
        real: complex `[..., T]`, functions of the real samples.
        syn: complex `[..., T]`, functions of the synthetic samples; differentiable, also at 0.

    Returns:
        float `[...]`, between 0 and pi^2.
    """
    dot = real.real * syn.real + real.imag * syn.imag
    cross = real.imag * syn.real - real.real * syn.imag
    product = (dot.square() + cross.square()).sqrt().detach()
    # At 0 there is no angle, and the slope of atan2 would be NaN.
    defined = product > _EPS
    angle = torch.atan2(torch.where(defined, cross, 0.0), torch.where(defined, dot, 1.0))
    return (product / (product + _PHASE_FLOOR**2) * angle.square()).mean(-1)
