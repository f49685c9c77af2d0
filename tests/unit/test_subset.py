"""Greedy choice and swaps on characteristic functions, against exhaustive search."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from idc_hub.condensation.subset import greedy_subset
from idc_hub.recipe import Loss

ALPHA, BETA = 0.2, 0.8


def problem(seed: int, *, draws: int = 2, size: int = 9, frequencies: int = 12) -> tuple[Tensor, Tensor]:
    """Functions of patches that differ as patches of a photograph do, and the mean of all."""
    rng = np.random.default_rng(seed)
    angles = rng.normal(size=(size, 40, 1)) * rng.uniform(0.3, 2, size=(size, 1, 1)) + rng.normal(size=(size, 1, 1))
    functions = np.exp(1j * angles * rng.normal(size=(draws, 1, 1, frequencies))).mean(2)
    return torch.from_numpy(functions), torch.from_numpy(functions.mean(1))


def distance(functions: Tensor, targets: Tensor, chosen: list[int]) -> float:
    """Equation 3 as it is printed, in polar coordinates, mean over draws and frequencies."""
    total = []
    for draw, target in zip(functions.numpy(), targets.numpy(), strict=True):
        mean = sum(draw[patch] for patch in chosen) / len(chosen)
        amplitude = (abs(target) - abs(mean)) ** 2
        phase = 2 * abs(target) * abs(mean) * (1 - np.cos(np.angle(target) - np.angle(mean)))
        total.append(np.sqrt(ALPHA * amplitude + BETA * phase).mean())
    return float(np.mean(total))


def choose(functions: Tensor, targets: Tensor, count: int) -> list[int]:
    return greedy_subset(functions, targets, count, Loss(alpha=ALPHA, beta=BETA))


@pytest.mark.parametrize("seed", range(4))
def test_each_greedy_step_takes_the_best_of_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idc_hub.condensation.subset.MAX_ROUNDS", 0)
    functions, targets = problem(seed)
    expected: list[int] = []
    for _ in range(5):
        left = [patch for patch in range(9) if patch not in expected]
        expected.append(min(left, key=lambda patch: distance(functions, targets, [*expected, patch])))
    assert choose(functions, targets, 5) == expected


@pytest.mark.parametrize("seed", range(6))
def test_it_ends_where_no_single_swap_lowers_the_distance(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    functions, targets = problem(seed, size=14)
    chosen = choose(functions, targets, 4)
    assert len(set(chosen)) == 4
    reached = distance(functions, targets, chosen)
    for place in range(4):
        for other in set(range(14)) - set(chosen):
            swapped = [*chosen[:place], other, *chosen[place + 1 :]]
            assert distance(functions, targets, swapped) >= reached * (1 - 1e-5)
    monkeypatch.setattr("idc_hub.condensation.subset.MAX_ROUNDS", 0)
    assert reached <= distance(functions, targets, choose(functions, targets, 4))


def test_pairs_are_nearly_as_good_as_the_best_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios: dict[str, list[float]] = {"greedy": [], "swapped": [], "any": []}
    for seed in range(20):
        functions, targets = problem(seed, size=8)
        measured = [distance(functions, targets, list(pair)) for pair in combinations(range(8), 2)]
        for name, rounds in (("greedy", 0), ("swapped", 20)):
            monkeypatch.setattr("idc_hub.condensation.subset.MAX_ROUNDS", rounds)
            ratios[name].append(distance(functions, targets, choose(functions, targets, 2)) / min(measured))
        ratios["any"].append(float(np.mean(measured)) / min(measured))
    assert min(ratios["swapped"]) == pytest.approx(1)
    assert 1 < np.mean(ratios["swapped"]) < 1.2 < np.mean(ratios["greedy"]) < 0.5 * np.mean(ratios["any"])


def test_a_pair_that_greed_cannot_find_is_found_by_swaps() -> None:
    # On one frequency: the target is 0.6, nearest alone is 0.5; but 0.3 and 0.9 together are exact.
    functions = torch.tensor([[0.5, 0.3, 0.9, 0.1]], dtype=torch.complex128)[..., None]
    targets = torch.tensor([[0.6]], dtype=torch.complex128)
    assert choose(functions, targets, 1) == [0]
    assert sorted(choose(functions, targets, 2)) == [1, 2]


def test_more_than_there_are_means_that_all_are_taken_equally_often() -> None:
    functions, targets = problem(0)
    assert sorted(choose(functions, targets, 9)) == list(range(9))
    counts = np.bincount(choose(functions, targets, 21), minlength=9)
    assert sorted(counts.tolist()) == [2] * 6 + [3] * 3
    # Two full copies are the target itself; the three left over are the best in the presence of these.
    left = tuple(np.flatnonzero(counts == 3))
    measured = {
        three: distance(functions, targets, [*range(9), *range(9), *three]) for three in combinations(range(9), 3)
    }
    assert measured[left] <= sorted(measured.values())[3]
