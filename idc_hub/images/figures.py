"""Figures that show a bad condensed set at a glance, and the gate that holds them to those of real patches.

A low loss alone is no evidence of good patches: those that failed in this project's pilot were close to the real ones
in the measure that was optimized, and had 3 to 4 times the natural ratio of chroma to luma detail and half the
natural teacher residual. Every figure is therefore taken on the set and, in the same way, on as many random real
patches of the same photographs through the same teacher; what is natural is what those have.

All patches are uint8 RGB `[n, 3, h, w]`; all figures are for pixels in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from idc_hub.images.patches import is_one_color, is_wrongly_one_color
from idc_hub.images.resize import imresize

COPIED = 0.02
"""RMS distance (5 gray levels) below which a patch counts as a copy of a real one."""
NEIGHBOURS = 5
"""The `k` of the coverage, as Naeem et al. recommend."""
REFERENCE_PATCHES = 256
"""Real patches of a photograph that distributions are taken from: a seeded sample, where there are more."""

_NEIGHBOURHOODS = 2048
# Full-range BT.601: what JPEG calls Y, Cb and Cr.
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_ROUNDING = 1 / 255**2 / 12  # variance of rounding to 8 bits; less power than that says nothing
_SLACK = 1e-9  # a sum in another order is no failure
_ROUNDED_HF = 6e-4
"""Mean checkerboard response, of Y as of Cb and Cr, that rounding to 8 bits makes by itself.

The response has the variance of one pixel's error, that is 1/12 of a squared gray level in each of R, G and B times
the squares of the weights of Y, .45, or of Cb and Cr, .41 on average; its mean absolute value is sqrt(2 / pi) of the
root: 6.0e-4 for Y, 5.8e-4 for Cb and Cr.
"""


def high_frequency(patches: np.ndarray) -> tuple[float, float]:
    """Energy at the finest scale, in luma and in chroma.

    Returns:
        Mean absolute 2x2 checkerboard response `|a - b - c + d| / 2` of Y, and the mean of those of Cb and Cr. The
        natural ratio of chroma to luma is about 0.26 on photographs.
    """
    ycc = _ycbcr(patches)
    checker = np.abs(ycc[..., :-1, :-1] - ycc[..., :-1, 1:] - ycc[..., 1:, :-1] + ycc[..., 1:, 1:]) / 2
    luma, blue, red = checker.mean(axis=(0, 2, 3))
    return float(luma), float((blue + red) / 2)


def saturated(patches: np.ndarray) -> float:
    """Share of values that are 0 or 255: what an optimization without bounds leaves when it is clamped."""
    return float(np.mean((patches == 0) | (patches == 255)))


def teacher_residual(lr: np.ndarray, hr: np.ndarray, *, quantile: float = 0.995) -> float:
    """How strong the strongest detail is that HR has and a bicubic enlargement of LR has not.

    Args:
        lr: uint8 `[n, 3, h, w]`.
        hr: uint8 `[n, 3, s*h, s*w]`.
        quantile: Which quantile of the absolute luma difference; the maximum would be one pixel's accident.

    Returns:
        The quantile; about 0.20 on photographs with their teacher's HR.
    """
    scale = hr.shape[-1] // lr.shape[-1]
    luma = np.empty((len(hr), *hr.shape[2:]), np.float32)
    for residual, low, high in zip(luma, lr, hr, strict=True):
        enlarged = imresize(low.transpose(1, 2, 0), scale).transpose(2, 0, 1)
        residual[:] = np.abs(np.tensordot(_YCBCR[0], high.astype(float) - enlarged, axes=1)) / 255
    return float(np.quantile(luma, quantile))


def color_distance(patches: np.ndarray, real: np.ndarray) -> float:
    """Wasserstein-1 distance between the pixel values of two sets, mean over R, G and B; 0 where they agree."""
    shares = [
        np.stack([np.bincount(values[:, channel].ravel(), minlength=256) for channel in range(3)]) / values[:, 0].size
        for values in (patches, real)
    ]
    return float(np.abs(np.cumsum(shares[0] - shares[1], axis=1)).sum(axis=1).mean() / 255)


def sliced_distance(patches: np.ndarray, real: np.ndarray, *, side: int = 7) -> float:
    """Sliced Wasserstein-2 distance between the pixel neighborhoods of two sets (Rabin et al. 2011).

    2,048 neighborhoods of each set (seeded) are projected on a random orthonormal basis (seeded); along each direction
    the sorted projections are compared. A constant added to all pixels is exactly that far away.

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
    ours, theirs = (np.sort(_neighborhoods(values, side) @ directions, axis=0) for values in (patches, real))
    return float(np.sqrt(np.mean((ours - theirs) ** 2)))


