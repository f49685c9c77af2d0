"""Baselines: a part of the real patches instead of synthetic ones (paper section 4, appendix C.2).

Descriptors of patches go in, indices of the chosen ones come out, as int64 in any order. `select_in_groups` is the
protocol around them. Nothing here reads images but `texture`, which describes them for `dcsr`.
The greedy choice by characteristic functions works photograph by photograph: `RealSide.greedy_subset`.
"""

from collections.abc import Callable

import numpy as np
import torch
from skimage.feature import local_binary_pattern

from idc_hub.condensation.assignment import kmeans
from idc_hub.condensation.real_side import seed_of
from idc_hub.images.patches import luma, synthetic_counts

GROUPS = 20
"""Groups that the pool is shuffled into (appendix C.2)."""

CLUSTERS = 15
"""Clusters of `dcsr` (appendix C.2)."""

_PATTERNS = ((8, 1), (16, 2), (24, 3))


def select_in_groups(
    size: int, ratio: float, seed: int, choose: Callable[[np.ndarray, int, int], np.ndarray]
) -> np.ndarray:
    """Shuffle a pool into `GROUPS` groups, choose in each on its own, and put the choices together (appendix C.2).

    Args:
        size: Patches in the pool.
        ratio: Which part of them to choose.
        seed: Determines the groups, and what `choose` draws.
        choose: Given the members of a group, how many of them to choose and a seed: indices into the members.

    Returns:
        `floor(ratio * size)` different indices into the pool, rising.
    """
    groups = np.array_split(np.random.default_rng(seed).permutation(size), GROUPS)
    counts = synthetic_counts([len(members) for members in groups], ratio, 0)
    chosen = [
        members[choose(members, count, seed_of(seed, "group", number))]
        for number, (members, count) in enumerate(zip(groups, counts, strict=True))
        if count
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def random(size: int, count: int, seed: int) -> np.ndarray:
    """`count` of `size` patches, all alike likely."""
    return np.random.default_rng(seed).permutation(size)[:count]


def herding(features: np.ndarray, count: int) -> np.ndarray:
    """Herding (Welling 2009; appendix C.2): each choice brings the mean of the chosen nearest to the mean of all.

    Args:
        features: float `[N, d]`.
        count: How many to choose.
    """
    return _herd(features, count, np.argmin)


def herding_deepcore(features: np.ndarray, count: int) -> np.ndarray:
    """Herding as the released code of DeepCore has it, which takes the farthest patch (argmax) for the nearest.

    The paper says that it followed that code (appendix C.2), and its herding row is the worst in every table, as one
    would expect of this. It is here to reproduce that row; as a baseline take `herding`.

    Args:
        features: float `[N, d]`.
        count: How many to choose.
    """
    return _herd(features, count, np.argmax)


def _herd(features: np.ndarray, count: int, best: Callable[[np.ndarray], np.intp]) -> np.ndarray:
    features = features.astype(np.float64)
    mean, total = features.mean(0), np.zeros(features.shape[1])
    left = np.arange(len(features))
    chosen = np.empty(count, np.int64)
    for number in range(count):
        wanted = (number + 1) * mean - total
        place = int(best(np.square(features[left] - wanted).sum(1)))
        chosen[number] = left[place]
        total += features[left[place]]
        left = np.delete(left, place)
    return chosen


def k_center(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """K-center greedy (Sener & Savarese 2018; appendix C.2): a random start, then always the farthest patch.

    No patch is then farther from its nearest chosen one than twice the least that is possible.

    Args:
        features: float `[N, d]`, compared by Euclidean distance.
        count: How many to choose.
        seed: Determines the start.
    """
    features = features.astype(np.float64)
    nearest = np.full(len(features), np.inf)
    chosen = np.empty(count, np.int64)
    place = int(np.random.default_rng(seed).integers(len(features)))
    for number in range(count):
        chosen[number] = place
        nearest = np.minimum(nearest, np.square(features - features[place]).sum(1))
        nearest[place] = -1  # not again, not even where others lie at the same point
        place = int(nearest.argmax())
    return chosen


def dcsr(complexities: np.ndarray, textures: np.ndarray, count: int, seed: int) -> np.ndarray:
    """DCSR (Ding et al. 2023; appendix C.2): of complex patches, equally many of each of `CLUSTERS` kinds of texture.

    Patches below the average complexity are removed, the others clustered, and from each cluster equally many drawn.
    A cluster with too few gives all it has, and the other clusters give more. Where not enough patches are
    left to reach `count`, the most complex of those removed come back.

    Two things differ from the released code, which the paper's text does not follow either: there, patches below the
    *median* are removed, and selection works on HR. And the clusters are not those of the published method, whose
    texture network is not available: `texture` stands in for it.

    Args:
        complexities: float `[N]`, see `complexity`.
        textures: float `[N, d]`, see `texture`.
        count: How many to choose.
        seed: Determines clusters and draws.
    """
    by_complexity = np.argsort(-complexities, kind="stable")
    above = int((complexities >= complexities.mean()).sum())
    left = by_complexity[: max(above, count)]
    _, labels = kmeans(torch.from_numpy(textures[left]), CLUSTERS, seed)
    rng = np.random.default_rng(seed)
    clusters = [rng.permutation(left[labels.numpy() == label]) for label in rng.permutation(CLUSTERS)]
    shares = _equal_shares([len(cluster) for cluster in clusters], count)
    return np.concatenate([cluster[:share] for cluster, share in zip(clusters, shares, strict=True)])


def _equal_shares(sizes: list[int], total: int) -> list[int]:
    """Share `total` out over clusters, as equally as their sizes allow; the first ones get what cannot be divided."""
    shares = [0] * len(sizes)
    while rest := total - sum(shares):
        open_ = [number for number, size in enumerate(sizes) if shares[number] < size]
        for number in open_[:rest]:
            shares[number] += min(max(rest // len(open_), 1), sizes[number] - shares[number])
    return shares


def texture(patches: np.ndarray) -> np.ndarray:
    """How often each local binary pattern occurs: uniform, rotation invariant, at radii of 1, 2 and 3 pixels.

    The statistic of Ojala et al. (2002). A substitute: DCSR takes the 47 outputs of a texture network (Zhang et al.
    2017, trained on the 47 kinds of DTD), of which neither code nor weights are available.

    Args:
        patches: uint8 RGB `[n, 3, h, w]`.

    Returns:
        float64 `[n, 54]`: three histograms of 10, 18 and 26 patterns, each of which sums to 1.
    """
    histograms = [
        np.concatenate(
            [
                np.bincount(
                    local_binary_pattern(luma, points, radius, "uniform").astype(np.intp).ravel(), minlength=points + 2
                )
                for points, radius in _PATTERNS
            ]
        )
        / luma.size
        for luma in luma(patches).round().astype(np.uint8)
    ]
    return np.stack(histograms)
