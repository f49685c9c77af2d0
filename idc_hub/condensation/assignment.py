"""Which local patches are grouped and paired at a step (paper section 3.3 and appendix B).

A tile is a `p x p` piece of a feature map. Real tiles are clustered once an image; synthetic tiles join the
groups progressively, under quotas proportional to the groups' sizes, and are then paired one-to-one with real
tiles of their group.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from idc_hub.condensation.transforms import to_rows

KMEANS_RESTARTS = 4
KMEANS_STEPS = 50

_TILES = 8192
"""Real tiles whose pixels are compared at a time."""


@dataclass(frozen=True)
class TileGrid:
    """The non-overlapping `tile x tile` pieces of `patches` maps of `height x width`; a remainder is left out.

    It knows what is a row, that is one sample of a distribution (`transform.unfold`): a pixel, a tile or a patch.
    """

    patches: int
    height: int
    width: int
    tile: int
    unfold: str = "pixels"

    @property
    def rows_down(self) -> int:
        """Tiles from top to bottom of one map."""
        return self.height // self.tile

    @property
    def across(self) -> int:
        """Tiles from left to right of one map."""
        return self.width // self.tile

    def __len__(self) -> int:
        return self.patches * self.rows_down * self.across

    @property
    def rows(self) -> int:
        """Rows of all maps together."""
        return {"pixels": self.patches * self.height * self.width, "tiles": len(self)}.get(self.unfold, self.patches)

    @property
    def pixels_in_row(self) -> int:
        """Pixels whose local features make one row."""
        return {"pixels": 1, "tiles": self.tile**2}.get(self.unfold, self.height * self.width)

    def to_rows(self, maps: Tensor) -> Tensor:
        """Maps `[B, C, height, width]`, of any number of patches, as rows `[rows, C * pixels_in_row]`."""
        if self.unfold == "pixels":
            return to_rows(maps)
        return (self.cut(maps) if self.unfold == "tiles" else maps).flatten(1)

    def rows_of_tiles(self) -> Tensor:
        """int64 `[tiles, r]`: the rows that each tile has to itself; none where a row is a whole patch."""
        if self.unfold == "pixels":
            pixels = torch.arange(self.rows).view(self.patches, 1, self.height, self.width)
            return self.cut(pixels).flatten(1)
        tiles = torch.arange(len(self))[:, None]
        return tiles if self.unfold == "tiles" else tiles[:, :0]

    def cut(self, maps: Tensor) -> Tensor:
        """The tiles of maps `[B, c, height, width]`: `[tiles, c, tile, tile]`, ordered (patch, y, x)."""
        pieces = maps.unfold(2, self.tile, self.tile).unfold(3, self.tile, self.tile)
        return pieces.permute(0, 2, 3, 1, 4, 5).reshape(-1, maps.shape[1], self.tile, self.tile)

    def row_labels(self, labels: Tensor, other: int) -> Tensor:
        """Spread one label a tile to one label a row; `other` where no tile or a label below 0."""
        spread = torch.full((self.rows,), other, dtype=torch.int64)
        known = labels.cpu().clamp(min=-1)
        known = torch.where(known < 0, torch.full_like(known, other), known)
        places = self.rows_of_tiles()
        spread[places] = known[:, None].expand_as(places)
        return spread.to(labels.device)


def kmeans(descriptors: Tensor, groups: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cluster the real tiles (paper appendix B): k-means++, best of several starts.

    Args:
        descriptors: float `[tiles, c]`, the mean feature of each tile.
        groups: Number of groups `M`; fewer where there are fewer tiles.
        seed: Determines the result on a given machine.

    Returns:
        Centroids float32 `[M, c]` and labels int64 `[tiles]`, on the descriptors' device. A group may be empty.
    """
    data = descriptors.detach().cpu().double().numpy()
    rng = np.random.default_rng(seed)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for _ in range(KMEANS_RESTARTS):
        with warnings.catch_warnings():
            # An empty cluster keeps its centroid, and its group stays empty: that is all we need to know.
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centroids, labels = kmeans2(data, min(groups, len(data)), iter=KMEANS_STEPS, minit="++", rng=rng)
        inertia = float(np.square(data - centroids[labels]).sum())
        if best is None or inertia < best[0]:
            best = inertia, centroids, labels
    assert best is not None
    device = descriptors.device
    return torch.from_numpy(best[1]).float().to(device), torch.from_numpy(best[2]).long().to(device)


def proportional_quotas(sizes: Tensor, total: int) -> Tensor:
    """Share `total` out in proportion to `sizes` `[M]` by largest remainders; int64 `[M]` that sums to `total`."""
    shares = sizes.double() * total / sizes.sum()
    quotas = shares.floor().long()
    # A stable sort gives a remainder shared by two groups to the first of them.
    order = torch.argsort(shares - quotas, descending=True, stable=True)
    quotas[order[: total - int(quotas.sum())]] += 1
    return quotas


