"""Baselines: methods that choose real patches (paper section 4, appendix C.2, and two more).

Each method takes descriptors of patches and returns the indices of the chosen ones, int64 `[count]`, in any order.
`select_in_groups` applies a method as the paper does; `hardest` chooses from the whole pool. `texture` computes
descriptors for `dcsr`, `passes` those of the method filtered, which draws at random from the patches that pass. The
method cf-greedy chooses within each photograph and is `RealSide.greedy_subset`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from skimage.feature import local_binary_pattern

from idc_hub.condensation.assignment import kmeans
from idc_hub.condensation.real_side import seed_of
from idc_hub.images import defects
from idc_hub.images.patches import Place, luma, synthetic_counts

if TYPE_CHECKING:
    from idc_hub.recipe import SelectionSettings

GROUPS = 20
"""Number of groups that the pool is split into (appendix C.2)."""

CLUSTERS = 15
"""Number of clusters of `dcsr` (appendix C.2)."""

_PATTERNS = ((8, 1), (16, 2), (24, 3))
"""(points, radius in pixels) of the local binary patterns of `texture`."""


def select_in_groups(
    size: int, ratio: float | Fraction, seed: int, choose: Callable[[np.ndarray, int, int], np.ndarray]
) -> np.ndarray:
    """Shuffle a pool, split it into `GROUPS` groups, choose in each of them, and join the choices (appendix C.2).

    Args:
        size: Number of patches in the pool.
        ratio: Fraction of them to choose, in [0, 1].
        seed: Seed of the groups and of the random draws of `choose`.
        choose: Called with the members of a group (indices into the pool), the number of them to choose, and a seed;
            returns indices into the members.

    Returns:
        int64 `[floor(ratio * size)]`: distinct indices into the pool, ascending.
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
    """`count` distinct indices below `size`, uniformly at random."""
    return np.random.default_rng(seed).permutation(size)[:count]


def herding(features: np.ndarray, count: int) -> np.ndarray:
    """Herding (Welling 2009; appendix C.2): each choice brings the mean of the chosen closest to the mean of all.

    Args:
        features: float `[N, d]`.
        count: Number of patches to choose.
    """
    return _herd(features, count, np.argmin)


def herding_deepcore(features: np.ndarray, count: int) -> np.ndarray:
    """Herding as in the released code of DeepCore, which takes the farthest patch (argmax) instead of the nearest.

    The paper follows that code (appendix C.2), and its herding row is the worst of every table. Use this method to
    reproduce that row, and `herding` as a baseline.

    Args:
        features: float `[N, d]`.
        count: Number of patches to choose.
    """
    return _herd(features, count, np.argmax)


def _herd(features: np.ndarray, count: int, best: Callable[[np.ndarray], np.intp]) -> np.ndarray:
    features = features.astype(np.float64)
    mean, total = features.mean(0), np.zeros(features.shape[1])
    left = np.arange(len(features))
    chosen = np.empty(count, np.int64)
    for number in range(count):
        ideal = (number + 1) * mean - total  # the feature that would make both means equal
        position = int(best(np.square(features[left] - ideal).sum(1)))
        chosen[number] = left[position]
        total += features[left[position]]
        left = np.delete(left, position)
    return chosen


