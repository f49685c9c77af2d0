"""Local features of a feature map: RLFF (paper section 3.2, Eq. 4-5) and the alternatives of table 7.

Every kind is a bank of convolution filters `[C_out, c, k, k]` made by `draw_filters`; everything after that is shared.

- `rlff` takes random rows of the `C'`-point DFT matrix, `C' = c * k * k`, reshaped to filters `[c, k, k]`. Convolving
  with all rows would compute the 1-D DFT of every `k x k` neighborhood, flattened in the order (channel, y, x). A
  random subset is an orthogonal random mixing of that neighborhood, not a spatial spectrum.
- `identity` (x1, "w/o RLFF") has one filter per channel: the local features are the feature map itself.
- `dct` (x2, "DCT applied to convolutional filters") replaces the DFT of Eq. 4 by the DCT-II: rows of the `C'`-point
  cosine matrix. The paper gives no details; a 2-D DCT of each channel would be another reading.
- `dwt` (x3, "DWT with spatial resolution preservation") is one level of the undecimated Haar transform of every
  channel. The paper names neither the wavelet nor the number of levels; one level of SwinIR-light's 60 channels gives
  240 channels, the closest to RLFF's 256.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from idc_hub.recipe import Transform

PAD_MODES = {"reflect": "reflect", "zero": "constant"}


def draw_filters(transform: Transform, channels: int, generator: torch.Generator) -> Tensor:
    """Make the convolution filters of one draw.

    Args:
        transform: The recipe's transform.
        channels: Channels `c` of the feature map.
        generator: CPU generator; `rlff` and `dct` draw from it, the other kinds do not use it.

    Returns:
        float32 `[C_out, c, k, k]` on the CPU, with `C_out = transform.local_channels(c)` and
        `k = transform.neighborhood`.

    Raises:
        ValueError: If `transform.channels` exceeds the number of filters to draw from.
    """
    if transform.kind == "identity":
        return torch.eye(channels)[:, :, None, None]
    if transform.kind == "dwt":
        return haar_filters(channels)
    size = transform.kernel_size
    if transform.kind == "dct":
        indices = _choose(torch.arange(channels * size**2), transform.channels, generator)
        return dct_filters(channels, size, indices)
    indices = draw_rlff_indices(channels, size, transform.channels, rows=transform.rows, generator=generator)
    return rlff_filters(channels, size, indices)


def dct_filters(channels: int, kernel_size: int, indices: Tensor) -> Tensor:
    """Build filters from rows of the orthonormal DCT-II of flattened neighborhoods (paper table 7, x2).

    Args:
        channels: Channels `c` of the feature map.
        kernel_size: Side `k` of the neighborhood, in feature-map pixels.
        indices: int64 `[C_out]`, values in `[0, C')` with `C' = c * k * k`.

    Returns:
        float32 `[C_out, channels, kernel_size, kernel_size]`; each filter has length 1.
    """
    size = channels * kernel_size**2
    # Reduce the argument as an integer, as in `rlff_filters`; a full turn is 4 C'.
    turns = indices[:, None] * (2 * torch.arange(size) + 1) % (4 * size)
    filters = (turns.double() * (math.pi / (2 * size))).cos() * math.sqrt(2 / size)
    filters[indices == 0] = math.sqrt(1 / size)
    return filters.float().reshape(-1, channels, kernel_size, kernel_size)


def haar_filters(channels: int) -> Tensor:
    """Build one level of full-resolution Haar wavelets (paper table 7, x3).

    Returns:
        float32 `[4 * channels, channels, 3, 3]`, four filters per channel: low pass, then horizontal, vertical and
        diagonal detail, each of length 1. They cover a pixel and its neighbors to the right, below and diagonally.
        The first row and column are 0, so that the 2 x 2 filters are centered on a pixel like the other kinds.
    """
    low, high = torch.tensor([0.0, 1.0, 1.0]) * 0.5**0.5, torch.tensor([0.0, 1.0, -1.0]) * 0.5**0.5
    bands = torch.stack([torch.outer(down, across) for down in (low, high) for across in (low, high)])
    filters = torch.zeros(channels, 4, channels, 3, 3)
    filters[torch.arange(channels), :, torch.arange(channels)] = bands
    return filters.flatten(0, 1)


def rlff_filters(channels: int, kernel_size: int, indices: Tensor) -> Tensor:
    """Build RLFF filters from rows of the Fourier matrix (paper Eq. 4), without building the matrix.

    Args:
        channels: Channels `c` of the feature map.
        kernel_size: Side `k` of the neighborhood, in feature-map pixels.
        indices: int64 `[C_out]`, values in `[0, 2C')` with `C' = c * k * k`. Index `r < C'` is the cosine row
            `cos(2 pi r j / C')`; index `C' + r` is the row of `-Im`, which is `+sin(2 pi r j / C')`;
            `j = (channel * k + y) * k + x`.

    Returns:
        float32 `[C_out, channels, kernel_size, kernel_size]`, values in [-1, 1].

    Raises:
        IndexError: If an index is outside `[0, 2C')`.
    """
    size = channels * kernel_size**2
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < 2 * size):
        raise IndexError(f"RLFF filter indices must be in [0, {2 * size}) for {channels} channels, k={kernel_size}.")
    positions = torch.arange(size, device=indices.device)
    # The product reaches C'^2, too large for an accurate float32 cosine: reduce it as an integer first.
    turns = (indices[:, None] % size) * positions % size
    angles = turns.double() * (2 * math.pi / size)
    filters = torch.where((indices < size)[:, None], angles.cos(), angles.sin())
    return filters.float().reshape(-1, channels, kernel_size, kernel_size)


def draw_rlff_indices(channels: int, kernel_size: int, count: int, *, rows: str, generator: torch.Generator) -> Tensor:
    """Draw the RLFF filters of one draw (paper section 3.2: "channel-wise random sampling"), without replacement.

    Args:
        channels: Channels `c` of the feature map.
        kernel_size: Side `k` of the neighborhood.
        count: Filters to draw, `C_out`.
        rows: `literal` draws from all `2C'` rows of the matrix, which include mirrored twins and two rows of zeros;
            `unique` draws from an orthogonal basis of `C'` rows (cosines `0..C'/2` and the sines between them).
        generator: CPU generator; the draw depends on nothing else.

    Returns:
        int64 `[count]` on the CPU.

    Raises:
        ValueError: If `count` exceeds the number of rows to draw from.
    """
    size = channels * kernel_size**2
    if rows == "unique":
        cosines = torch.arange(size // 2 + 1)
        sines = size + torch.arange(1, (size + 1) // 2)
        pool = torch.cat([cosines, sines])
    else:
        pool = torch.arange(2 * size)
    return _choose(pool, count, generator)


def _choose(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if count > len(pool):
        raise ValueError(f"transform.channels asks for {count} filters, but there are only {len(pool)}.")
    return pool[torch.randperm(len(pool), generator=generator)[:count]]


def pad(features: Tensor, kernel_size: int, padding: str) -> Tensor:
    """Pad a feature map so that a valid convolution gives the map that `padding` asks for.

    Args:
        features: `[B, c, h, w]`.
        kernel_size: Odd side `k` of the filters.
        padding: `reflect`, `zero`, or `valid` (no padding: the border of `k // 2` pixels is lost).

    Returns:
        `[B, c, h + 2a, w + 2a]` with `a = k // 2`, or the features themselves if `valid`.
    """
    width = 0 if padding == "valid" else kernel_size // 2
    if width == 0:
        return features
    return F.pad(features, (width,) * 4, mode=PAD_MODES[padding])


def local_features(features: Tensor, filters: Tensor, padding: str) -> Tensor:
    """Local features of a batch of feature maps (paper Eq. 5), stride 1.

    Args:
        features: `[B, c, h, w]`, normalized per channel.
        filters: `[C_out, c, k, k]` from `draw_filters`; the convolution uses their dtype (bfloat16 accumulates in
            float32).
        padding: `reflect`, `zero` or `valid`.

    Returns:
        `[B, C_out, h', w']` in the dtype of the filters; `h' = h` unless `valid`, where `h' = h - k + 1`.
    """
    return convolve(pad(features, filters.shape[-1], padding), filters)


def convolve(padded: Tensor, filters: Tensor) -> Tensor:
    """`local_features` of maps that are already padded, or of neighborhoods cut from such maps."""
    # In channels-last layout each pixel's features are contiguous, so `unfold_pixels` copies nothing.
    return F.conv2d(padded.to(filters.dtype, memory_format=torch.channels_last), filters)


def unfold_pixels(maps: Tensor) -> Tensor:
    """Unfold maps `[B, C, h, w]` to one sample per pixel, `[B*h*w, C]`, in the order (patch, y, x)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
