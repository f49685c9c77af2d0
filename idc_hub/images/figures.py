"""Figures of merit for a set of LR patches and their HR patches, as plain measurements.

A low loss alone does not show that patches are good: an optimization can come close to the real patches in the distance
that it minimizes and still leave color noise or lose strong edges. These figures measure what the loss does not. What
counts as natural is what real patches of the same photographs have, measured in the same way through the same teacher.

All patches are uint8 RGB `[n, 3, h, w]`; all figures are for pixels in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from idc_hub.images.patches import is_one_color, is_wrongly_one_color
from idc_hub.images.resize import imresize

COPIED = 0.02
"""RMS distance (5 gray levels) below which a patch counts as a copy of a real one."""
NEIGHBORS = 5
"""The `k` of the coverage, as Naeem et al. recommend."""
REFERENCE_PATCHES = 256
"""Most real patches of a photograph that distributions are estimated from; of more, a seeded sample."""

_NEIGHBORHOODS = 2048
# Full-range BT.601: what JPEG calls Y, Cb and Cr.
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_ROUNDING = 1 / 255**2 / 12  # variance of rounding to 8 bits: no spectrum resolves less power
_ROUNDED_HF = 6e-4
"""Mean checkerboard response that rounding to 8 bits alone causes, in Y as well as in Cb and Cr.

