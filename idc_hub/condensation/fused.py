"""`discrepancy.segment_sums` as Triton kernels, which keep phases, cosines and sines out of a GPU's memory.

The backward pass computes the phases again. No kernel adds atomically, so the order of every sum is fixed.

These kernels have never run on a GPU. Triton's interpreter, on a CPU, gives the sums and gradients of the plain
version; the block sizes are guesses. `workers.fused` is therefore off by default. Importing this module needs Triton,
which comes with torch for CUDA.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 32
"""Parts of the samples that are summed at the same time, and added up at the end."""

SAMPLES, FREQUENCIES, CHANNELS = 64, 64, 32
"""Sides of the blocks of a product."""

GRADIENT_CHANNELS = 256
"""Maximum channels of the gradient that a program computes; each such block computes the phases again."""


class FusedSums(torch.autograd.Function):
    """Real and imaginary part of `segment_sums`, each `[G, T]`; samples and freqs of float32, bfloat16 or float64."""

    @staticmethod
    def forward(ctx: Any, samples: Tensor, freqs: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Sum cosines and sines over the samples of each segment."""
        dtype = torch.promote_types(samples.dtype, torch.float32)
        samples, freqs, members = samples.contiguous(), freqs.contiguous(), members.to(dtype).contiguous()
        blocks = triton.cdiv(len(samples), SAMPLES)
        parts = min(PARTS, blocks)
        sums = torch.empty((2, parts, len(members), len(freqs)), dtype=dtype, device=samples.device)
        grid = (triton.cdiv(len(freqs), FREQUENCIES), parts)
        _sums[grid](
            *(samples, freqs, members, sums[0], sums[1]),
            **_sizes(samples, freqs, members),
            blocks=triton.cdiv(blocks, parts),
        )
        ctx.save_for_backward(samples, freqs, members)
        return sums[0].sum(0), sums[1].sum(0)

    @staticmethod
    def backward(ctx: Any, grad_real: Tensor, grad_imaginary: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the samples."""
        samples, freqs, members = ctx.saved_tensors
        gradient = torch.empty_like(samples)
        channels = min(GRADIENT_CHANNELS, max(16, triton.next_power_of_2(samples.shape[1])))
        grid = (triton.cdiv(len(samples), SAMPLES), triton.cdiv(samples.shape[1], channels))
        _gradient[grid](
            *(samples, freqs, members, grad_real.contiguous(), grad_imaginary.contiguous(), gradient),
            **_sizes(samples, freqs, members),
            GRADIENT_CHANNELS=channels,
        )
        return gradient, None, None


def _sizes(samples: Tensor, freqs: Tensor, members: Tensor) -> dict[str, Any]:
    """Arguments of both kernels: sizes of the tensors and of the blocks, and the precision of float32 products."""
    # Three TF32 products are nearly as exact as one in float32, and run on tensor cores.
    exact = "ieee" if samples.dtype == torch.float64 else "tf32x3"
    return {
        "samples_count": len(samples),
        "frequencies_count": len(freqs),
        "channels_count": samples.shape[1],
        "segments_count": len(members),
        "SAMPLES": SAMPLES,
        "FREQUENCIES": FREQUENCIES,
        "CHANNELS": CHANNELS,
        "SEGMENTS": max(16, triton.next_power_of_2(len(members))),  # a side of a product has at least 16 numbers
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else exact,
        "EXACT": exact,
        "num_warps": 8,
    }


@triton.jit
def _block(matrix, rows, columns, row, column):  # type: ignore[no-untyped-def]
    """A block of a row-major matrix `[rows, columns]`, with zeros outside of it."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + row.to(tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def _phases(  # type: ignore[no-untyped-def]
    samples, freqs, sample, frequency, samples_count, frequencies_count, channels_count,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Phases of a block of samples at a block of frequencies, rounded to the samples' dtype as the plain product is."""
    phases = tl.zeros((sample.shape[0], frequency.shape[0]), DTYPE)
    for start in range(0, channels_count, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        some = _block(samples, samples_count, channels_count, sample, channel)
        others = _block(freqs, frequencies_count, channels_count, frequency, channel)
        phases = tl.dot(some, tl.trans(others), phases, input_precision=PRECISION, out_dtype=DTYPE)
    return phases.to(samples.dtype.element_ty).to(DTYPE)


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    samples, freqs, members, real, imaginary,
    samples_count, frequencies_count, channels_count, segments_count, blocks,
    SAMPLES: tl.constexpr, FREQUENCIES: tl.constexpr, CHANNELS: tl.constexpr, SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the samples, `blocks` blocks of them, at one block of frequencies."""
    dtype: tl.constexpr = real.dtype.element_ty
    frequency = tl.program_id(0) * FREQUENCIES + tl.arange(0, FREQUENCIES)
    segment = tl.arange(0, SEGMENTS)
    cosines = tl.zeros((SEGMENTS, FREQUENCIES), dtype)
    sines = tl.zeros((SEGMENTS, FREQUENCIES), dtype)
    for block in range(blocks):
        sample = (tl.program_id(1) * blocks + block) * SAMPLES + tl.arange(0, SAMPLES)
        phases = _phases(
            samples, freqs, sample, frequency, samples_count, frequencies_count, channels_count,
            CHANNELS, PRECISION, dtype,
        )  # fmt: skip
        weights = _block(members, segments_count, samples_count, segment, sample)  # 0 where there is no sample
        cosines = tl.dot(weights, tl.cos(phases), cosines, input_precision=EXACT, out_dtype=dtype)
        sines = tl.dot(weights, tl.sin(phases), sines, input_precision=EXACT, out_dtype=dtype)
    place = tl.program_id(1) * segments_count + segment
    here = place[:, None] * frequencies_count + frequency[None, :]
    inside = (segment < segments_count)[:, None] & (frequency < frequencies_count)[None, :]
    tl.store(real + here, cosines, mask=inside)
    tl.store(imaginary + here, sines, mask=inside)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    samples, freqs, members, grad_real, grad_imaginary, gradient,
    samples_count, frequencies_count, channels_count, segments_count,
    SAMPLES: tl.constexpr, FREQUENCIES: tl.constexpr, CHANNELS: tl.constexpr, SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, GRADIENT_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of samples in one block of channels, summed over all frequencies."""
    dtype: tl.constexpr = grad_real.dtype.element_ty
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    channel = tl.program_id(1) * GRADIENT_CHANNELS + tl.arange(0, GRADIENT_CHANNELS)
    segment = tl.arange(0, SEGMENTS)
    weights = tl.trans(_block(members, segments_count, samples_count, segment, sample))
    total = tl.zeros((SAMPLES, GRADIENT_CHANNELS), dtype)
    for start in range(0, frequencies_count, FREQUENCIES):
        frequency = start + tl.arange(0, FREQUENCIES)
        phases = _phases(
            samples, freqs, sample, frequency, samples_count, frequencies_count, channels_count,
            CHANNELS, PRECISION, dtype,
        )  # fmt: skip
        of_cosines = _block(grad_real, segments_count, frequencies_count, segment, frequency)
        of_sines = _block(grad_imaginary, segments_count, frequencies_count, segment, frequency)
        slopes = tl.dot(weights, of_sines, input_precision=EXACT, out_dtype=dtype) * tl.cos(phases)
        slopes -= tl.dot(weights, of_cosines, input_precision=EXACT, out_dtype=dtype) * tl.sin(phases)
        rows = _block(freqs, frequencies_count, channels_count, frequency, channel)
        total = tl.dot(slopes.to(rows.dtype), rows, total, input_precision=PRECISION, out_dtype=dtype)
    here = sample.to(tl.int64)[:, None] * channels_count + channel[None, :]
    inside = (sample < samples_count)[:, None] & (channel < channels_count)[None, :]
    tl.store(gradient + here, total.to(gradient.dtype.element_ty), mask=inside)
