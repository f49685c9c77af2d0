"""Which local patches are grouped and paired, and when (paper section 3.3 and appendix B).

A tile is a `p x p` piece of a feature map. Real tiles are clustered once per photograph. Synthetic tiles join the
groups progressively, under quotas proportional to the groups' sizes, and are then paired one-to-one with real tiles of
their group.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from idc_hub.condensation.transforms import unfold_pixels

KMEANS_RESTARTS = 4
KMEANS_STEPS = 50

_TILES = 8192
"""Real tiles whose distances are computed at a time."""


@dataclass(frozen=True)
class TileGrid:
    """The non-overlapping `tile x tile` pieces of `patches` maps of `height x width`; a remainder is left out.

    The grid also defines what one sample of a distribution is (`transform.unfold`): a pixel, a tile or a patch.
    """

    patches: int
    height: int
    width: int
    tile: int
    unfold: str = "pixels"

    @property
    def tiles_down(self) -> int:
        """Tiles from top to bottom of one map."""
        return self.height // self.tile

    @property
    def tiles_across(self) -> int:
        """Tiles from left to right of one map."""
        return self.width // self.tile

    def __len__(self) -> int:
        return self.patches * self.tiles_down * self.tiles_across

    @property
    def samples(self) -> int:
        """Samples of all maps together."""
        return {"pixels": self.patches * self.height * self.width, "tiles": len(self)}.get(self.unfold, self.patches)

    @property
    def pixels_per_sample(self) -> int:
        """Pixels whose local features make one sample."""
        return {"pixels": 1, "tiles": self.tile**2}.get(self.unfold, self.height * self.width)

    def to_samples(self, maps: Tensor) -> Tensor:
        """Maps `[B, C, height, width]`, for any number of patches, to samples `[S, C * pixels_per_sample]`."""
        if self.unfold == "pixels":
            return unfold_pixels(maps)
        return (self.cut(maps) if self.unfold == "tiles" else maps).flatten(1)

    def samples_of_tiles(self) -> Tensor:
        """The samples that belong to each tile alone: int64 `[tiles, s]`; `s` is 0 if a sample is a whole patch."""
        if self.unfold == "pixels":
            pixels = torch.arange(self.samples).view(self.patches, 1, self.height, self.width)
            return self.cut(pixels).flatten(1)
        tiles = torch.arange(len(self))[:, None]
        return tiles if self.unfold == "tiles" else tiles[:, :0]

    def cut(self, maps: Tensor) -> Tensor:
        """The tiles of maps `[B, c, height, width]`: `[tiles, c, tile, tile]`, ordered (patch, y, x)."""
        pieces = maps.unfold(2, self.tile, self.tile).unfold(3, self.tile, self.tile)
        return pieces.permute(0, 2, 3, 1, 4, 5).reshape(-1, maps.shape[1], self.tile, self.tile)

    def sample_labels(self, labels: Tensor, other: int) -> Tensor:
        """Expand one label per tile to one label per sample; `other` outside the tiles and for labels below 0."""
        spread = torch.full((self.samples,), other, dtype=torch.int64)
        known = labels.cpu().clamp(min=-1)
        known = torch.where(known < 0, torch.full_like(known, other), known)
        places = self.samples_of_tiles()
        spread[places] = known[:, None].expand_as(places)
        return spread.to(labels.device)


def kmeans(descriptors: Tensor, groups: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cluster the real tiles (paper appendix B): k-means++, best of several restarts.

    Args:
        descriptors: float `[tiles, c]`, the mean feature of each tile.
        groups: Number of groups `M`; fewer if there are fewer tiles.
        seed: Determines the result on a given machine.

    Returns:
        Centroids float32 `[M, c]` and labels int64 `[tiles]`, on the descriptors' device. A group may be empty.
    """
    data = descriptors.detach().cpu().double().numpy()
    rng = np.random.default_rng(seed)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for _ in range(KMEANS_RESTARTS):
        with warnings.catch_warnings():
            # An empty cluster keeps its centroid and its group stays empty, which is harmless.
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centroids, labels = kmeans2(data, min(groups, len(data)), iter=KMEANS_STEPS, minit="++", rng=rng)
        inertia = float(np.square(data - centroids[labels]).sum())
        if best is None or inertia < best[0]:
            best = inertia, centroids, labels
    assert best is not None
    device = descriptors.device
    return torch.from_numpy(best[1]).float().to(device), torch.from_numpy(best[2]).long().to(device)


