"""Everything about one photograph that the optimization is held to, computed once before the loop.

The real side of the losses depends on the photograph and on the draw (rows and frequencies), never on the
synthetic patches. With a fixed bank of draws it is therefore a table, filled when a draw is first met.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from idc_hub.condensation.assignment import TileGrid, kmeans
from idc_hub.condensation.discrepancy import membership, set_distance, set_sums
from idc_hub.condensation.pieces import piece_size, recomputed
from idc_hub.condensation.subset import greedy_subset
from idc_hub.condensation.transforms import draw_rows, local_features, pad, to_rows
from idc_hub.images.patches import complexity
from idc_hub.networks.extractors import feature_maps

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

HELD_OUT_DRAWS = 4
"""Draws kept out of every optimization, on which a finished set is measured."""

_CHUNK = 8
"""Real patches transformed at a time; bounds the memory of the precomputation."""

SUBSET_DRAWS = 4
"""Draws on which `greedy_subset` compares patches."""

_RMS_PATCHES = 16
"""Real patches, spread evenly, that the RMS norm of `loss.row_norm: global` is taken from."""

_VARIANCE_EPS = 1e-5
_NORM_EPS = 1e-6
_LENGTH_EPS = 1e-12

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine: no state, no order, no rank enters it."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `seed_of`; draws on the CPU are the same whatever the device computes."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class Draw:
    """One draw of features and frequencies, shared by all photographs of a recipe.

    Attributes:
        rows: Convolution rows of the transform, `[C_out, c, k, k]`.
        freqs: `[T, C]`, from N(0, frequency_scale^2), for the instance term; `C` is `C_out` times the pixels in a
            sample (`transform.unfold`).
        group_freqs: `[T, C]` for the group term; the same tensor unless `loss.shared_frequencies` is off.
    """

    rows: Tensor
    freqs: Tensor
    group_freqs: Tensor

    @classmethod
    def make(cls, recipe: Recipe, channels: int, pixels: int, name: object, device: torch.device) -> Draw:
        """The draw called `name` (its number in the bank, a step, or a held-out number) of a recipe.

        Args:
            recipe: The recipe.
            channels: Channels `c` of the feature maps.
            pixels: Pixels whose local features make one sample.
            name: The name; the draw depends on it and on the recipe's seed alone.
            device: Where to put it.
        """
        rng = generator(recipe.seed, "draw", name)
        loss = recipe.loss
        rows = draw_rows(recipe.transform, channels, rng)
        shape = (loss.frequencies, len(rows) * pixels)
        freqs = torch.randn(shape, generator=rng).to(device) * loss.frequency_scale
        group_freqs = freqs
        if not loss.shared_frequencies:
            group_freqs = torch.randn(shape, generator=rng).to(device) * loss.frequency_scale
        return cls(rows.to(device), freqs, group_freqs)

    def prepared(self, norm: Tensor | float, dtype: torch.dtype) -> Draw:
        """This draw with its rows divided by `norm`, all in `dtype`, the rows laid out as `convolve` likes them."""
        freqs = self.freqs.to(dtype)
        group_freqs = freqs if self.group_freqs is self.freqs else self.group_freqs.to(dtype)
        return Draw((self.rows / norm).to(dtype, memory_format=torch.channels_last), freqs, group_freqs)


@dataclass(frozen=True)
class Statistics:
    """Per-channel mean and standard deviation `[1, c, 1, 1]` that a feature map is normalized with."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, *maps: Tensor) -> Statistics:
        """Statistics over all positions of all maps `[B, c, h, w]` together; biased variance, as batch norm."""
        count = sum(m.numel() // m.shape[1] for m in maps)
        pieces = [piece for m in maps for piece in m.split(_CHUNK)]
        total = torch.stack([piece.float().sum((0, 2, 3)) for piece in pieces]).sum(0)
        mean = (total / count).view(1, -1, 1, 1)
        spread = torch.stack([(piece - mean).square().sum((0, 2, 3)) for piece in pieces]).sum(0)
        return cls(mean, (spread / count + _VARIANCE_EPS).sqrt().view(1, -1, 1, 1))

    def normalize(self, maps: Tensor) -> Tensor:
        """Maps `[B, c, h, w]` with mean 0 and deviation 1 under these statistics."""
        return (maps - self.mean) / self.std


@dataclass(frozen=True)
class Targets:
    """The real side at one draw: what `set_distance` compares.

    Attributes:
        instance: `[T]`, characteristic function of all real rows; with `loss.distance: mse` their mean `[C]`.
        groups: `[M, T]` or `[M, C]`, of the rows of each group.
    """

    instance: Tensor
    groups: Tensor


class RealSide:
    """The real patches of one photograph, their features, groups and characteristic functions.

    Args:
        lr: uint8 `[N, 3, h, w]`, the real LR patches.
        offsets: int64 `[N, 2]`, their (top, left) in the LR photograph, in pixels.
        network: The extractor; frozen, float32.
        recipe: The recipe.
        instance_id: Names the photograph; seeds what is drawn for it alone.

    Attributes:
        lr: The real patches in use, all or `features.real_patches` of them; `offsets`: their places.
        features: `[N, c, h, w]`, raw features, in the dtype of `features.precision`.
        statistics: Their per-channel statistics.
        grid: The tiles of the transformed real maps.
        centroids: `[M, c]`; `labels` int64 `[tiles]`; `sizes` int64 `[M]`.
        content: int64 `[tiles]`, see `Assignment.pair`.
    """

    def __init__(self, lr: Tensor, offsets: Tensor, network: torch.nn.Module, recipe: Recipe, instance_id: str) -> None:
        self.recipe = recipe
        self.instance_id = instance_id
        kept = stood_for(lr, recipe)
        lr, offsets = lr[kept], offsets[kept]
        limit = recipe.features.real_patches
        if limit is not None and limit < len(lr):
            chosen = torch.randperm(len(lr), generator=generator(recipe.seed, instance_id, "real"))[:limit].sort()
            lr, offsets = lr[chosen.values], offsets[chosen.values]
        self.lr, self.offsets = lr, offsets
        self.features = self._extract_all(network)
        self.statistics = Statistics.of(self.features)
        height, width = (side - 2 * self.border for side in self.features.shape[2:])
        self.grid = TileGrid(len(lr), height, width, recipe.assignment.tile, recipe.transform.unfold)
        with torch.no_grad():
            descriptors = self.descriptors(self.features)
        seed = seed_of(recipe.seed, instance_id, "kmeans")
        self.centroids, self.labels = kmeans(descriptors, recipe.assignment.groups, seed)
        self.sizes = torch.bincount(self.labels, minlength=len(self.centroids))
        self.content = self._content()
        self._table: dict[object, tuple[Draw, Targets]] = {}

    @torch.no_grad()
    def _extract_all(self, network: torch.nn.Module) -> Tensor:
        """Raw features of all real patches, written piece by piece to where they stay: they are large."""
        pieces = self.lr.split(_CHUNK)
        first = extract(network, pieces[0], self.recipe)
        features = first.new_empty((len(self.lr), *first.shape[1:]), dtype=PRECISIONS[self.recipe.features.precision])
        features[: len(first)] = first
        for number, piece in enumerate(pieces[1:], start=1):
            features[number * _CHUNK : (number + 1) * _CHUNK] = extract(network, piece, self.recipe)
        return features

    @property
    def border(self) -> int:
        """Feature pixels that the transform leaves out on each side."""
        return self.recipe.transform.neighborhood // 2 if self.recipe.transform.padding == "valid" else 0

    @cached_property
    def row_groups(self) -> Tensor:
        """int64 `[N, rows of a patch]`: the group of every row, `len(centroids)` where it lies in no tile."""
        return self.grid.row_labels(self.labels, len(self.centroids)).view(self.grid.patches, -1)

    def crop(self, maps: Tensor) -> Tensor:
        """The part of feature maps `[B, c, h, w]` that the transformed maps cover."""
        edge = self.border
        return maps[..., edge : maps.shape[-2] - edge, edge : maps.shape[-1] - edge] if edge else maps

    def normalize(self, maps: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Normalize raw feature maps as the recipe says; by the real statistics unless others are given."""
        if self.recipe.features.statistics == "none":
            return maps
        return (statistics or self.statistics).normalize(maps)

    def statistics_for(self, syn: Tensor) -> tuple[Statistics, Statistics]:
        """Statistics for (real, synthetic) raw maps at a step (`features.statistics`; algorithm note 6.4)."""
        mode = self.recipe.features.statistics
        if mode == "own":
            return self.statistics, Statistics.of(syn)
        if mode == "joint":
            joint = Statistics.of(self.features, syn)
            return joint, joint
        return self.statistics, self.statistics

    def descriptors(self, raw: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Mean normalized feature of every tile of raw maps `[B, c, h, w]`: `[tiles, C]` (paper appendix B)."""
        rows = self.draw(0, self.statistics).rows if self.recipe.assignment.space == "transform" else None
        pieces = []
        for piece in raw.split(_CHUNK):
            maps = self.normalize(piece, statistics)
            maps = self.crop(maps) if rows is None else self._local(maps, rows).float()
            pooled = torch.nn.functional.avg_pool2d(maps, self.recipe.assignment.tile)
            pieces.append(to_rows(pooled))
        return torch.cat(pieces)

    def tiles(self, chosen: Tensor) -> Tensor:
        """Normalized features of some real tiles, int64 `[P]`: `[P, c, tile, tile]`."""
        patch, down, across = self._place(chosen)
        tile = self.grid.tile
        pieces = self.crop(self.features).unfold(2, tile, tile).unfold(3, tile, tile)
        return self.normalize(pieces[patch, :, down, across])

    def draw(self, name: object, statistics: Statistics) -> Draw:
        """The draw called `name` on this photograph's device, with `loss.row_norm: global` and in its precision."""
        channels, pixels = self.features.shape[1], self.grid.pixels_in_row
        draw = Draw.make(self.recipe, channels, pixels, name, self.features.device)
        norm = self._rms_norm(draw, statistics) if self.recipe.loss.row_norm == "global" else 1.0
        return draw.prepared(norm, PRECISIONS[self.recipe.transform.precision])

    def at(self, name: object, *, keep: bool) -> tuple[Draw, Targets]:
        """The draw called `name` and the real side at it; `keep` it for the next time it is met."""
        if name in self._table:
            return self._table[name]
        draw = self.draw(name, self.statistics)
        found = draw, self.targets(draw, self.statistics)
        if keep:
            self._table[name] = found
        return found

    @torch.no_grad()
    def targets(self, draw: Draw, statistics: Statistics) -> Targets:
        """What the real rows are at a draw, streamed over the patches."""
        groups = len(self.centroids)
        labels = self.row_groups
        total: Tensor | int = 0
        grouped: Tensor | int = 0
        for start in range(0, len(self.features), _CHUNK):
            here = slice(start, start + _CHUNK)
            rows = self.rows(self.normalize(self.features[here], statistics), draw)
            members = membership(labels[here].flatten(), groups + 1)
            sums = set_sums(rows, draw.freqs, members, self.recipe.loss)
            total = total + sums.sum(0)
            if draw.group_freqs is not draw.freqs:
                sums = set_sums(rows, draw.group_freqs, members, self.recipe.loss)
            grouped = grouped + sums[:groups]
        assert isinstance(total, Tensor)
        assert isinstance(grouped, Tensor)
        rows_in_tile = self.grid.tile**2 // self.grid.pixels_in_row
        rows_of_groups = (self.sizes * rows_in_tile).clamp(min=1)
        return Targets(total / labels.numel(), grouped / rows_of_groups[:, None])

    def rows(self, normalized: Tensor, draw: Draw) -> Tensor:
        """Local features of normalized maps, one sample a row, normalized as `loss.row_norm` says."""
        return self.norm_rows(self.grid.to_rows(self._local(normalized, draw.rows)))

    def _local(self, normalized: Tensor, rows: Tensor) -> Tensor:
        return local_features(normalized, rows, self.recipe.transform.padding)

    def norm_rows(self, rows: Tensor) -> Tensor:
        """Divide each row by its length under `loss.row_norm: row`; a global norm is in the draw already."""
        if self.recipe.loss.row_norm != "row":
            return rows
        lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
        return (rows / lengths.clamp(min=_LENGTH_EPS)).to(rows.dtype)

    def windows(self, partners: Tensor, statistics: Statistics, margin: int) -> Tensor:
        """Neighborhoods of real tiles, from which their rows follow by a valid convolution.

        Args:
            partners: int64 `[P]`, real tiles.
            statistics: What the real maps are normalized with.
            margin: Further pixels on each side (`loss.deformation`).

        Returns:
            float `[P, c, s, s]` with `s = tile + k - 1 + 2 * margin`.
        """
        spec, tile = self.recipe.transform, self.grid.tile
        side = tile + spec.neighborhood - 1 + 2 * margin
        patch, down, across = self._place(partners)
        pieces = self.features.new_empty((len(partners), self.features.shape[1], side, side), dtype=torch.float32)
        for start in range(0, len(self.features), _CHUNK):
            wanted = torch.nonzero((patch >= start) & (patch < start + _CHUNK)).flatten()
            maps = self.normalize(self.features[start : start + _CHUNK], statistics)
            maps = pad(maps, spec.neighborhood, spec.padding, margin=margin)
            maps = maps.unfold(2, side, tile).unfold(3, side, tile)
            pieces[wanted] = maps[patch[wanted] - start, :, down[wanted], across[wanted]].float()
        return pieces

    @torch.no_grad()
    def discrepancy(self, lr: Tensor, network: torch.nn.Module, names: list[object]) -> float:
        """Mean instance discrepancy (paper Eq. 6, unweighted) of uint8 patches `[n, 3, h, w]` over some draws."""
        raw = extract(network, lr, self.recipe)
        normalized = self.normalize(raw, self.statistics_for(raw)[1])
        values = []
        for name in names:
            draw, targets = self.at(name, keep=True)
            sums, count = torch.zeros_like(targets.instance), 0
            for piece in normalized.split(piece_size(len(lr), lr[0, 0].numel())):
                rows = self.rows(piece, draw)
                everything = torch.ones(1, len(rows), device=rows.device)
                sums += set_sums(rows, draw.freqs, everything, self.recipe.loss)[0]
                count += len(rows)
            values.append(set_distance(targets.instance, sums / count, self.recipe.loss))
        return float(torch.stack(values).mean())

    @torch.no_grad()
    def greedy_subset(self, count: int) -> Tensor:
        """Indices of real patches that together have a low discrepancy, see `subset.greedy_subset`; int64 `[count]`.

        It is the discrepancy that the optimization makes small, on the bank's first draws; but the features of a
        subset are normalized with the real statistics, whatever `features.statistics` says.
        """
        names = range(min(SUBSET_DRAWS, self.recipe.loss.bank_size))
        functions = torch.stack([self._patch_functions(self.draw(name, self.statistics)) for name in names])
        # All patches have equally many rows: the function of all rows is the mean of the patches' functions.
        return torch.tensor(greedy_subset(functions, functions.mean(1), count, self.recipe.loss))

    def _patch_functions(self, draw: Draw) -> Tensor:
        """What `Targets.instance` is of every real patch alone: `[N, T]`."""
        pieces = []
        for piece in self.features.split(_CHUNK):
            rows = self.rows(self.normalize(piece), draw)
            labels = torch.arange(len(piece), device=rows.device).repeat_interleave(len(rows) // len(piece))
            sums = set_sums(rows, draw.freqs, membership(labels, len(piece)), self.recipe.loss)
            pieces.append(sums * (len(piece) / len(rows)))
        return torch.cat(pieces)

    def _place(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patch, row and column of real tiles."""
        a_patch, across = self.grid.rows_down * self.grid.across, self.grid.across
        place = tiles % a_patch
        return tiles // a_patch, place // across, place % across

    @torch.no_grad()
    def _rms_norm(self, draw: Draw, statistics: Statistics) -> Tensor:
        """Root mean square length of the real rows, float64 scalar; it stays on the device."""
        total, count = torch.zeros((), dtype=torch.float64, device=self.features.device), 0
        for piece in self.features[:: -(-len(self.features) // _RMS_PATCHES)].split(_CHUNK):
            rows = self.grid.to_rows(self._local(self.normalize(piece, statistics), draw.rows))
            total += rows.double().square().sum()
            count += len(rows)
        # A photograph of one color has no features at all; nothing is divided by nothing.
        return (total / count).sqrt().clamp(min=_NORM_EPS)

    def _content(self) -> Tensor:
        """Number the real tiles so that tiles that show the same pixels share a number, if the recipe wants it."""
        tiles = torch.arange(len(self.grid))
        if not self.recipe.assignment.unique_content:
            return tiles.to(self.labels.device)
        patch, down, across = self._place(tiles)
        positions = self.offsets.cpu()[patch] + torch.stack([down, across], dim=1) * self.grid.tile
        return torch.unique(positions, dim=0, return_inverse=True)[1].to(self.labels.device)


def stood_for(lr: Tensor, recipe: Recipe) -> Tensor:
    """Which real patches uint8 `[N, 3, h, w]` the synthetic ones stand for (`patches.complexity`): int64 indices."""
    if recipe.patches.complexity == "all":
        return torch.arange(len(lr))
    edges = complexity(lr.cpu().numpy())
    # Where all are equal, rounding of the mean must not leave none.
    return torch.from_numpy(np.flatnonzero(edges >= edges.mean() * (1 - 1e-9)))


def extract(network: torch.nn.Module, lr: Tensor, recipe: Recipe) -> Tensor:
    """Raw features of LR patches `[B, 3, h, w]`, uint8 or float in [0, 1]; `features.precision` says how exact."""
    pixels = lr.float() / 255 if lr.dtype == torch.uint8 else lr

    def features(piece: Tensor) -> Tensor:
        with torch.autocast(piece.device.type, torch.bfloat16, enabled=recipe.features.precision == "bf16"):
            return feature_maps(network, piece, recipe.features.layer)

    size = piece_size(len(pixels), pixels[0, 0].numel())
    if size == len(pixels):
        return features(pixels)
    return torch.cat([recomputed(features, piece) for piece in pixels.split(size)])
