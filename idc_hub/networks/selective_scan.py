"""The selective scan of state-space models (Gu and Dao 2023, "Mamba", Algorithm 2), without compiled extensions.

Each channel of a sequence carries N hidden states through a linear recurrence whose decay, input, and output change
from token to token. `selective_scan` splits the sequence into chunks and computes each chunk in parallel, one after
another. On a GPU, it uses the `mamba_ssm` kernel if that package is installed.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, chunk: int = 256) -> Tensor:
    """Run h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t] from h = 0, and read y[t] = C[t] h[t].

    We only add, and multiply decays between 0 and 1; we never divide decays. So neither slow nor instant forgetting
    overflows float32. Besides arguments and result, memory holds a few copies of one chunk's hidden states
    (`batch * chunk * D * N` numbers) and every chunk's initial state. Gradients need no more than that: the
    backward pass recomputes each chunk.

    Args:
        u: Input, float `[B, L, D]`.
        delta: Step size per token and channel, positive, `[B, L, D]`.
        A: Rate per channel and state, negative, `[D, N]`.
        B: What each token writes to the states, `[B, L, N]`.
        C: What each token reads from the states, `[B, L, N]`.
        chunk: Tokens to compute in parallel; affects time and memory, and results only by rounding.

    Returns:
        y, `[B, L, D]`, in float32, or float64 if `u` is.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if u.is_cuda and dtype == torch.float32 and (kernel := compiled_kernel()):
        # The kernel expects tokens last.
        u, delta, B, C = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C))
        return kernel(u, delta, A.contiguous(), B, C).transpose(1, 2)

    # With tokens first, a chunk is one block of memory; with channels last, rows are long.
    sequences = [x.transpose(0, 1).split(chunk) for x in (u, delta, B, C)]
    rates = A.t().contiguous()
    state = u.new_zeros(u.shape[0], *rates.shape)
    outputs = []
    for pieces in zip(*sequences, strict=True):
        y, state = checkpoint(_scan_chunk, state, rates, *pieces, use_reentrant=False, preserve_rng_state=False)
        outputs.append(y)
    return torch.cat(outputs).transpose(0, 1)


@cache
def compiled_kernel() -> Callable[..., Tensor] | None:
    """The `mamba_ssm` CUDA kernel, or None if that package is missing or doesn't match this version of torch."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def _scan_chunk(state: Tensor, rates: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs `[T, B, D]` and final state `[B, N, D]` of T tokens, starting from `state`; `rates` is `[N, D]`."""
    decay = torch.exp(delta[:, :, None] * rates)
    written = B[..., None] * (delta * u)[:, :, None]
    written = torch.cat([torch.addcmul(written[:1], decay[:1], state), written[1:]])
    states = _Recurrence.apply(decay, written)
    return (states * C[..., None]).sum(2), states[-1]


class _Recurrence(torch.autograd.Function):
    """h[t] = a[t] h[t-1] + b[t] along the first dimension, from h = 0.

    The gradient follows the same recurrence backward in time, so it only needs a and h, not the scan's intermediate
    results.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        # h[t] affects the loss directly (its own gradient) and through h[t+1] (that one's share times a[t+1]).
        share = _scan(a.roll(-1, 0).flip(0), grad.flip(0)).flip(0)
        return torch.cat([torch.zeros_like(h[:1]), share[1:] * h[:-1]]), share


def _scan(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence for all t at once; `a[0]` is unused.

    Two neighboring steps merge into one: h[t] = a[t] a[t-1] h[t-2] + (a[t] b[t-1] + b[t]). Solving these half as many
    steps recursively gives h at every odd t, and one more step gives it at every even t. That's twice the work of a
    loop, but only 2 log2(T) rounds.
    """
    if len(b) == 1:
        return b
    odd = _scan(a[1::2] * a[:-1:2], torch.addcmul(b[1::2], a[1::2], b[:-1:2]))
    h = torch.empty_like(b)
    h[0] = b[0]
    h[1::2] = odd
    torch.addcmul(b[2::2], a[2::2], odd[: (len(b) - 1) // 2], out=h[2::2])
    return h