def event_share(quotas: Tensor, event: int, events: int) -> Tensor:
    """The part of each quota that falls to one event: `quotas` int64 `[...]`, `event` 1 .. `events`.

    The shares of all events sum to the quotas, and each is within one of `quotas / events`.
    """

    def reached(k: int) -> Tensor:
        return (2 * k * quotas + events) // (2 * events)

    return reached(event) - reached(event - 1)


@dataclass
class Assignment:
    """Group and partner of every synthetic tile; -1 where there is none yet.

    Attributes:
        group: int64 `[tiles]`.
        partner: int64 `[tiles]`, index of a real tile.
    """

    group: Tensor
    partner: Tensor

    @classmethod
    def empty(cls, tiles: int, device: torch.device | str = "cpu") -> Assignment:
        """No tile grouped, none paired."""
        unset = torch.full((tiles,), -1, dtype=torch.int64, device=device)
        return cls(unset, unset.clone())

    def add_to_groups(self, descriptors: Tensor, centroids: Tensor, allowance: Tensor, limit: int) -> None:
        """Group ungrouped tiles, nearest first, while their group has room.

        Args:
            descriptors: float `[tiles, c]`, mean feature of each synthetic tile.
            centroids: float `[M, c]`.
            allowance: int64 `[M]`, tiles that each group takes at most at this event.
            limit: Tiles that all groups together take at most.
        """
        free = torch.nonzero(self.group < 0).flatten()
        distances = torch.cdist(descriptors[free].float(), centroids).cpu()
        room = allowance.tolist()
        taken: set[int] = set()
        for candidate in torch.argsort(distances.flatten(), stable=True).tolist():
            tile, group = divmod(candidate, len(centroids))
            if len(taken) == limit:
                break
            if room[group] > 0 and tile not in taken:
                taken.add(tile)
                room[group] -= 1
                self.group[free[tile]] = group

    def pair(
        self,
        syn_tiles: Tensor,
        real_tiles: Callable[[Tensor], Tensor],
        real_groups: Tensor,
        content: Tensor,
        method: str,
    ) -> None:
        """Pair every grouped, unpaired tile with a free real tile of its group, each real tile at most once.

        Args:
            syn_tiles: float `[tiles, c, p, p]`, normalized features of the synthetic tiles.
            real_tiles: Gives the tiles of some indices int64 `[P]` as float `[P, c, p, p]`; there are too many to
                hold them all at once.
            real_groups: int64 `[real tiles]`.
            content: int64 `[real tiles]`; tiles with the same number show the same pixels of the photograph and
                count as one (`assignment.unique_content`). Without that, each tile has a number of its own.
            method: `greedy` takes the closest pair first; `hungarian` minimizes the sum of squared distances.
        """
        waiting = (self.group >= 0) & (self.partner < 0)
        used = torch.zeros(int(content.max()) + 1, dtype=torch.bool, device=content.device)
        used[content[self.partner[self.partner >= 0]]] = True
        for group in torch.unique(self.group[waiting]).tolist():
            syn = torch.nonzero(waiting & (self.group == group)).flatten()
            real = torch.nonzero((real_groups == group) & ~used[content]).flatten()
            if len(real) == 0:
                continue
            wanted = syn_tiles[syn].flatten(1)
            distances = torch.cat([torch.cdist(wanted, real_tiles(some).flatten(1)) for some in real.split(_TILES)], 1)
            pairs = _one_to_one(distances.square_().cpu().numpy(), content[real].cpu().numpy(), method)
            rows, columns = (torch.tensor(side, device=content.device) for side in zip(*pairs, strict=True))
            self.partner[syn[rows]] = real[columns]
            used[content[real[columns]]] = True


def _one_to_one(distances: np.ndarray, content: np.ndarray, method: str) -> list[tuple[int, int]]:
    """Pairs (row, column) of a matrix such that no row and no content number comes twice."""
    order = np.argsort(content, kind="stable")
    _, starts = np.unique(content[order], return_index=True)
    best = np.minimum.reduceat(distances[:, order], starts, axis=1)
    if method == "hungarian":
        chosen = list(zip(*linear_sum_assignment(best), strict=True))
    else:
        chosen = _greedy(best)
    ends = np.append(starts[1:], len(order))
    pairs = []
    for row, number in chosen:
        copies = order[starts[number] : ends[number]]
        pairs.append((int(row), int(copies[distances[row, copies].argmin()])))
    return pairs


def _greedy(left: np.ndarray) -> list[tuple[int, int]]:
    """Take the smallest entry, cross out its row and column, repeat; `left` is written over."""
    nearest = left.argmin(axis=1)
    least = left[np.arange(len(left)), nearest]
    chosen = []
    for _ in range(min(left.shape)):
        row = int(least.argmin())
        column = int(nearest[row])
        chosen.append((row, column))
        least[row] = np.inf
        left[:, column] = np.inf
        # Only rows whose nearest column has gone must look again.
        for stale in np.flatnonzero((nearest == column) & (least < np.inf)):
            nearest[stale] = left[stale].argmin()
            least[stale] = left[stale, nearest[stale]]
    return chosen
