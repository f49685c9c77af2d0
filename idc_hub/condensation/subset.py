"""Choose real patches whose joint characteristic function is close to that of all of them: greedily, then by swaps.

The paper has no such method. It minimizes the same instance distance (Eq. 6) as the optimization, but can only choose
among real patches. It is the baseline `idc select cf-greedy` and a starting point (`optimizer.initial: cf-greedy`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.discrepancy import set_distance

if TYPE_CHECKING:
    from idc_hub.recipe import Loss

MAX_ROUNDS = 20
"""Upper bound on the rounds of swaps over all places. On photographs three to six rounds suffice."""

_TOLERANCE = 1e-6
"""Relative decrease of the distance that a swap must reach; without it rounding could swap back and forth forever."""


def greedy_subset(functions: Tensor, targets: Tensor, count: int, loss: Loss) -> list[int]:
    """Choose patches one at a time, then swap single patches while that lowers the mean distance over the draws.

    No patch is chosen twice unless `count` exceeds their number. Then every patch is taken equally often, and only
    the remainder is chosen.

    Args:
        functions: `[draws, N, T]`, the characteristic function (or the mean sample) of each patch alone.
        targets: `[draws, T]`, what the mean over the chosen patches should be close to.
        count: Patches to choose, at least 1.
        loss: The recipe's loss, which defines the distance.

    Returns:
        `count` indices of patches. If the last round changed nothing, no single swap lowers the distance.
    """
    size = functions.shape[1]
    copies, left = divmod(count, size)
    everything = functions.sum(1) * copies

    def distances(others: list[int]) -> Tensor:
        """Mean distance over the draws if each patch joined `others`: `[N]`, infinite for the others themselves."""
        total = everything + functions[:, others].sum(1)
        mean = (total[:, None] + functions) / (copies * size + len(others) + 1)
        found = set_distance(targets[:, None], mean, loss).mean(0)
        found[others] = torch.inf
        return found

    chosen: list[int] = []
    while len(chosen) < left:
        chosen.append(int(distances(chosen).argmin()))
    for _ in range(MAX_ROUNDS):
        before = list(chosen)
        for place, patch in enumerate(chosen):
            found = distances(chosen[:place] + chosen[place + 1 :])
            best = int(found.argmin())
            if found[best] < found[patch] * (1 - _TOLERANCE):
                chosen[place] = best
        if chosen == before:
            break
    return list(range(size)) * copies + chosen