def k_center(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """K-center greedy (Sener & Savarese 2018; appendix C.2): start at random, then always take the farthest patch.

    The largest distance of a patch to its nearest chosen one is at most twice the optimum.

    Args:
        features: float `[N, d]`, compared by Euclidean distance.
        count: Number of patches to choose.
        seed: Seed of the first choice.
    """
    features = features.astype(np.float64)
    nearest = np.full(len(features), np.inf)
    chosen = np.empty(count, np.int64)
    index = int(np.random.default_rng(seed).integers(len(features)))
    for number in range(count):
        chosen[number] = index
        nearest = np.minimum(nearest, np.square(features - features[index]).sum(1))
        nearest[index] = -1  # never chosen again, even if all other patches have the same features
        index = int(nearest.argmax())
    return chosen


def dcsr(complexities: np.ndarray, textures: np.ndarray, count: int, seed: int) -> np.ndarray:
    """DCSR (Ding et al. 2023; appendix C.2): complex patches, equally many from each of `CLUSTERS` texture clusters.

    Removes patches of less than average complexity, clusters the others, and draws equally many from each cluster. A
    cluster that is too small gives all its patches, and the others give more. If fewer than `count` patches are left,
    the most complex of the removed ones are used too.

    The released code differs from the paper's text, which is followed here: it removes patches below the *median*
    complexity and selects on HR. The texture network of the published method is not available; `texture` replaces it,
    so the clusters differ.

    Args:
        complexities: float `[N]`, see `complexity`.
        textures: float `[N, d]`, see `texture`.
        count: Number of patches to choose.
        seed: Seed of the clustering and of the draws.
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
    """Split `total` among clusters as equally as their sizes allow; the first clusters get the remainder."""
    shares = [0] * len(sizes)
    while rest := total - sum(shares):
        open_ = [number for number, size in enumerate(sizes) if shares[number] < size]
        for number in open_[:rest]:
            shares[number] += min(max(rest // len(open_), 1), sizes[number] - shares[number])
    return shares


def hardest(
    errors: np.ndarray,
    places: Sequence[tuple[Hashable, int, int]],
    count: int,
    *,
    drop_top: float,
    distance: float,
) -> np.ndarray:
    """The patches that upscaling gets most wrong, without the very hardest, and apart from one another.

    SamplingAug (Wang et al., arXiv 2111.15185) ranks patches by the PSNR of bicubic upscaling and trains on the worst
    10 %, spread out. Moser et al. (arXiv 2403.17083) rank by the error of a small network and leave out the hardest
    5 %.

    Args:
        errors: float `[N]`.
        places: Image, top and left of each patch, in LR pixels.
        count: Number of patches to choose, at most `N - floor(drop_top * N)`.
        drop_top: Fraction of all patches, the hardest ones, to leave out.
        distance: Least distance of two chosen patches of an image, down or across, in LR pixels. Where it leaves fewer
            than `count`, those that were too close follow, the hardest first.
    """
    order = np.argsort(-errors, kind="stable")[synthetic_counts([len(errors)], drop_top, 0)[0] :]
    chosen: list[int] = []
    close: list[int] = []
    taken: dict[Hashable, np.ndarray] = {}
    for index in order.tolist():
        image, *place = places[index]
        others = taken.get(image, np.empty((0, 2)))
        if (np.abs(others - place).max(axis=1) < distance).any():
            close.append(index)
            continue
        taken[image] = np.vstack([others, place])
        chosen.append(index)
        if len(chosen) == count:
            break
    return np.array((chosen + close)[:count], np.int64)


def passes(hr: np.ndarray, places: Sequence[Place], scale: int, limits: SelectionSettings) -> np.ndarray:
    """Which patches have no technical defect in their HR, by the measures of `images.defects`.

    Practitioners filter HR tiles of 512 x 512 like this (BHI, traiNNer-redux). HR patches are smaller, so that their
    measures scatter more.

    Args:
        hr: uint8 `[n, 3, h, w]`, at least 40 x 40.
        places: Their places: of a photograph that was not resized, the blocks of JPEG begin at multiples of 8 pixels.
        scale: Super-resolution scale.
        limits: The limits.

    Returns:
        bool `[n]`.
    """
    gray = luma(hr)
    starts = [(-place.top * scale % 8, -place.left * scale % 8) for place in places]
    blocks = [defects.blockiness(image[None, top:, left:])[0] for image, (top, left) in zip(gray, starts, strict=True)]
    sharpness = defects.sharpness(gray)
    return (
        (np.array(blocks) <= limits.max_blockiness)
        & (defects.entropy(gray) >= limits.min_entropy)
        & (defects.contrast(gray) >= limits.min_contrast)
        & (sharpness >= limits.min_sharpness)
        & (sharpness <= limits.max_sharpness)
        & (defects.aliasing(gray) <= limits.max_aliasing)
    )


def texture(patches: np.ndarray) -> np.ndarray:
    """Histograms of local binary patterns: uniform and rotation invariant, at radii of 1, 2 and 3 pixels.

    The statistic of Ojala et al. (2002). DCSR itself uses the 47 outputs of a texture network (Zhang et al. 2017,
    trained on the 47 classes of DTD), whose code and weights are not available.

    Args:
        patches: uint8 RGB `[n, 3, h, w]`.

    Returns:
        float64 `[n, 54]`: three histograms of 10, 18 and 26 patterns; each sums to 1.
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
