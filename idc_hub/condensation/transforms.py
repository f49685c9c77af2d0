"""Random Local Fourier Features: what turns a feature map into local features (paper section 3.2, Eq. 4-5).

RLFF convolves a feature map of `c` channels with rows of the `C'`-point DFT matrix, `C' = c * k * k`, reshaped
to filters `[c, k, k]`. Convolving with the whole matrix would be the 1-D DFT of every `k x k` neighbourhood,
flattened in the order (channel, y, x); a random subset of its rows is an orthogonal random mixing of that
neighbourhood, not a spatial spectrum.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_MODES = {"reflect": "reflect", "zero": "constant"}


def rlff_rows(channels: int, kernel_size: int, indices: Tensor) -> Tensor:
    """Build RLFF filters from their row indices (paper Eq. 4), without an identity matrix or an FFT.

    Args:
        channels: Channels `c` of the feature map.
        kernel_size: Side `k` of the neighbourhood, in feature-map pixels.
        indices: int64 `[C_out]`, values in `[0, 2C')` with `C' = c * k * k`. Index `r < C'` is the cosine row
            `cos(2 pi r j / C')`, index `C' + r` the row of `-Im`, which is `+sin(2 pi r j / C')`;
            `j = (channel * k + y) * k + x`.

    Returns:
        float32 `[C_out, channels, kernel_size, kernel_size]`, values in [-1, 1].

    Raises:
        IndexError: If an index lies outside `[0, 2C')`.
    """
    size = channels * kernel_size**2
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < 2 * size):
        raise IndexError(f"RLFF row indices must lie in [0, {2 * size}) for {channels} channels, k={kernel_size}.")
    positions = torch.arange(size, device=indices.device)
    # The product reaches C'^2, too coarse an argument for a cosine in float32: reduce it as integers first.
    turns = (indices[:, None] % size) * positions % size
    angles = turns.double() * (2 * math.pi / size)
    rows = torch.where((indices < size)[:, None], angles.cos(), angles.sin())
    return rows.float().reshape(-1, channels, kernel_size, kernel_size)


def draw_row_indices(
    channels: int, kernel_size: int, count: int, *, rows: str, replacement: bool, generator: torch.Generator
) -> Tensor:
    """Draw the RLFF rows of one feature draw (paper section 3.2: "channel-wise random sampling").

    Args:
        channels: Channels `c` of the feature map.
        kernel_size: Side `k` of the neighbourhood.
        count: Rows to draw, `C_out`.
        rows: `literal` draws from all `2C'` rows, among them mirror twins and two rows that are all zero;
            `unique` from the `C'` rows of an orthogonal basis (cosines `0..C'/2`, sines between them).
        replacement: Whether a row may be drawn twice.
        generator: CPU generator; the draw depends on nothing else.

    Returns:
        int64 `[count]` on the CPU.

    Raises:
        ValueError: If more rows are asked for than there are.
    """
    size = channels * kernel_size**2
    if rows == "unique":
        cosines = torch.arange(size // 2 + 1)
        sines = size + torch.arange(1, (size + 1) // 2)
        pool = torch.cat([cosines, sines])
    else:
        pool = torch.arange(2 * size)
    if replacement:
        return pool[torch.randint(len(pool), (count,), generator=generator)]
    if count > len(pool):
        raise ValueError(f"transform.channels asks for {count} rows, but there are only {len(pool)}.")
    return pool[torch.randperm(len(pool), generator=generator)[:count]]


def pad_for_rlff(features: Tensor, kernel_size: int, padding: str, *, margin: int = 0) -> Tensor:
    """Pad a feature map so that a valid convolution with RLFF rows gives the map that `padding` asks for.

    Args:
        features: `[B, c, h, w]`.
        kernel_size: Odd side `k` of the rows.
        padding: `reflect`, `zero`, or `valid` (none, which leaves a border of `k // 2` pixels out).
        margin: Further pixels on each side, for windows that move (`loss.deformation`).

    Returns:
        `[B, c, h + 2a, w + 2a]` with `a = k // 2 + margin`, or `a = margin` when `valid`.
    """
    width = margin if padding == "valid" else kernel_size // 2 + margin
    if width == 0:
        return features
    return F.pad(features, (width,) * 4, mode=PAD_MODES.get(padding, "reflect"))


def rlff(features: Tensor, rows: Tensor, padding: str) -> Tensor:
    """Random Local Fourier Features of a batch of feature maps (paper Eq. 5), stride 1.

    Args:
        features: `[B, c, h, w]`, normalised per channel.
        rows: `[C_out, c, k, k]` of `rlff_rows`; the convolution has their dtype (bfloat16 adds up in float32).
        padding: `reflect`, `zero` or `valid`.

    Returns:
        `[B, C_out, h', w']` in the dtype of the rows; `h' = h` unless `valid`, where `h' = h - k + 1`.
    """
    return convolve(pad_for_rlff(features, rows.shape[-1], padding), rows)


def convolve(padded: Tensor, rows: Tensor) -> Tensor:
    """`rlff` of maps that are padded already, or of windows cut from such maps."""
    # Channels last, the maps are rows already: `to_rows` copies nothing.
    return F.conv2d(padded.to(rows.dtype, memory_format=torch.channels_last), rows)


def to_rows(maps: Tensor) -> Tensor:
    """Unfold maps `[B, C, h, w]` to one row a pixel, `[B*h*w, C]`, in the order (patch, y, x)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
