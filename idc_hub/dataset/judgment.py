"""The judgment of the quality gate: limits for each figure, relative to random real patches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from idc_hub.images.figures import REFERENCE_PATCHES

_SLACK = 1e-9  # a sum in another order must not fail


@dataclass(frozen=True)
class Figure:
    """A figure and its limits.

    Attributes:
        label: Its name in messages and tables.
        too_high: What a value above the upper limit means.
        too_low: What a value below the lower limit means.
        at_most: Upper limit as a multiple of the real patches' figure; None: no upper limit.
        at_least: Lower limit as a multiple of the real patches' figure; None: no lower limit.
        margin: Added to the upper limit.
        rounding: Largest difference from the real patches' figure that always passes: the ratio of two figures near 0
            is meaningless.
    """

    label: str
    too_high: str = ""
    too_low: str = ""
    at_most: float | None = None
    at_least: float | None = None
    margin: float = 0.0
    rounding: float = 0.0

    def limits(self, real: float) -> tuple[float | None, float | None]:
        """Lower and upper limit beside a real figure; None where there is no limit."""
        lower = None if self.at_least is None else self.at_least * real
        upper = None if self.at_most is None else self.at_most * real + self.margin
        if self.rounding:
            lower = None if lower is None else min(lower, real - self.rounding)
            upper = None if upper is None else max(upper, real + self.rounding)
        return lower, upper

    def passes(self, value: float, real: float) -> bool | None:
        """Whether a value passes beside that of real patches; None for a figure without limits. NaN and Inf fail."""
        if not (math.isfinite(value) and math.isfinite(real)):
            return False
        lower, upper = self.limits(real)
        if lower is None and upper is None:
            return None
        return (lower is None or value >= lower - _SLACK) and (upper is None or value <= upper + _SLACK)

    def sentence(self, value: float, real: float) -> str:
        """The warning about a value that fails."""
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
    # Random real patches cost nothing, so a condensation that ends farther away is useless. Equal sets are 1e-6 apart
    # because `cf_distance` guards its square root; float32 sums over 1,024 rows add sqrt(1024) * 2**-24 = 2e-6.
    "held_out": Figure(
        "held-out discrepancy",
        too_high="the patches are no closer to all real ones than random ones are",
        at_most=1,
        rounding=3e-6,
    ),
    # Sets with 3.5 to 4 times the natural ratio cost a student 0.3 dB and more; blurring only their chroma won a third
    # of that back. Single draws of random patches stay within 1.15 times their mean.
    "chroma_over_luma": Figure("chroma HF / luma HF", too_high="the patches carry color noise", at_most=1.5),
    # Sets without strong edges, which teach a student little, had 0.4 to 0.6 times the natural residual. Good sets have
    # up to 1.8 times; HR patches that are entirely black or white have 6 times and more. Rounding moves HR and the
    # enlargement by up to half a gray level each, so a difference of one level is meaningless.
    "residual": Figure(
        "99.5 % residual of the teacher",
        too_high="HR patches differ from their LR patches in content",
        too_low="strong edges are missing, and the teacher adds little detail",
        at_most=3,
        at_least=0.75,
        margin=0.1,
        rounding=1 / 255,
    ),
    # An optimizer can push values to black and white even if the photograph has neither.
    "saturated": Figure(
        "share of saturated values",
        too_high="the optimization ran into the bounds of the pixels",
        at_most=1,
        margin=0.02,
    ),
    # A patch of NaN becomes black. The margin allows for chance.
    "flat": Figure(
        "share of LR patches of a single color",
        too_high="patches are black or another single color, as a failed optimization leaves them",
        at_most=1,
        margin=0.02,
    ),
    # No working teacher makes such a patch, not even once.
    "flat_hr": Figure(
        "share of single-color HR patches that do not match their LR patches",
        too_high="the teacher failed on them",
        at_most=0,
    ),
    # Condensed sets, good and bad, are closer than random patches by both distances; one that is not has diverged from
    # its photographs. The margin allows for the chance in 2,048 neighborhoods; rounding moves a value by half a gray
    # level at most.
    "color_distance": Figure(
        "color distance",
        too_high="the patches have other colors than the photographs",
        at_most=1,
        rounding=0.5 / 255,
    ),
    "sliced_distance": Figure(
        "sliced distance of 7x7 pixels",
        too_high="small structures are distributed differently than in the photographs",
        at_most=1,
        margin=0.005,
    ),
    # Draws of random patches differ by 1 dB; visible blur or luma noise, by far more.
    "spectrum_distance": Figure(
        "distance of the spectrum (dB)",
        too_high="detail of some size is far too weak or too strong",
        at_most=1,
        margin=2,
    ),
    # Patches that look like nothing in the photographs cover nothing; equal patches cover no more than one of them.
    # A difference of a single real patch is meaningless.
    "coverage": Figure(
        "coverage",
        too_low="few real patches have a patch of the set nearby",
        at_least=0.5,
        rounding=1 / REFERENCE_PATCHES,
    ),
    "luma_hf": Figure("luma HF"),
    # Copies are no fault: a condensation may begin at real patches, and a selection consists of them.
    "nearest": Figure("RMS distance to the nearest real patch"),
    "copied": Figure("share of copied patches"),
}
"""All figures by key, in the order of the tables."""


def judge(of_set: Mapping[str, float], of_real: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Compare the figures of a set with those of random real patches.

    Args:
        of_set: Figures by the keys of `FIGURES`; missing ones are not judged.
        of_real: The same for each draw of random real patches.

    Returns:
        `passed`; `warnings`, a sentence for each figure that fails; and `figures`: for each `set`, `real` (mean of the
        draws), `real_range` (their minimum and maximum), `at_least` and `at_most` (None without such a limit) and
        `passed` (None without any limit). NaN and Inf fail, and are None in `figures`.
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
    """The figures of `judge` as rows of text: figure, the set, random real patches, limits, verdict."""
    rows = []
    for key, found in figures.items():
        of_set, of_real = ("not a number" if found[side] is None else f"{found[side]:.3g}" for side in ("set", "real"))
        limits = {"at least": found["at_least"], "at most": found["at_most"]}
        wanted = ", ".join(f"{side} {limit:.3g}" for side, limit in limits.items() if limit is not None)
        verdict = {True: "passed", False: "failed", None: ""}[found["passed"]]
        rows.append((FIGURES[key].label, of_set, of_real, wanted, verdict))
    return rows
