"""What turns a feature map into local features: RLFF (paper section 3.2, Eq. 4-5) and its alternatives (table 7).

Every kind is a bank of convolution rows `[C_out, c, k, k]`, made by `draw_rows`; all that follows is the same.

- `rlff` convolves a feature map of `c` channels with rows of the `C'`-point DFT matrix, `C' = c * k * k`, reshaped
  to filters `[c, k, k]`. Convolving with the whole matrix would be the 1-D DFT of every `k x k` neighborhood,
  flattened in the order (channel, y, x); a random subset of its rows is an orthogonal random mixing of that
  neighborhood, not a spatial spectrum.
- `identity` (x1, "w/o RLFF") has one row a channel: local features are the feature map itself.
- `dct` (x2, "DCT applied to convolutional filters") puts the DCT-II in the place of the DFT in Eq. 4: rows of the
  `C'`-point cosine matrix. The paper says no more; a 2-D DCT of each channel alone would be another reading.
- `dwt` (x3, "DWT with spatial resolution preservation") is one level of the undecimated Haar transform of every
  channel. The paper names neither wavelet nor levels; one level of SwinIR-light's 60 channels has 240 channels,
  which comes nearest to RLFF's 256.
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


def draw_rows(spec: Transform, channels: int, generator: torch.Generator) -> Tensor:
    """Make the convolution rows of one draw.

    Args:
        spec: The recipe's transform.
        channels: Channels `c` of the feature map.
        generator: CPU generator; `rlff` and `dct` draw from it, the other kinds leave it as it is.

    Returns:
        float32 `[C_out, c, k, k]` on the CPU, `C_out` being `spec.local_channels(c)` and `k` `spec.neighborhood`.

    Raises:
        ValueError: If more rows are asked for than there are.
    """
    if spec.kind == "identity":
        return torch.eye(channels)[:, :, None, None]
    if spec.kind == "dwt":
        return haar_rows(channels)
    if spec.kind == "dct":
        pool = torch.arange(channels * spec.kernel_size**2)
        indices = _choose(pool, spec.channels, replacement=spec.replacement, generator=generator)
        return dct_rows(channels, spec.kernel_size, indices)
    indices = draw_row_indices(
        channels,
        spec.kernel_size,
        spec.channels,
        rows=spec.rows,
        replacement=spec.replacement,
        generator=generator,
    )
    return rlff_rows(channels, spec.kernel_size, indices)


def dct_rows(channels: int, kernel_size: int, indices: Tensor) -> Tensor:
    """Build filters from rows of the orthonormal DCT-II of flattened neighborhoods (paper table 7, x2).

    Args:
        channels: Channels `c` of the feature map.
        kernel_size: Side `k` of the neighborhood, in feature-map pixels.
        indices: int64 `[C_out]`, values in `[0, C')` with `C' = c * k * k`.

    Returns:
        float32 `[C_out, channels, kernel_size, kernel_size]`; each row has length 1.
    """
    size = channels * kernel_size**2
    # As in `rlff_rows`, reduced as integers: a turn has 4 C' parts.
    turns = indices[:, None] * (2 * torch.arange(size) + 1) % (4 * size)
    rows = (turns.double() * (math.pi / (2 * size))).cos() * math.sqrt(2 / size)
    rows[indices == 0] = math.sqrt(1 / size)
    return rows.float().reshape(-1, channels, kernel_size, kernel_size)


def haar_rows(channels: int) -> Tensor:
    """Build the filters of one level of Haar wavelets that keep the resolution (paper table 7, x3).

    Returns:
        float32 `[4 * channels, channels, 3, 3]`, four rows a channel: low, then the details across, down and along
        the diagonal, each of length 1. They see the pixel and its neighbors to the right, below and between: the
        first line and column of the filters are 0, so that they stand around a pixel as the other kinds' do.
    """
    low, high = torch.tensor([0.0, 1.0, 1.0]) * 0.5**0.5, torch.tensor([0.0, 1.0, -1.0]) * 0.5**0.5
    bands = torch.stack([torch.outer(down, across) for down in (low, high) for across in (low, high)])
    rows = torch.zeros(channels, 4, channels, 3, 3)
    rows[torch.arange(channels), :, torch.arange(channels)] = bands
    return rows.flatten(0, 1)


def rlff_rows(channels: int, kernel_size: int, indices: Tensor) -> Tensor:
    """Build RLFF filters from their row indices (paper Eq. 4), without an identity matrix or an FFT.

    Args:
        channels: Channels `c` of the feature map.
        kernel_size: Side `k` of the neighborhood, in feature-map pixels.
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
        kernel_size: Side `k` of the neighborhood.
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
    return _choose(pool, count, replacement=replacement, generator=generator)


def _choose(pool: Tensor, count: int, *, replacement: bool, generator: torch.Generator) -> Tensor:
    if replacement:
        return pool[torch.randint(len(pool), (count,), generator=generator)]
    if count > len(pool):
        raise ValueError(f"transform.channels asks for {count} rows, but there are only {len(pool)}.")
    return pool[torch.randperm(len(pool), generator=generator)[:count]]


def pad(features: Tensor, kernel_size: int, padding: str, *, margin: int = 0) -> Tensor:
    """Pad a feature map so that a valid convolution with the rows gives the map that `padding` asks for.

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


def local_features(features: Tensor, rows: Tensor, padding: str) -> Tensor:
    """Local features of a batch of feature maps (paper Eq. 5), stride 1.

    Args:
        features: `[B, c, h, w]`, normalized per channel.
        rows: `[C_out, c, k, k]` of `draw_rows`; the convolution has their dtype (bfloat16 adds up in float32).
        padding: `reflect`, `zero` or `valid`.

    Returns:
        `[B, C_out, h', w']` in the dtype of the rows; `h' = h` unless `valid`, where `h' = h - k + 1`.
    """
    return convolve(pad(features, rows.shape[-1], padding), rows)


def convolve(padded: Tensor, rows: Tensor) -> Tensor:
    """`local_features` of maps that are padded already, or of windows cut from such maps."""
    # Channels last, the maps are rows already: `to_rows` copies nothing.
    return F.conv2d(padded.to(rows.dtype, memory_format=torch.channels_last), rows)


def to_rows(maps: Tensor) -> Tensor:
    """Unfold maps `[B, C, h, w]` to one row a pixel, `[B*h*w, C]`, in the order (patch, y, x)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
