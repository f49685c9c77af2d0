"""Real patches whose characteristic function is near that of all of them: a greedy choice, improved by swaps.

A cheap rival of the optimization, which the paper does not have: it makes the same instance distance small (Eq. 6),
but it may only choose. It is also where an optimization can begin (`optimizer.initial: cf-greedy`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.discrepancy import set_distance

if TYPE_CHECKING:
    from idc_hub.recipe import Loss

MAX_ROUNDS = 20
"""Rounds of swaps over all places. On photographs three to six are enough; no more of them than this are made."""

_TOLERANCE = 1e-6
"""What a swap must lower the distance by, relatively: rounding could otherwise swap to and fro."""


def greedy_subset(functions: Tensor, targets: Tensor, count: int, loss: Loss) -> list[int]:
    """Choose patches one by one, then swap them one for one while that lowers the mean distance over the draws.

    No patch is chosen twice, unless `count` is more than there are: then each is taken equally often, and what is
    left over is chosen.

    Args:
        functions: `[draws, N, T]`, the characteristic function of each patch alone (or what else `set_sums` gives).
        targets: `[draws, T]`, what the mean function of the chosen ones should be near to.
        count: How many to choose, at least 1.
        loss: The recipe's loss, which says how functions are compared.

    Returns:
        `count` indices of patches; where the last round changed nothing, no single swap would lower the distance.
    """
    size = functions.shape[1]
    copies, left = divmod(count, size)
    everything = functions.sum(1) * copies

    def distances(others: list[int]) -> Tensor:
        """Mean distance over the draws for each patch that may stand beside the others: `[N]`, inf for the others."""
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
