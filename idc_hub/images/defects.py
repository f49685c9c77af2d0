"""Technical defects of images, as practitioners filter the photographs of their training sets.

All functions but `first_sight` take luma `[n, h, w]` in [0, 255], see `patches.luma`, and return float64 `[n]`.
"""

import numpy as np

from idc_hub.images.patches import luma

_BLOCK = 8
_TINY = 1e-9
_LOOKED_AT = 256
"""Side of the center of a photograph that `first_sight` looks at."""
_TOO_SMALL = 128
_COMPRESSED = 20.0
"""Blockiness from which a photograph looks compressed."""
_ENLARGED = 0.12
"""Aliasing below which it looks enlarged; at least 0.16 in lossless photographs."""
_FLAT = 15.0
"""Contrast below which it is not judged."""


def blockiness(luma: np.ndarray) -> np.ndarray:
    """Traces of the 8 x 8 blocks of JPEG.

    The measure of Bhardwaj and Pankajakshan (Signal Processing: Image Communication 68, 2018). V(i, j) is the mean
    variation of the DCT coefficient (i, j) between neighboring blocks of the grid that starts at the first pixel, and
    V' the same for a grid shifted by 4 pixels; the result is the sum of |V' - V| / V over all 64 coefficients.
    DiverSeg (arXiv 2409.00768) and BHI use it; BHI keeps tiles of 512 x 512 below 30.

    Args:
        luma: float `[n, h, w]`, at least 32 x 32.
    """
    on_grid, shifted = (_variation(luma[:, start:, start:]) for start in (0, _BLOCK // 2))
    return (np.abs(shifted - on_grid) / (on_grid + _TINY)).sum(axis=(1, 2))


def _variation(luma: np.ndarray) -> np.ndarray:
    """Mean length of the second differences, across and down, of each DCT coefficient: `[n, 8, 8]`."""
    from scipy.fft import dctn

    count, height, width = luma.shape
    down, across = height // _BLOCK, width // _BLOCK
    blocks = luma[:, : down * _BLOCK, : across * _BLOCK].reshape(count, down, _BLOCK, across, _BLOCK)
    coefficients = dctn(blocks, axes=(2, 4), norm="ortho")
    vertical = np.diff(coefficients, n=2, axis=1)[:, :, :, 1:-1]
    horizontal = np.diff(coefficients, n=2, axis=3)[:, 1:-1]
    return np.hypot(vertical, horizontal).mean(axis=(1, 3), dtype=np.float64)


def entropy(luma: np.ndarray) -> np.ndarray:
    """Shannon entropy of the histogram of gray levels, in bits: from 0 for one level to 8."""
    levels = luma.round().astype(np.uint8).reshape(len(luma), -1)
    shares = np.stack([np.bincount(image, minlength=256) for image in levels]) / levels.shape[1]
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)


def contrast(luma: np.ndarray) -> np.ndarray:
    """Standard deviation of luma, in gray levels."""
    return luma.std(axis=(1, 2), dtype=np.float64)


def sharpness(luma: np.ndarray) -> np.ndarray:
    """Variance of the Laplacian (4 neighbors), in squared gray levels: small if blurred, large if oversharpened."""
    from scipy.ndimage import laplace

    return np.array([laplace(image.astype(np.float64), mode="mirror").var() for image in luma])


def aliasing(luma: np.ndarray) -> np.ndarray:
    """Mean amplitude of the frequencies beyond 3/4 of Nyquist, divided by that of all frequencies, 0 included.

    The measure of traiNNer-redux's filters: near 0 for a smooth or an enlarged image, 1 for noise.
    """
    amplitude = np.abs(np.fft.rfft2(luma))
    vertical, horizontal = np.fft.fftfreq(luma.shape[1])[:, None], np.fft.rfftfreq(luma.shape[2])[None]
    fine = np.hypot(vertical, horizontal) > 0.75 * 0.5
    twice = np.where((horizontal == 0) | (horizontal == 0.5), 1, 2)  # rfft2 leaves the mirrored half out
    share = (amplitude * twice * fine).sum(axis=(1, 2)) / (twice * fine).sum()
    return share / ((amplitude * twice).sum(axis=(1, 2)) / (luma.shape[1] * luma.shape[2]) + _TINY)


def first_sight(photograph: np.ndarray) -> str | None:
    """What a photograph looks like that is a poor original: compressed by JPEG, or enlarged; None if neither.

    Looks at the center. Of 31 lossless photographs it calls one compressed, whose blockiness of 92 shows that it was a
    JPEG before; the others have at most 7. Of the same photographs as JPEG it names 31 at quality 75, 29 at 85, 14 at
    90; enlarged by 2 it names 28.

    Args:
        photograph: uint8 RGB `[height, width, 3]`; one that is small or flat is not judged.
    """
    height, width = photograph.shape[:2]
    top, left = (max(side - _LOOKED_AT, 0) // 2 // _BLOCK * _BLOCK for side in (height, width))
    center = photograph[top : top + _LOOKED_AT, left : left + _LOOKED_AT]
    gray = luma(center.transpose(2, 0, 1)[None])
    if min(center.shape[:2]) < _TOO_SMALL or contrast(gray)[0] < _FLAT:
        return None
    if blockiness(gray)[0] > _COMPRESSED:
        return "compressed by JPEG"
    return "enlarged or blurred" if aliasing(gray)[0] < _ENLARGED else None
