"""The distance between two sets of local features (paper section 3; `loss.distance`).

A set of rows is described by a mean: `set_sums` adds up over its rows, and `set_distance` compares two such means.

- `ncfd`, Neural Characteristic Function Discrepancy (paper Eq. 2-3): the empirical characteristic function at `T`
  frequencies, the mean of `exp(i <t, row>)`, compared by its amplitude and by its phase.
- `mmd`, Maximum Mean Discrepancy: the mean over `t` of the squared difference of those functions. With `t` from
  N(0, s^2) it is the random-feature estimate of the squared MMD with the kernel `exp(-s^2 |u - v|^2 / 2)`.
- `mse`, Mean Squared Error: the squared difference of the mean rows, averaged over their elements; frequencies play
  no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from idc_hub.recipe import Loss

_EPS = 1e-12

_CACHED_ROWS = 1024
"""Rows that `segment_sums` projects at a time on a CPU."""


def set_sums(rows: Tensor, freqs: Tensor, members: Tensor, loss: Loss) -> Tensor:
    """What `set_distance` compares the mean of, added up over the rows of each segment.

    Args:
        rows: `[S, C]`, one local feature a row; differentiable in them.
        freqs: `[T, C]`, of the same dtype.
        members: float `[G, S]` of `membership`.
        loss: The recipe's loss.

    Returns:
        complex `[G, T]` of `segment_sums`, or for `mse` float `[G, C]`, the sums of the rows themselves.
    """
    if loss.distance != "mse":
        return segment_sums(rows, freqs, members)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return members.to(dtype) @ rows.to(dtype)


def set_distance(real: Tensor, syn: Tensor, loss: Loss) -> Tensor:
    """Distance between sets of rows, from their means.

    Args:
        real: `[..., T]` or `[..., C]`: `set_sums` of the real rows, divided by their number.
        syn: The same of the synthetic rows; differentiable in it.
        loss: The recipe's loss.

    Returns:
        float `[...]`, at least 0.
    """
    if loss.distance == "ncfd":
        return cf_distance(real, syn, alpha=loss.alpha, beta=loss.beta)
    return (real - syn).abs().square().mean(-1)


def membership(labels: Tensor, segments: int) -> Tensor:
    """Which rows belong to which segment, for `set_sums`: float32 `[segments, S]` from int64 labels `[S]`."""
    return torch.nn.functional.one_hot(labels, segments).float().T.contiguous()


def segment_sums(rows: Tensor, freqs: Tensor, members: Tensor) -> Tensor:
    """Sums of `exp(i <t, row>)` over the rows of each segment: one projection serves all of them.

    Args:
        rows: `[S, C]`, one local feature a row; differentiable in them alone.
        freqs: `[T, C]`, of the same dtype, which is that of the product: with bfloat16 the projections are added up
            in float32 and rounded once. Cosines, sines and their sums are never less than float32.
        members: float `[G, S]` of `membership`.

    Returns:
        complex `[G, T]`.
    """
    return torch.complex(*_SegmentSums.apply(rows, freqs, members))


class _SegmentSums(torch.autograd.Function):
    """`segment_sums` piece by piece, so that the phases of a piece stay in the cache of a CPU.

    Kept for the backward pass are cosines and sines, which are each other's slopes.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, freqs: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        members = members.to(dtype)
        real = torch.zeros(len(members), len(freqs), dtype=dtype, device=rows.device)
        imaginary = torch.zeros_like(real)
        kept = []
        for here in _pieces(rows):
            phases = (rows[here] @ freqs.T).to(dtype)
            cosines, sines = phases.cos(), phases.sin_()
            # A product with the membership adds in a fixed order; a scatter would not on a GPU.
            real.addmm_(members[:, here], cosines)
            imaginary.addmm_(members[:, here], sines)
            if ctx.needs_input_grad[0]:
                kept += [cosines, sines]
        ctx.save_for_backward(freqs, members, *kept)
        ctx.rows = rows.shape, rows.dtype
        return real, imaginary

    @staticmethod
    def backward(ctx: Any, slope_real: Tensor, slope_imaginary: Tensor) -> tuple[Tensor, None, None]:
        freqs, members, *kept = ctx.saved_tensors
        shape, dtype = ctx.rows
        gradient = torch.empty(shape, dtype=dtype, device=freqs.device)
        for number, here in enumerate(_pieces(gradient)):
            cosines, sines = kept[2 * number], kept[2 * number + 1]
            of_rows = members[:, here].T
            phases = (of_rows @ slope_imaginary).mul_(cosines).addcmul_(of_rows @ slope_real, sines, value=-1)
            torch.mm(phases.to(dtype), freqs, out=gradient[here])
        return gradient, None, None


def _pieces(rows: Tensor) -> list[slice]:
    size = _CACHED_ROWS if rows.device.type == "cpu" else len(rows)
    return [slice(start, start + size) for start in range(0, len(rows), size)]


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
        real: float `[R, C]`, already normalized.
        syn: float `[S, C]`, already normalized.
        freqs: float `[T, C]`, usually drawn from N(0, 1).
        alpha: Weight of the amplitude term (paper C.1: 0.2).
        beta: Weight of the phase term (paper C.1: 0.8).

    Returns:
        float scalar, at least 0; differentiable in `syn`.
    """
    return cf_distance(
        characteristic_function(real, freqs), characteristic_function(syn, freqs), alpha=alpha, beta=beta
    )
