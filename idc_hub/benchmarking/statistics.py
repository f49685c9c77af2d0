"""The statistics of a benchmark: spreads over seeds, paired differences, and the worth of a set in random patches."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import kendalltau
from scipy.stats import t as student_t

CONFIDENCE = 0.95


class Result(NamedTuple):
    """One single run on one test set; the columns of `ladder.csv`.

    Attributes:
        set: Name of the set that the student was trained on.
        hr: Name of its HR version.
        student: Name of the network.
        seed: The student's seed.
        ratio: Patches of the set divided by all real patches.
        testset: Name of the test set.
        psnr_rgb: Mean PSNR over its images in dB, RGB, with a border of `scale` pixels cropped.
        psnr_y: Mean PSNR of luma in dB, same border.
        ssim_rgb: Mean SSIM, RGB, same border.
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
    """Mean and sample standard deviation (n - 1); `deviation` is None for a single value."""

    mean: float
    deviation: float | None


class Worth(NamedTuple):
    """How many random patches one patch is worth; `bound` is "<" or ">" if the random curve does not reach that far."""

    factor: float
    bound: str


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of one or more values."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def paired_differences(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """`values - reference` for every seed that both have, in the order of the seeds."""
    return [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]


def beyond_spread(differences: Sequence[float]) -> bool:
    """Whether 0 is outside the 95 % confidence interval of the mean difference (paired Student's t).

    With two or three seeds, differences must agree closely. About one in twenty comparisons without a real difference
    passes by chance. False for fewer than two differences.
    """
    if len(differences) < 2:
        return False
    mean, deviation, count = fmean(differences), stdev(differences), len(differences)
    half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return abs(mean) > half_width


def worth(quality: float, patches: int, curve: Sequence[tuple[int, float]]) -> Worth | None:
    """How many random patches train as well as one patch of a set.

    Interpolates the curve linearly in the logarithm of the number of patches. If noise makes it cross the quality more
    than once, the first crossing counts.

    Args:
        quality: Quality of the set.
        patches: Number of patches of the set.
        curve: Number of patches and quality of random sets, by increasing number of patches.

    Returns:
        Number of random patches that reach the quality, divided by `patches`; a bound if the curve does not reach it;
        None if the curve has fewer than two points.
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
    """Mean of a metric over test sets, for each seed with results on all of them.

    Args:
        results: Results that differ only in seed and test set.
        metric: `psnr_rgb`, `psnr_y` or `ssim_rgb`.
        testsets: Names of the test sets to average over.
    """
    measured = {(result.seed, result.testset): getattr(result, metric) for result in results}
    return {
        seed: fmean(measured[seed, testset] for testset in testsets)
        for seed in sorted({result.seed for result in results})
        if all((seed, testset) in measured for testset in testsets)
    }


def rank_correlation(qualities: Mapping[str, float], reference: Mapping[str, float]) -> float | None:
    """Kendall's tau-b of two rankings of the same networks: 1 if equal, -1 if opposite, about 0 if unrelated.

    Args:
        qualities: Quality by network.
        reference: The same by the ranking to compare with; networks that only one has are left out.

    Returns:
        None if fewer than three networks are in both, or if all are equally good in one of them.
    """
    both = sorted(qualities.keys() & reference.keys())
    if len(both) < 3:
        return None
    tau = float(kendalltau([qualities[name] for name in both], [reference[name] for name in both]).statistic)
    return None if math.isnan(tau) else tau


def regret(qualities: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """What it costs to choose the best network of `qualities`: how far it is below the best one of `reference`.

    Args:
        qualities: Quality by network; at least one of them is in `reference`.
        reference: Quality by network, as it matters.
    """
    both = qualities.keys() & reference.keys()
    return max(reference[name] for name in both) - reference[max(both, key=lambda name: qualities[name])]


def worth_in_random(
    values: Mapping[int, float], patches: int, random: Mapping[int, Mapping[int, float]]
) -> Worth | None:
    """`worth` of a set against random sets, over the seeds of the set.

    Args:
        values: Quality of the set, by seed.
        patches: Number of patches of the set.
        random: Quality of the random sets, by number of patches, then seed. Those that lack a seed of `values` are
            left out.

    Returns:
        See `worth`; None without values.
    """
    if not values:
        return None
    curve = [
        (count, fmean(qualities[seed] for seed in values))
        for count, qualities in sorted(random.items())
        if values.keys() <= qualities.keys()
    ]
    return worth(fmean(values.values()), patches, curve)