def spectrum(patches: np.ndarray) -> np.ndarray:
    """Radially averaged power spectrum of luma, under a Hann window, without the mean.

    Returns:
        float `[h // 2]`: power at 1, 2, ... h // 2 cycles per patch. White noise has its variance at every frequency
        (but at the first, some of which goes with the mean).
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


def spectrum_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Root mean square difference of two spectra by `spectrum`, in dB; 3 dB everywhere is a factor of 2 in power."""
    return float(np.sqrt(np.mean((10 * np.log10((ours + _ROUNDING) / (theirs + _ROUNDING))) ** 2)))


def nearest_distances(patches: np.ndarray, real: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """RMS pixel distance of each patch to its nearest real patch; exactly 0 for a copy.

    Args:
        patches: uint8 `[n, 3, h, w]`.
        real: uint8 `[N, 3, h, w]`.
        own: Which real patches `patches` are, int `[n]`: those are left out. None: they are synthetic.

    Returns:
        float `[n]`; infinite where no other real patch is left.
    """
    ours = patches.reshape(len(patches), -1).astype(float)  # doubles hold these sums of integers exactly
    squared = np.empty((len(patches), len(real)))
    for start in range(0, len(real), REFERENCE_PATCHES):
        theirs = real[start : start + REFERENCE_PATCHES].reshape(-1, ours.shape[1]).astype(float)
        products = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1) - 2 * ours @ theirs.T
        squared[:, start : start + len(theirs)] = products
    if own is not None:
        squared[np.arange(len(own)), own] = np.inf
    return np.sqrt(squared.min(axis=1) / ours.shape[1]) / 255


def coverage(patches: np.ndarray, real: np.ndarray) -> float:
    """Share of the real patches that have a patch of the set nearby: the coverage of Naeem et al. (ICML 2020, Eq. 4).

    Nearby: not farther than the `NEIGHBOURS`-th nearest other real patch. Distances are between simple descriptors of
    color, contrast and detail by scale and direction, which do not depend on where in the patch something is.

    Returns:
        In [0, 1]; 1 for the real patches themselves.
    """
    described = _describe(real)
    center, spread = described.mean(axis=0), described.std(axis=0) + 1 / 255
    theirs, ours = ((values - center) / spread for values in (described, _describe(patches)))
    among = np.sort(cdist(theirs, theirs), axis=1)  # the first is a patch itself
    radius = among[:, min(NEIGHBOURS, len(real) - 1)]
    return float(np.mean(cdist(theirs, ours).min(axis=1) <= radius))


def _ycbcr(patches: np.ndarray) -> np.ndarray:
    return np.einsum("ij,njhw->nihw", _YCBCR, patches / 255)