The response has the variance of one pixel's error: 1/12 of a squared gray level in each of R, G and B, times the sum of
the squared weights of Y (.45), or of Cb and Cr (.41 on average). Its mean absolute value is sqrt(2 / pi) times the
standard deviation: 6.0e-4 for Y, 5.8e-4 for Cb and Cr.
"""


_INTERMEDIATE = ("chroma_hf", "spectrum", "real_spectrum")
"""Measurements that other figures are computed from."""


def high_frequency(patches: np.ndarray) -> tuple[float, float]:
    """Energy at the finest scale, in luma and in chroma.

    Returns:
        Mean absolute 2x2 checkerboard response `|a - b - c + d| / 2` of Y, and the same averaged over Cb and Cr. In
        photographs chroma has about 0.26 times the response of luma.
    """
    ycc = _ycbcr(patches)
    checker = np.abs(ycc[..., :-1, :-1] - ycc[..., :-1, 1:] - ycc[..., 1:, :-1] + ycc[..., 1:, 1:]) / 2
    luma, blue, red = checker.mean(axis=(0, 2, 3))
    return float(luma), float((blue + red) / 2)


def saturated(patches: np.ndarray) -> float:
    """Share of values that are 0 or 255, as clamping leaves them after an optimization without bounds."""
    return float(np.mean((patches == 0) | (patches == 255)))


def teacher_residual(lr: np.ndarray, hr: np.ndarray, *, quantile: float = 0.995) -> float:
    """Strength of the strongest details that HR adds to a bicubic enlargement of LR.

    Args:
        lr: uint8 `[n, 3, h, w]`.
        hr: uint8 `[n, 3, s*h, s*w]`.
        quantile: Which quantile of the absolute luma difference; the maximum would depend on a single pixel.

    Returns:
        The quantile; about 0.20 for real patches of photographs with a teacher's HR.
    """
    scale = hr.shape[-1] // lr.shape[-1]
    luma = np.empty((len(hr), *hr.shape[2:]), np.float32)
    for residual, low, high in zip(luma, lr, hr, strict=True):
        enlarged = imresize(low.transpose(1, 2, 0), scale).transpose(2, 0, 1)
        residual[:] = np.abs(np.tensordot(_YCBCR[0], high.astype(float) - enlarged, axes=1)) / 255
    return float(np.quantile(luma, quantile))


def rms_residual(lr: np.ndarray, hr: np.ndarray) -> float:
    """Root mean square difference of HR to a bicubic enlargement of LR, in gray levels (0..255).

    Args:
        lr: uint8 `[h, w, 3]`.
        hr: uint8 `[s*h, s*w, 3]`.
    """
    residual = hr.astype(np.int32) - imresize(lr, hr.shape[0] // lr.shape[0])
    return float(np.sqrt(np.mean(residual**2)))


def bicubic_errors(lr: np.ndarray, hr: Sequence[np.ndarray]) -> np.ndarray:
    """`rms_residual` of each patch.

    Args:
        lr: uint8 `[n, 3, h, w]`.
        hr: Their own HR: n times uint8 `[3, s*h, s*w]`.

    Returns:
        float64 `[n]`.
    """
    pairs = zip(lr, hr, strict=True)
    return np.array([rms_residual(small.transpose(1, 2, 0), large.transpose(1, 2, 0)) for small, large in pairs])


def color_distance(patches: np.ndarray, real: np.ndarray) -> float:
    """Wasserstein-1 distance between the pixel values of two sets, mean over R, G and B; 0 if they are equal."""
    shares = [
        np.stack([np.bincount(values[:, channel].ravel(), minlength=256) for channel in range(3)]) / values[:, 0].size
        for values in (patches, real)
    ]
    return float(np.abs(np.cumsum(shares[0] - shares[1], axis=1)).sum(axis=1).mean() / 255)


def sliced_distance(patches: np.ndarray, real: np.ndarray, *, side: int = 7) -> float:
    """Sliced Wasserstein-2 distance between the pixel neighborhoods of two sets (Rabin et al. 2011).

    Projects 2,048 seeded random neighborhoods of each set on a seeded random orthonormal basis and compares the sorted
    projections along each direction. Two sets that differ by a constant are exactly that constant apart.

    Args:
        patches: uint8 `[n, 3, h, w]`.
        real: uint8 `[N, 3, h, w]`.
        side: Of a neighborhood, in pixels.

    Returns:
        Root of the mean squared difference, over directions and quantiles.
    """
    side = min(side, *patches.shape[2:])
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((3 * side**2, 3 * side**2)))[0]
    of_set, of_real = (np.sort(_neighborhoods(values, side) @ directions, axis=0) for values in (patches, real))
    return float(np.sqrt(np.mean((of_set - of_real) ** 2)))


def spectrum(patches: np.ndarray) -> np.ndarray:
    """Radially averaged power spectrum of luma under a Hann window, after subtracting the mean.

    Returns:
        float `[h // 2]`: power at 1, 2, ... h // 2 cycles per patch. White noise has its variance at every frequency
        except the first, which loses some power with the mean.
    """
    size = patches.shape[-1]
    window = np.outer(*[np.hanning(size + 1)[:-1]] * 2)
    luma = _ycbcr(patches)[:, 0]
    luma = luma - (luma * window).sum(axis=(1, 2), keepdims=True) / window.sum()
    power = np.abs(np.fft.fft2(luma * window)).astype(float) ** 2 / (window**2).sum()
    cycles = np.fft.fftfreq(size) * size
    ring = np.rint(np.hypot(cycles[:, None], cycles[None, :])).astype(int).ravel()
    total, count = np.bincount(ring, power.mean(axis=0).ravel()), np.bincount(ring)
    return (total / count)[1 : size // 2 + 1]


def spectrum_distance(of_set: np.ndarray, of_real: np.ndarray) -> float:
    """Root mean square difference of two results of `spectrum`, in dB; twice the power everywhere is 3 dB."""
    return float(np.sqrt(np.mean((10 * np.log10((of_set + _ROUNDING) / (of_real + _ROUNDING))) ** 2)))


def nearest_distances(patches: np.ndarray, real: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """RMS pixel distance of each patch to its nearest real patch; exactly 0 for a copy.

    Args:
        patches: uint8 `[n, 3, h, w]`.
        real: uint8 `[N, 3, h, w]`.
        own: For real patches, the index of each in `real`, int `[n]`, which its search skips. None: synthetic patches.

    Returns:
        float `[n]`; infinite if there is no other real patch.
    """
    pixels = patches.reshape(len(patches), -1).astype(float)  # doubles hold these sums of integers exactly
    squared = np.empty((len(patches), len(real)))
    for start in range(0, len(real), REFERENCE_PATCHES):
        others = real[start : start + REFERENCE_PATCHES].reshape(-1, pixels.shape[1]).astype(float)
        distances = (pixels**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * pixels @ others.T
        squared[:, start : start + len(others)] = distances
    if own is not None:
        squared[np.arange(len(own)), own] = np.inf
    return np.sqrt(squared.min(axis=1) / pixels.shape[1]) / 255


def coverage(patches: np.ndarray, real: np.ndarray) -> float:
    """Share of real patches with a patch of the set nearby: the coverage of Naeem et al. (ICML 2020, Eq. 4).

    Nearby means no farther than the `NEIGHBORS`-th nearest other real patch. Distances are between simple descriptors
    of color, contrast and detail by scale and direction, which ignore the position within the patch.

    Returns:
        In [0, 1]; 1 for the real patches themselves.
    """
    described = _describe(real)
    center, spread = described.mean(axis=0), described.std(axis=0) + 1 / 255
    of_real, of_set = ((values - center) / spread for values in (described, _describe(patches)))
    among = np.sort(cdist(of_real, of_real), axis=1)  # column 0 is the patch itself
    radius = among[:, min(NEIGHBORS, len(real) - 1)]
    return float(np.mean(cdist(of_real, of_set).min(axis=1) <= radius))


def _ycbcr(patches: np.ndarray) -> np.ndarray:
    return np.einsum("ij,njhw->nihw", _YCBCR, patches / 255)


def _neighborhoods(patches: np.ndarray, side: int) -> np.ndarray:
    """Random neighborhoods, float `[2048, 3 * side**2]`; the same places in patches of equal number and size."""
    rng = np.random.default_rng(0)
    views = np.lib.stride_tricks.sliding_window_view(patches, (side, side), axis=(2, 3))
    which, top, left = (rng.integers(views.shape[axis], size=_NEIGHBORHOODS) for axis in (0, 2, 3))
    return views[which, :, top, left].reshape(_NEIGHBORHOODS, -1) / 255


def _describe(patches: np.ndarray) -> np.ndarray:
    """Descriptors of patches, float `[n, 12]`: mean and deviation of Y, Cb, Cr; differences of Y across and down."""
    ycc = _ycbcr(patches)
    parts = [ycc.mean(axis=(2, 3)), ycc.std(axis=(2, 3))]
    luma = ycc[:, 0]
    for _ in range(3):
        differences = [np.abs(np.diff(luma, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
        parts.append(np.stack(differences, axis=1))
        height, width = (side // 2 * 2 for side in luma.shape[1:])
        even = luma[:, :height, :width]
        luma = (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4
    return np.concatenate(parts, axis=1)


class Quality:
    """Measures patches photograph by photograph and averages their figures.

    Distances are to the real patches of the same photograph. Each figure is a mean over the photographs, weighted by
    their patches. The ratio of chroma to luma is a ratio of such means, so that a flat sky does not dominate it.
    """

    def __init__(self) -> None:
        self._weights: list[int] = []
        self._rows: list[dict[str, Any]] = []
        self._nearest: list[np.ndarray] = []

    def add(self, lr: np.ndarray, hr: np.ndarray, real: np.ndarray, own: np.ndarray | None = None) -> None:
        """Add the patches of a photograph.

        Args:
            lr: uint8 `[n, 3, h, w]`.
            hr: uint8 `[n, 3, s*h, s*w]`, made by the teacher.
            real: uint8 `[N, 3, h, w]`, all real LR patches of the photograph.
            own: For real patches, the index of each in `real`, int `[n]`; None: synthetic patches.
        """
        sample = np.random.default_rng(0).permutation(len(real))[:REFERENCE_PATCHES]
        reference = real[np.sort(sample)]
        luma, chroma = high_frequency(lr)
        row = {
            "luma_hf": luma,
            "chroma_hf": chroma,
            "saturated": saturated(lr),
            "residual": teacher_residual(lr, hr),
            "color_distance": color_distance(lr, reference),
            "sliced_distance": sliced_distance(lr, reference),
            "coverage": coverage(lr, reference),
            "flat": float(is_one_color(lr).mean()),
            "flat_hr": float(is_wrongly_one_color(lr, hr).mean()),
            "spectrum": spectrum(lr),
            "real_spectrum": spectrum(reference),
        }
        self._rows.append(row)
        self._weights.append(len(lr))
        self._nearest.append(nearest_distances(lr, real, own))

    def figures(self) -> dict[str, float]:
        """The figures of all patches so far, by key.

        `nearest` (median RMS distance to the nearest real patch) and `copied` (share below `COPIED`) are missing if a
        photograph has no other real patch.
        """
        mean = self._means()
        found = {key: float(value) for key, value in mean.items() if key not in _INTERMEDIATE}
        # Rounding errors are not color noise, whatever their ratio.
        chroma = mean["chroma_hf"] if mean["chroma_hf"] > _ROUNDED_HF else 0.0
        found["chroma_over_luma"] = float(chroma / max(mean["luma_hf"], _ROUNDED_HF))
        found["spectrum_distance"] = spectrum_distance(mean["spectrum"], mean["real_spectrum"])
        nearest = np.concatenate(self._nearest)
        if np.isfinite(nearest).all():
            found["nearest"] = float(np.median(nearest))
            found["copied"] = float(np.mean(nearest < COPIED))
        return found

    def spectrum(self) -> list[float]:
        """The mean of `spectrum` over all patches so far."""
        return [float(power) for power in self._means()["spectrum"]]

    def _means(self) -> dict[str, Any]:
        keys = self._rows[0]
        return {key: np.average([row[key] for row in self._rows], axis=0, weights=self._weights) for key in keys}
