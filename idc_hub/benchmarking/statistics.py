"""The statistics of a benchmark: spreads over seeds, paired differences, and what a set is worth in random patches."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t as student_t

CONFIDENCE = 0.95


class Result(NamedTuple):
    """One single run on one test set; the columns of `ladder.csv`.

    Attributes:
        set: Name of the set that the student was trained on.
        hr: Name of its HR version.
        student: Name of the network.
        seed: The student's seed.
        ratio: Patches of the set per patch of the whole.
        testset: Name of the test set.
        psnr_rgb: Mean PSNR over its images in dB, RGB, border as wide as the scale.
        psnr_y: The same of luma.
        ssim_rgb: Mean SSIM, RGB, the same border.
    """

    set: str
    hr: str
    student: str
    seed: int
    ratio: float
    testset: str
    psnr_rgb: float
    psnr_y: float
    ssim_rgb: float


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) of a few values; `deviation` is None for a single one."""

    mean: float
    deviation: float | None


class Worth(NamedTuple):
    """How many random patches a patch is worth; `bound` is "<" or ">" where the random curve ends before."""

    factor: float
    bound: str


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of one or more values."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def paired_differences(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """`values - reference` for every seed that both have, in the order of the seeds."""
    return [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]


def beyond_spread(differences: Sequence[float]) -> bool:
    """Whether the seeds cannot explain a mean difference: 0 lies outside its 95 % confidence interval.

    Student's t over the paired differences, so that two or three seeds have to agree very well; about one in twenty
    comparisons without any difference is called beyond all the same.
    """
    if len(differences) < 2:
        return False
    mean, deviation, count = fmean(differences), stdev(differences), len(differences)
    half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return abs(mean) > half_width


def worth(quality: float, patches: int, curve: Sequence[tuple[int, float]]) -> Worth | None:
    """How many random patches train as well as one of a set's patches.

    The curve is joined linearly in the logarithm of its patches. Where noise makes it pass the quality more than
    once, the fewest patches count.

    Args:
        quality: The set's quality.
        patches: The set's patches.
        curve: Patches and quality of random sets, by increasing patches.

    Returns:
        Random patches of that quality divided by `patches`; a bound where the curve does not reach so far; None for
        a curve of fewer than two points.
    """
    if len(curve) < 2:
        return None
    counts, qualities = zip(*curve, strict=True)
    if quality < qualities[0]:
        return Worth(counts[0] / patches, "<")
    if quality > max(qualities):
        return Worth(counts[-1] / patches, ">")
    after = next(index for index, reached in enumerate(qualities) if reached >= quality)
    if after == 0:
        return Worth(counts[0] / patches, "")
    low, high = qualities[after - 1], qualities[after]
    share = (quality - low) / (high - low)
    logarithm = (1 - share) * math.log(counts[after - 1]) + share * math.log(counts[after])
    return Worth(math.exp(logarithm) / patches, "")


def by_seed(results: Sequence[Result], metric: str, testsets: Sequence[str]) -> dict[int, float]:
    """A metric's mean over test sets for each seed that has been measured on all of them.

    Args:
        results: Runs that differ in seed and test set alone.
        metric: `psnr_rgb`, `psnr_y` or `ssim_rgb`.
        testsets: Which test sets to average over.
    """
    measured = {(result.seed, result.testset): getattr(result, metric) for result in results}
    return {
        seed: fmean(measured[seed, testset] for testset in testsets)
        for seed in sorted({result.seed for result in results})
        if all((seed, testset) in measured for testset in testsets)
    }


def worth_in_random(
    values: Mapping[int, float], patches: int, random: Mapping[int, Mapping[int, float]]
) -> Worth | None:
    """`worth` of a set against random sets, with the seeds that the set and a random set both have.

    Args:
        values: Seed to quality of the set.
        patches: The set's patches.
        random: Patches of each random set, to seed to quality. Sets that lack a seed of `values` are left out.
    """
    if not values:
        return None
    curve = [
        (count, fmean(qualities[seed] for seed in values))
        for count, qualities in sorted(random.items())
        if values.keys() <= qualities.keys()
    ]
    return worth(fmean(values.values()), patches, curve)
