"""Figures that show a bad condensed set at a glance: a low loss alone is no evidence of good patches.

Compare each with the same figure on real crops of the same photographs. Patches that failed in this project's
pilot had 3 to 4 times the natural ratio of chroma to luma detail and half the natural teacher residual.
"""

import numpy as np
from scipy.stats import wasserstein_distance

from idc_hub.images.resize import imresize

# Full-range BT.601: what JPEG calls Y, Cb and Cr.
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def high_frequency(patches: np.ndarray) -> tuple[float, float]:
    """Energy at the finest scale, in luma and in chroma.

    Args:
        patches: uint8 RGB `[n, 3, h, w]`.

    Returns:
        Mean absolute 2x2 checkerboard response `|a - b - c + d| / 2` of Y, and the mean of those of Cb and Cr, for
        pixels in [0, 1]. The natural ratio of chroma to luma is about 0.26 on photographs.
    """
    ycc = np.einsum("ij,njhw->nihw", _YCBCR, patches / 255)
    checker = np.abs(ycc[..., :-1, :-1] - ycc[..., :-1, 1:] - ycc[..., 1:, :-1] + ycc[..., 1:, 1:]) / 2
    luma, blue, red = checker.mean(axis=(0, 2, 3))
    return float(luma), float((blue + red) / 2)


def colour_distance(patches: np.ndarray, real: np.ndarray) -> float:
    """Wasserstein-1 distance between the pixel values of two sets, mean over R, G and B.

    Args:
        patches: uint8 `[n, 3, h, w]`.
        real: uint8 `[N, 3, h, w]`, the real patches.

    Returns:
        A distance for pixels in [0, 1]; 0 where the distributions of each channel agree.
    """
    distances = [
        wasserstein_distance(patches[:, channel].ravel() / 255, real[:, channel].ravel() / 255) for channel in range(3)
    ]
    return float(np.mean(distances))


def teacher_residual(lr: np.ndarray, hr: np.ndarray, *, quantile: float = 0.995) -> float:
    """How strong the strongest detail is that HR has and a bicubic enlargement of LR has not.

    Args:
        lr: uint8 `[n, 3, h, w]`.
        hr: uint8 `[n, 3, s*h, s*w]`.
        quantile: Which quantile of the absolute luma difference; the maximum would be one pixel's accident.

    Returns:
        The quantile, for luma in [0, 1]; about 0.20 on photographs with their teacher's HR.
    """
    scale = hr.shape[-1] // lr.shape[-1]
    enlarged = np.stack([imresize(patch.transpose(1, 2, 0), scale).transpose(2, 0, 1) for patch in lr])
    luma = np.abs(np.einsum("j,njhw->nhw", _YCBCR[0], (hr.astype(float) - enlarged) / 255))
    return float(np.quantile(luma, quantile))