def proportional_quotas(sizes: Tensor, total: int) -> Tensor:
    """Divide `total` in proportion to `sizes` `[M]` by largest remainders; int64 `[M]` that sums to `total`."""
    shares = sizes.double() * total / sizes.sum()
    quotas = shares.floor().long()
    # The stable sort breaks ties between equal remainders in favor of the first group.
    order = torch.argsort(shares - quotas, descending=True, stable=True)
    quotas[order[: total - int(quotas.sum())]] += 1
    return quotas


def event_share(quotas: Tensor, event: int, events: int) -> Tensor:
    """The part of each quota that one event assigns: `quotas` int64 `[...]`, `event` in 1 .. `events`.

    The shares of all events sum to the quotas, and each is within one of `quotas / events`.
    """

    def reached(k: int) -> Tensor:
        return (2 * k * quotas + events) // (2 * events)

    return reached(event) - reached(event - 1)


@dataclass
class Assignment:
    """Group and partner of every synthetic tile; -1 while there is none.

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

    def add_to_groups(self, descriptors: Tensor, centroids: Tensor, room: Tensor) -> None:
        """Group ungrouped tiles, nearest first, while their group has room.

        Args:
            descriptors: float `[tiles, c]`, mean feature of each synthetic tile.
            centroids: float `[M, c]`.
            room: int64 `[M]`, the number of tiles that each group may take now.
        """
        free = torch.nonzero(self.group < 0).flatten()
        distances = torch.cdist(descriptors[free].float(), centroids).cpu()
        left, limit = room.tolist(), int(room.sum())
        taken: set[int] = set()
        for candidate in torch.argsort(distances.flatten(), stable=True).tolist():
            tile, group = divmod(candidate, len(centroids))
            if len(taken) == limit:
                break
            if left[group] > 0 and tile not in taken:
                taken.add(tile)
                left[group] -= 1
                self.group[free[tile]] = group

    def pair(self, syn_tiles: Tensor, real_tiles: Callable[[Tensor], Tensor], real_groups: Tensor) -> None:
        """Pair every grouped, unpaired tile with the nearest free real tile of its group, closest pair first.

        Each real tile is used at most once. Tiles stay unpaired when their group has no free real tile left.

        Args:
            syn_tiles: float `[tiles, c, p, p]`, normalized features of the synthetic tiles.
            real_tiles: Returns the real tiles with the given indices int64 `[P]` as float `[P, c, p, p]`; all of
                them at once would not fit in memory.
            real_groups: int64 `[real tiles]`.
        """
        waiting = (self.group >= 0) & (self.partner < 0)
        used = torch.zeros(len(real_groups), dtype=torch.bool, device=real_groups.device)
        used[self.partner[self.partner >= 0]] = True
        for group in torch.unique(self.group[waiting]).tolist():
            syn = torch.nonzero(waiting & (self.group == group)).flatten()
            real = torch.nonzero((real_groups == group) & ~used).flatten()
            if len(real) == 0:
                continue
            wanted = syn_tiles[syn].flatten(1)
            distances = torch.cat([torch.cdist(wanted, real_tiles(some).flatten(1)) for some in real.split(_TILES)], 1)
            pairs = torch.tensor(_greedy(distances.cpu().numpy()), device=real.device)
            self.partner[syn[pairs[:, 0]]] = real[pairs[:, 1]]
            used[real[pairs[:, 1]]] = True


def _greedy(distances: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column): take the smallest entry, cross out its row and column, repeat. Overwrites its argument."""
    nearest = distances.argmin(axis=1)
    least = distances[np.arange(len(distances)), nearest]
    chosen = []
    for _ in range(min(distances.shape)):
        row = int(least.argmin())
        column = int(nearest[row])
        chosen.append((row, column))
        least[row] = np.inf
        distances[:, column] = np.inf
        # Only rows that just lost their nearest column must look again.
        for stale in np.flatnonzero((nearest == column) & (least < np.inf)):
            nearest[stale] = distances[stale].argmin()
            least[stale] = distances[stale, nearest[stale]]
    return chosen