def _neighborhoods(patches: np.ndarray, side: int) -> np.ndarray:
    """Random neighborhoods, float `[2048, 3 * side**2]`; the same places in patches of equal number and size."""
    rng = np.random.default_rng(0)
    views = np.lib.stride_tricks.sliding_window_view(patches, (side, side), axis=(2, 3))
    which, top, left = (rng.integers(views.shape[axis], size=_NEIGHBOURHOODS) for axis in (0, 2, 3))
    return views[which, :, top, left].reshape(_NEIGHBOURHOODS, -1) / 255


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
    """Collects patches photograph by photograph and takes their figures.

    Distances are to the photograph's own real patches. All figures are means over the photographs weighted by their
    patches; the ratio of chroma to luma is one of means, so that a flat sky does not decide it.
    """

    def __init__(self) -> None:
        self._weights: list[int] = []
        self._rows: list[dict[str, Any]] = []
        self._nearest: list[np.ndarray] = []

    def add(self, lr: np.ndarray, hr: np.ndarray, real: np.ndarray, own: np.ndarray | None = None) -> None:
        """Add the patches of a photograph.

        Args:
            lr: uint8 `[n, 3, h, w]`.
            hr: uint8 `[n, 3, s*h, s*w]`, by the teacher.
            real: uint8 `[N, 3, h, w]`, all real LR patches of the photograph.
            own: Which of them `lr` are, int `[n]`; None: they are synthetic.
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
        """The figures of all that was added, by the keys of `FIGURES`; `held_out` is not among them."""
        mean = self._means()
        found = {key: float(mean[key]) for key in FIGURES.keys() & mean.keys()}
        # A ratio of what rounding makes is no color noise.
        chroma = mean["chroma_hf"] if mean["chroma_hf"] > _ROUNDED_HF else 0.0
        found["chroma_over_luma"] = float(chroma / max(mean["luma_hf"], _ROUNDED_HF))
        found["spectrum_distance"] = spectrum_distance(mean["spectrum"], mean["real_spectrum"])
        nearest = np.concatenate(self._nearest)
        if np.isfinite(nearest).all():
            found["nearest"] = float(np.median(nearest))
            found["copied"] = float(np.mean(nearest < COPIED))
        return found

    def spectrum(self) -> list[float]:
        """The mean power spectrum of all that was added, as `spectrum` gives it."""
        return [float(power) for power in self._means()["spectrum"]]

    def _means(self) -> dict[str, Any]:
        keys = self._rows[0]
        return {key: np.average([row[key] for row in self._rows], axis=0, weights=self._weights) for key in keys}


@dataclass(frozen=True)
class Figure:
    """What a figure is held to.

    Attributes:
        label: What messages and tables call it.
        too_high: What it means that the figure is above its upper limit.
        too_low: What it means that it is below its lower limit.
        at_most: Greatest multiple of the real patches' figure that passes; None: no upper limit.
        at_least: Smallest multiple that passes; None: no lower limit.
        margin: Added to the upper limit.
        rounding: A difference from the real patches' figure that is no larger is rounding, and passes: a ratio of two
            figures near 0 says nothing.
    """

    label: str
    too_high: str = ""
    too_low: str = ""
    at_most: float | None = None
    at_least: float | None = None
    margin: float = 0.0
    rounding: float = 0.0

    def limits(self, real: float) -> tuple[float | None, float | None]:
        """The values that the figure must not fall below and not pass; None where there is no such limit."""
        lower = None if self.at_least is None else self.at_least * real
        upper = None if self.at_most is None else self.at_most * real + self.margin
        if self.rounding:
            lower = None if lower is None else min(lower, real - self.rounding)
            upper = None if upper is None else max(upper, real + self.rounding)
        return lower, upper

    def passes(self, value: float, real: float) -> bool | None:
        """Whether a value passes beside that of real patches; None where it is told and not judged.

        What is NaN or Inf never passes.
        """
        if not (math.isfinite(value) and math.isfinite(real)):
            return False
        lower, upper = self.limits(real)
        if lower is None and upper is None:
            return None
        return (lower is None or value >= lower - _SLACK) and (upper is None or value <= upper + _SLACK)

    def sentence(self, value: float, real: float) -> str:
        """What to say of a value that fails."""
        if not (math.isfinite(value) and math.isfinite(real)):
            whose = "that of random real patches" if math.isfinite(value) else "it"
            return f"{self.label} cannot be judged: {whose} is not a finite number"
        natural = (
            f"{value / real:.2g} times that of random real patches ({real:.2g})"
            if real
            else "random real patches have 0"
        )
        upper = self.limits(real)[1]
        meaning = self.too_high if upper is not None and value > upper else self.too_low
        return f"{self.label} is {value:.2g}, {natural}: {meaning}"


FIGURES = {
    # Random real patches are free: a condensation that ends farther away has failed at its own aim. Equal sets are 1e-6
    # apart, where `cf_distance` guards its square root; sums over 1,024 rows in float32 add sqrt(1024) * 2**-24 = 2e-6.
    "held_out": Figure(
        "held-out discrepancy",
        too_high="the patches are no closer to all real ones than random ones are",
        at_most=1,
        rounding=3e-6,
    ),
    # The pilot's failed sets had 3.5 to 4 times the natural ratio and cost a student 0.3 dB and more; a third of that
    # came back when only their chroma was blurred. Single draws of random patches stay within 1.15 times their mean.
    "chroma_over_luma": Figure("chroma HF / luma HF", too_high="the patches carry color noise", at_most=1.5),
    # The pilot's failed sets had 0.4 to 0.6 of the natural residual: no edges for the teacher, easy tasks for students.
    # Good sets, which have edges, go up to 1.8 times; HR that is black or white all over has 6 times and more. HR and
    # the enlargement are rounded to gray levels: half a level each, so that one level says nothing.
    "residual": Figure(
        "99.5 % residual of the teacher",
        too_high="HR patches show something else than their LR patches",
        too_low="strong edges are missing, the teacher adds little to them",
        at_most=3,
        at_least=0.75,
        margin=0.1,
        rounding=1 / 255,
    ),
    # Values pressed against black and white are what an optimizer does with a photograph that has none.
    "saturated": Figure(
        "share of saturated values",
        too_high="the optimization ran into the bounds of the pixels",
        at_most=1,
        margin=0.02,
    ),
    # NaN in a patch becomes black; a photograph without any flat patch gives none. As many are left to chance as above.
    "flat": Figure(
        "share of LR patches of one color",
        too_high="patches are black or another single color, as a failed optimization leaves them",
        at_most=1,
        margin=0.02,
    ),
    # Of no teacher and no photograph: one such patch is one too many.
    "flat_hr": Figure(
        "share of HR patches of one color that their LR patches are not",
        too_high="the teacher failed on them",
        at_most=0,
    ),
    # Both distances were smaller than those of random patches in all of the pilot's sets, good and bad: a set that
    # does not get there has gone astray. The margin is what 2,048 neighborhoods leave to chance; rounding moves a
    # value by half a gray level at most.
    "color_distance": Figure(
        "color distance",
        too_high="the patches have other colors than their photographs",
        at_most=1,
        rounding=0.5 / 255,
    ),
    "sliced_distance": Figure(
        "sliced distance of 7x7 pixels",
        too_high="small structures are distributed otherwise than in their photographs",
        at_most=1,
        margin=0.005,
    ),
    # Draws of random patches differ by 1 dB, blur or luma noise that can be seen by far more.
    "spectrum_distance": Figure(
        "distance of the spectrum (dB)",
        too_high="detail of some size is far too weak or too strong",
        at_most=1,
        margin=2,
    ),
    # Patches that look like nothing in the photographs cover none; equal ones cover what one covers. It is a share of
    # real patches and so 1 at most; one of them more or less says nothing.
    "coverage": Figure(
        "coverage",
        too_low="few real patches have one of the set near them",
        at_least=0.5,
        rounding=1 / REFERENCE_PATCHES,
    ),
    "luma_hf": Figure("luma HF"),
    # How much is copied is no fault: a condensation may begin at real patches, and a selection consists of them.
    "nearest": Figure("RMS distance to the nearest real patch"),
    "copied": Figure("share of copied patches"),
}
"""What is measured, in the order of the tables, and what each figure is held to."""


def judge(of_set: Mapping[str, float], of_real: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The gate: the figures of a set beside those of random real patches.

    Args:
        of_set: Figures by the keys of `FIGURES`; those that are missing are left out.
        of_real: The same of each draw of random real patches.

    Returns:
        `passed`; `warnings`, a sentence for each figure that fails; `figures`: for each `set`, `real` (mean of the
        draws), `real_range` (their least and greatest), `at_least` and `at_most` (None where there is no such limit)
        and `passed` (None where it is not judged). What is NaN or Inf fails, and is None in `figures`.
    """
    figures: dict[str, dict[str, Any]] = {}
    warnings = []
    for key, figure in FIGURES.items():
        draws = [draw[key] for draw in of_real if key in draw]
        if key not in of_set or not draws:
            continue
        value, real = of_set[key], float(np.mean(draws))
        passed = figure.passes(value, real)
        lower, upper = figure.limits(real)
        numbers = {"set": value, "real": real, "at_least": lower, "at_most": upper}
        figures[key] = {name: _if_finite(number) for name, number in numbers.items()}
        figures[key] |= {"real_range": [_if_finite(bound(draws)) for bound in (min, max)], "passed": passed}
        if passed is False:
            warnings.append(figure.sentence(value, real))
    return {"passed": not warnings, "warnings": warnings, "figures": figures}


def _if_finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def table(figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """The figures of `judge` as rows of words: figure, the set, random real patches, what is wanted, the verdict."""
    rows = []
    for key, found in figures.items():
        ours, theirs = ("not a number" if found[side] is None else f"{found[side]:.3g}" for side in ("set", "real"))
        limits = {"at least": found["at_least"], "at most": found["at_most"]}
        wanted = ", ".join(f"{side} {limit:.3g}" for side, limit in limits.items() if limit is not None)
        verdict = {True: "passed", False: "failed", None: ""}[found["passed"]]
        rows.append((FIGURES[key].label, ours, theirs, wanted, verdict))
    return rows
