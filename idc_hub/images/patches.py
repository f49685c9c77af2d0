"""Windows on the LR grid, the HR box of each, and the patches that are cut there.

An HR box is always derived from its LR window and never cut on a grid of its own, so LR and HR stay aligned.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil, floor
from typing import NamedTuple

import numpy as np

from idc_hub.images.resize import imresize, mod_crop

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_NEAR_COLOR = 8
"""Gray levels by which a teacher may change a flat patch, because it smooths noise."""
_FAR = 20.0
"""Root mean square difference, in gray levels, up to which LR and downscaled HR belong together in any case."""
_RELATED = 0.25
"""Correlation of LR and downscaled HR above which they belong together, however far off brightness and contrast are.

Measured at x4 on 112 photograph patches, condensed patches of both presets, and noise: at least 0.95 (or a difference
below 10 levels) with bicubic, with EDSR, and with EDSR of random weights; 0.28 with a blur of 8 HR pixels, of noise.
HR of another photograph stays below 0.25 in 9 of 10 cases, noise or a single gray below 0.05, always 28 levels away.
"""
_REACH = 2
"""Width in LR pixels of the border where bicubic downscaling also reads pixels outside the HR box."""


class Place(NamedTuple):
    """Where a real LR patch was cut out.

    Attributes:
        top: In LR pixels.
        left: In LR pixels.
        zoom: Size of the photograph it was cut from, relative to the photograph of the source.
    """

    top: int
    left: int
    zoom: float = 1.0


def places(
    height: int, width: int, *, scale: int, size: int, stride: int, zooms: Sequence[float] = (1.0,)
) -> list[Place]:
    """Places of all real LR patches of a photograph, zoom by zoom, row by row.

    Args:
        height: Height of the HR photograph.
        width: Width of the HR photograph.
        scale: Super-resolution scale.
        size: Side of an LR patch.
        stride: Distance between LR patches.
        zooms: Sizes of the photograph to cut from; one that is too small for a patch adds none.
    """
    found = []
    for zoom in zooms:
        down, across = (ceil(side * zoom) // scale for side in (height, width))
        found += [Place(top, left, float(zoom)) for top, left in windows(down, across, size, stride)]
    return found


def at_zoom(hr: np.ndarray, zoom: float, scale: int) -> np.ndarray:
    """A photograph at `zoom` of its size: shrunk by MATLAB's bicubic, then mod-cropped.

    Args:
        hr: uint8 `[height, width, 3]`, mod-cropped to `scale`.
        zoom: 1, or a fraction that `imresize` accepts.
        scale: Super-resolution scale.
    """
    return hr if zoom == 1 else mod_crop(imresize(hr, zoom), scale)


def windows(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Positions of the square windows of an LR image, row by row.

    If the stride leaves pixels over, one more window is flush with the far edge.

    Args:
        height: Height of the LR image.
        width: Width of the LR image.
        size: Side of a window, in LR pixels.
        stride: Distance between neighboring windows, in LR pixels.

    Returns:
        `(top, left)` of each window; empty if the image is smaller than one window.
    """
    lefts = _starts(width, size, stride)
    return [(top, left) for top in _starts(height, size, stride) for left in lefts]


def _starts(length: int, size: int, stride: int) -> list[int]:
    starts = list(range(0, length - size + 1, stride))
    if starts and starts[-1] + size < length:
        starts.append(length - size)
    return starts


def hr_box(place: tuple[int, int], size: int, scale: int) -> tuple[int, int, int, int]:
    """The HR box `(top, left, bottom, right)` that the LR window of side `size` at `place` covers."""
    top, left = place
    return top * scale, left * scale, (top + size) * scale, (left + size) * scale


