"""The distance between two sets of local features: Neural Characteristic Function Discrepancy (paper Eq. 2-3).

A set of rows is described by its empirical characteristic function at `T` frequencies, the mean of
`exp(i <t, row>)`. Two sets are compared by the amplitude and by the phase of that function.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-12


def segment_sums(rows: Tensor, freqs: Tensor, labels: Tensor, segments: int) -> Tensor:
    """Sums of `exp(i <t, row>)` over the rows of each segment: one projection serves all of them.

    Args:
        rows: float `[S, C]`, one local feature a row.
        freqs: float `[T, C]`.
        labels: int64 `[S]`, the segment of each row, in `[0, segments)`.
        segments: Number of segments `G`.

    Returns:
        complex `[G, T]`.
    """
    phases = rows @ freqs.T
    # A product with the one-hot matrix adds in a fixed order; a scatter would not on a GPU.
    members = torch.nn.functional.one_hot(labels, segments).to(rows.dtype).T
    return torch.complex(members @ phases.cos(), members @ phases.sin())


def characteristic_function(rows: Tensor, freqs: Tensor) -> Tensor:
    """Empirical characteristic function of rows `[S, C]` at frequencies `[T, C]`: complex `[T]`."""
    phases = rows @ freqs.T
    return torch.complex(phases.cos().mean(0), phases.sin().mean(0))


def cf_distance(real: Tensor, syn: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Distance between characteristic functions: `mean_t sqrt(alpha * amplitude + beta * phase)`.

    `amplitude = (|a| - |b|)^2` and `phase = 2 (|a||b| - Re(a conj b))`, as NCFM's released code reads
    paper Eq. 3; with `alpha = beta = 1` their sum is `|a - b|^2`.

    Args:
        real: complex `[..., T]`, functions of the real rows.
        syn: complex `[..., T]`, functions of the synthetic rows.
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
    # product - dot cancels catastrophically where the phases agree; cross^2 / (product + dot) is the same number.
    agree = dot >= 0
    phase = 2 * torch.where(agree, cross.square() / torch.where(agree, product + dot, 1.0), product - dot)
    # The slope of the square root is infinite at 0.
    return (alpha * amplitude + beta * phase).clamp(min=beta * _EPS + _EPS**2).sqrt().mean(-1)


def ncfd(real: Tensor, syn: Tensor, freqs: Tensor, *, alpha: float = 0.2, beta: float = 0.8) -> Tensor:
    """Characteristic function discrepancy between two sets of rows (paper Eq. 2-3, without a sampling network).

    Args:
        real: float `[R, C]`, already normalised.
        syn: float `[S, C]`, already normalised.
        freqs: float `[T, C]`, usually drawn from N(0, 1).
        alpha: Weight of the amplitude term (paper C.1: 0.2).
        beta: Weight of the phase term (paper C.1: 0.8).

    Returns:
        float scalar, at least 0; differentiable in `syn`.
    """
    return cf_distance(
        characteristic_function(real, freqs), characteristic_function(syn, freqs), alpha=alpha, beta=beta
    )