def cut(lr: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Cut an LR image into patches, one at each window.

    Args:
        lr: uint8 RGB image, `[height, width, 3]`.
        size: Side of a patch.
        stride: Distance between neighboring patches.

    Returns:
        uint8 patches `[N, 3, size, size]`, in the order of `windows`.
    """
    height, width, channels = lr.shape
    places = windows(height, width, size, stride)
    patches = np.empty((len(places), channels, size, size), lr.dtype)
    for patch, (top, left) in zip(patches, places, strict=True):
        patch[:] = lr[top : top + size, left : left + size].transpose(2, 0, 1)
    return patches


def lr_patches(hr: np.ndarray, *, scale: int, size: int, stride: int, zooms: Sequence[float] = (1.0,)) -> np.ndarray:
    """All real LR patches of a photograph, cut from its bicubic downscaling at each zoom.

    Args:
        hr: uint8 `[height, width, 3]`, mod-cropped to `scale`.
        scale: Super-resolution scale.
        size: Side of an LR patch.
        stride: Distance between LR patches.
        zooms: See `places`.

    Returns:
        uint8 `[N, 3, size, size]`, in the order of `places`.
    """
    photographs = (at_zoom(hr, zoom, scale) for zoom in zooms)
    fitting = (photograph for photograph in photographs if min(photograph.shape[:2]) >= size * scale)
    return np.concatenate([cut(imresize(photograph, 1 / scale), size, stride) for photograph in fitting])


def hr_patches(
    hr: np.ndarray, *, scale: int, size: int, stride: int, zooms: Sequence[float] = (1.0,)
) -> list[np.ndarray]:
    """The photograph's own HR of its `lr_patches`: N views, uint8 `[3, scale * size, scale * size]`."""
    photographs = {zoom: at_zoom(hr, zoom, scale) for zoom in zooms}
    found = []
    for place in places(*hr.shape[:2], scale=scale, size=size, stride=stride, zooms=zooms):
        top, left, bottom, right = hr_box(place[:2], size, scale)
        found.append(photographs[place.zoom][top:bottom, left:right].transpose(2, 0, 1))
    return found


def synthetic_counts(real_counts: Sequence[int], ratio: float | Fraction, minimum: int) -> list[int]:
    """Number of synthetic patches of each photograph.

    Photograph i gets `floor(r * sum_to_i) - floor(r * sum_to_(i-1))`, so that without a minimum all counts sum to
    `floor(r * total)`.

    Args:
        real_counts: Real patches of each photograph, in order.
        ratio: Synthetic patches per real one, in (0, 1].
        minimum: Least number of patches of a photograph.

    Returns:
        One count per photograph.
    """
    # The decimal that was written, not its binary neighbor: 0.29 * 100 must be 29.
    exact = Fraction(str(ratio))
    totals = accumulate(real_counts, initial=0)
    return [max(floor(exact * after) - floor(exact * before), minimum) for before, after in pairwise(totals)]


def complexity(patches: np.ndarray) -> np.ndarray:
    """Strength of the edges: mean of `0.5 |Sx| + 0.5 |Sy|` over the luma of each patch (Sobel, mirrored at the border).

    Args:
        patches: uint8 RGB `[n, 3, h, w]`.

    Returns:
        float64 `[n]`, for luma from 0 to 255.
    """
    from scipy.ndimage import correlate1d  # slow to import

    strength = np.zeros(len(patches))
    for across, along in ((1, 2), (2, 1)):
        smooth = correlate1d(luma(patches), [1, 2, 1], axis=along, mode="mirror")
        strength += 0.5 * np.abs(correlate1d(smooth, [-1, 0, 1], axis=across, mode="mirror")).mean((1, 2))
    return strength


def is_one_color(patches: np.ndarray) -> np.ndarray:
    """Which patches, uint8 `[n, 3, h, w]`, have one value per channel in all their pixels: bool `[n]`."""
    return (patches == patches[:, :, :1, :1]).all(axis=(1, 2, 3))


def is_wrongly_one_color(lr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Which HR patches have a single color that their LR patches do not have.

    Sound teachers and photographs never make such pairs; NaN written as pixels does.

    Args:
        lr: uint8 `[n, 3, h, w]`.
        hr: uint8 `[n, 3, s*h, s*w]`.

    Returns:
        bool `[n]`.
    """
    inside = lr[:, :, _REACH:-_REACH, _REACH:-_REACH] if min(lr.shape[2:]) > 2 * _REACH else lr
    away = np.abs(inside.astype(int) - hr[:, :, :1, :1]).max(axis=(1, 2, 3))
    return is_one_color(hr) & (away > _NEAR_COLOR)


def is_mismatched(lr: np.ndarray, hr: np.ndarray, scale: int) -> bool:
    """Whether an HR patch cannot belong to an LR patch, because it shows something else or nothing at all.

    Bicubic downscaling brings it to the size of the LR patch. A bad teacher, which blurs, adds noise or changes the
    brightness, is not a mismatch; HR of another patch is one, unless the two look alike.

    Args:
        lr: uint8 `[h, w, 3]`.
        hr: uint8 `[scale*h, scale*w, 3]`.
        scale: HR size over LR size.
    """
    a, b = (image.astype(np.float64) for image in (lr, imresize(hr, 1 / scale)))
    if np.sqrt(np.mean((a - b) ** 2)) <= _FAR:
        return False
    a, b = (image - image.mean((0, 1)) for image in (a, b))
    return bool(a.any() and (a * b).sum() <= _RELATED * np.sqrt((a**2).sum() * (b**2).sum()))


def luma(patches: np.ndarray) -> np.ndarray:
    """BT.601 luma of uint8 RGB `[n, 3, h, w]`: float32 `[n, h, w]` in [0, 255]."""
    return np.einsum("j,njhw->nhw", _LUMA, patches.astype(np.float32))
