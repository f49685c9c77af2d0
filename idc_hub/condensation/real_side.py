"""The real side of the losses for one photograph, computed once before the loop.

The real side depends on the photograph and on the draw (filters and frequencies), never on the synthetic patches.
With a fixed bank of draws it is a table that is filled when a draw is first used.
"""

from __future__ import annotations

import hashlib
import math
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
from idc_hub.condensation.transforms import draw_filters, local_features, pad, unfold_pixels
from idc_hub.errors import NetworkError
from idc_hub.images.patches import complexity
from idc_hub.networks.extractors import feature_maps

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

HELD_OUT_DRAWS = 4
"""Draws that no optimization uses, on which a finished set is measured."""

CHUNK = 8
"""Real patches transformed at a time, to bound memory."""

SUBSET_DRAWS = 4
"""Draws on which `greedy_subset` compares patches."""

_RMS_PATCHES = 16
"""Evenly spaced real patches from which `loss.row_norm: global` takes its norm."""

_VARIANCE_EPS = 1e-5
_NORM_EPS = 1e-6
_LENGTH_EPS = 1e-12

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def non_finite_features(instance_id: str, recipe: Recipe, what: str) -> NetworkError:
    """The sentence where the extractor gives NaN or Inf for patches of a photograph; `what` says for which."""
    exact = "features.precision=fp32, " if recipe.features.precision != "fp32" else ""
    return NetworkError(
        f"The extractor {recipe.features.network} gives NaN or Inf on {instance_id}, for {what}.",
        f"Use {exact}another features.layer or another features.network.",
    )


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine; it depends on no state, order or rank."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `seed_of`: random numbers are the same on every computing device."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class Draw:
    """One draw of filters and frequencies, the same for all photographs of a recipe.

    Attributes:
        filters: Convolution filters of the transform, `[C_out, c, k, k]`.
        freqs: `[T, C]`, each row from N(0, s^2) with `s` from `loss.frequency_scale`; `C` is `C_out` times the pixels
            per sample (`transform.unfold`).
    """

    filters: Tensor
    freqs: Tensor

    @classmethod
    def make(cls, recipe: Recipe, channels: int, pixels: int, name: object, device: torch.device) -> Draw:
        """The draw called `name`, which depends on the name and the recipe alone.

        Args:
            recipe: The recipe.
            channels: Channels `c` of the feature maps.
            pixels: Pixels whose local features make one sample.
            name: Its number in the bank, a step, or a held-out number.
            device: Where to put it.
        """
        rng = generator(recipe.seed, "draw", name)
        filters = draw_filters(recipe.transform, channels, rng)
        frequencies = {"iid": _independent_rows, "orthogonal": _orthogonal_rows}[recipe.loss.frequency_kind]
        freqs = frequencies(recipe.loss.frequencies, len(filters) * pixels, rng)
        scale = recipe.loss.frequency_scale
        if isinstance(scale, tuple):
            low, high = map(math.log, scale)
            freqs = freqs * torch.empty(len(freqs), 1).uniform_(low, high, generator=rng).exp()
            scale = 1.0
        return cls(filters.to(device), freqs.to(device) * scale)

    def prepared(self, norm: Tensor | float, dtype: torch.dtype) -> Draw:
        """This draw with its filters divided by `norm`, in `dtype`, and in the memory layout that `convolve` uses."""
        filters = (self.filters / norm).to(dtype, memory_format=torch.channels_last)
        return Draw(filters, self.freqs.to(dtype))


def _independent_rows(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    return torch.randn((rows, columns), generator=rng)


def _orthogonal_rows(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Rows from N(0, 1), orthogonal within each block of `columns` rows (Yu et al., arXiv 1610.09072, section 3)."""
    blocks = []
    for start in range(0, rows, columns):
        size = min(columns, rows - start)
        directions, triangle = torch.linalg.qr(torch.randn((columns, size), generator=rng))
        directions = directions * triangle.diagonal().sign()  # uniform over all orthonormal sets (Mezzadri 2007)
        # The length of a normal vector, which has a chi distribution, is independent of its direction.
        lengths = _independent_rows(size, columns, rng).norm(dim=1, keepdim=True)
        blocks.append(directions.T * lengths)
    return torch.cat(blocks)


@dataclass(frozen=True)
class Statistics:
    """Per-channel mean and standard deviation, each `[1, c, 1, 1]`, for normalizing feature maps."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, *maps: Tensor) -> Statistics:
        """Statistics over all positions of all maps `[B, c, h, w]` together; biased variance, as in batch norm."""
        count = sum(m.numel() // m.shape[1] for m in maps)
        pieces = [piece for m in maps for piece in m.split(CHUNK)]
        total = torch.stack([piece.float().sum((0, 2, 3)) for piece in pieces]).sum(0)
        mean = (total / count).view(1, -1, 1, 1)
        spread = torch.stack([(piece - mean).square().sum((0, 2, 3)) for piece in pieces]).sum(0)
        return cls(mean, (spread / count + _VARIANCE_EPS).sqrt().view(1, -1, 1, 1))

    def normalize(self, maps: Tensor) -> Tensor:
        """Maps `[B, c, h, w]` minus the mean, divided by the standard deviation."""
        return (maps - self.mean) / self.std


@dataclass(frozen=True)
class Targets:
    """What `set_distance` compares the synthetic side with, at one draw.

    Attributes:
        instance: `[T]`, characteristic function of all real samples; with `loss.distance: mse` their mean `[C]`.
        groups: `[M, T]` or `[M, C]`, the same for the samples of each group.
    """

    instance: Tensor
    groups: Tensor


class RealSide:
    """The real patches of one photograph, their features, groups and characteristic functions.

    Args:
        lr: uint8 `[N, 3, h, w]`, all real LR patches of the photograph.
        network: The extractor; frozen, float32.
        recipe: The recipe.
        instance_id: Identifies the photograph and seeds its own random draws.
        hardness: float `[N]`, the error of bicubic upscaling of each patch, for `patches.complexity: hardness`.

    Raises:
        NetworkError: The features of a real patch, or their statistics, are NaN or Inf.

    Attributes:
        represented: int64, indices of the patches in use among all (`patches.complexity`); below, `N` counts these.
        lr: The real patches in use.
        features: `[N, c, h, w]`, raw features, in the dtype of `features.precision`.
        statistics: Their per-channel statistics.
        grid: The tiles of the transformed real maps.
        centroids: `[M, c]`.
        labels: int64 `[tiles]`, the group of each real tile.
        sizes: int64 `[M]`, the tiles of each group.
    """

    def __init__(
        self,
        lr: Tensor,
        network: torch.nn.Module,
        recipe: Recipe,
        instance_id: str,
        hardness: np.ndarray | None = None,
    ) -> None:
        self.recipe = recipe
        self.instance_id = instance_id
        self.represented = represented_patches(lr, recipe, hardness)
        self.lr = lr[self.represented]
        self.features = self._extract_all(network)
        self.statistics = Statistics.of(self.features)
        self._refuse_non_finite()
        height, width = (side - 2 * self.border for side in self.features.shape[2:])
        self.grid = TileGrid(len(self.lr), height, width, recipe.assignment.tile, recipe.transform.unfold)
        with torch.no_grad():
            descriptors = self.descriptors(self.features)
        seed = seed_of(recipe.seed, instance_id, "kmeans")
        self.centroids, self.labels = kmeans(descriptors, recipe.assignment.groups, seed)
        self.sizes = torch.bincount(self.labels, minlength=len(self.centroids))
        self._table: dict[object, tuple[Draw, Targets]] = {}

    @torch.no_grad()
    def _extract_all(self, network: torch.nn.Module) -> Tensor:
        """Raw features of all real patches, written in chunks into one tensor, since they are large."""
        pieces = self.lr.split(CHUNK)
        first = extract(network, pieces[0], self.recipe)
        features = first.new_empty((len(self.lr), *first.shape[1:]), dtype=PRECISIONS[self.recipe.features.precision])
        features[: len(first)] = first
        for number, piece in enumerate(pieces[1:], start=1):
            features[number * CHUNK : (number + 1) * CHUNK] = extract(network, piece, self.recipe)
        return features

    def _refuse_non_finite(self) -> None:
        """Features that are no numbers, or too large to be normalized, would make everything after them nothing."""
        bad = torch.nonzero(torch.cat([~piece.isfinite().flatten(1).all(1) for piece in self.features.split(CHUNK)]))
        if len(bad):
            first = int(self.represented[int(bad[0])])
            what = f"{len(bad)} of the {len(self.lr)} real patches, number {first} first"
        elif not (self.statistics.mean.isfinite().all() and self.statistics.std.isfinite().all()):
            what = "the statistics of all real patches: single features are too large"
        else:
            return
        raise non_finite_features(self.instance_id, self.recipe, what)

    @property
    def border(self) -> int:
        """Feature pixels that the transform leaves out on each side."""
        return self.recipe.transform.neighborhood // 2 if self.recipe.transform.padding == "valid" else 0

    @cached_property
    def sample_groups(self) -> Tensor:
        """int64 `[N, samples per patch]`: the group of every sample, `len(centroids)` outside the tiles."""
        return self.grid.sample_labels(self.labels, len(self.centroids)).view(self.grid.patches, -1)

    def crop(self, maps: Tensor) -> Tensor:
        """The part of feature maps `[B, c, h, w]` that the transformed maps cover."""
        edge = self.border
        return maps[..., edge : maps.shape[-2] - edge, edge : maps.shape[-1] - edge] if edge else maps

    def normalize(self, maps: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Normalize raw feature maps as the recipe says, by the real statistics unless others are given."""
        if self.recipe.features.statistics == "none":
            return maps
        return (statistics or self.statistics).normalize(maps)

    def statistics_for(self, syn: Tensor) -> tuple[Statistics, Statistics]:
        """Statistics for (real, synthetic) raw maps at a step (`features.statistics`).

        The paper batch-normalizes feature maps (section 3.2) but does not say over which maps. The real statistics for
        both sides keep differences in mean and contrast visible to the loss; each side's own statistics hide them.
        """
        mode = self.recipe.features.statistics
        if mode == "own":
            return self.statistics, Statistics.of(syn)
        if mode == "joint":
            joint = Statistics.of(self.features, syn)
            return joint, joint
        return self.statistics, self.statistics

    def descriptors(self, raw: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Mean normalized feature of every tile of raw maps `[B, c, h, w]`: `[tiles, c]` (paper appendix B)."""
        tile = self.recipe.assignment.tile
        maps = (self.crop(self.normalize(piece, statistics)) for piece in raw.split(CHUNK))
        return torch.cat([unfold_pixels(torch.nn.functional.avg_pool2d(piece, tile)) for piece in maps])

    def tiles(self, chosen: Tensor) -> Tensor:
        """Normalized features of the real tiles with indices int64 `[P]`: `[P, c, tile, tile]`."""
        patch, down, across = self._place(chosen)
        tile = self.grid.tile
        pieces = self.crop(self.features).unfold(2, tile, tile).unfold(3, tile, tile)
        return self.normalize(pieces[patch, :, down, across])

    def draw(self, name: object, statistics: Statistics) -> Draw:
        """The draw called `name`, on this photograph's device, in its precision and with its global norm."""
        channels, pixels = self.features.shape[1], self.grid.pixels_per_sample
        draw = Draw.make(self.recipe, channels, pixels, name, self.features.device)
        norm = self._rms_norm(draw, statistics) if self.recipe.loss.row_norm == "global" else 1.0
        return draw.prepared(norm, PRECISIONS[self.recipe.transform.precision])

    def at(self, name: object, *, keep: bool) -> tuple[Draw, Targets]:
        """The draw called `name` and its targets; `keep` stores them for the next use."""
        if name in self._table:
            return self._table[name]
        draw = self.draw(name, self.statistics)
        found = draw, self.targets(draw, self.statistics)
        if keep:
            self._table[name] = found
        return found

    @torch.no_grad()
    def targets(self, draw: Draw, statistics: Statistics) -> Targets:
        """The real side at a draw, accumulated over chunks of patches."""
        groups = len(self.centroids)
        labels = self.sample_groups
        total: Tensor | int = 0
        grouped: Tensor | int = 0
        for start in range(0, len(self.features), CHUNK):
            here = slice(start, start + CHUNK)
            samples = self.samples(self.normalize(self.features[here], statistics), draw)
            members = membership(labels[here].flatten(), groups + 1)
            sums = set_sums(samples, draw.freqs, members, self.recipe.loss, fused=self.recipe.workers.fused)
            total = total + sums.sum(0)
            grouped = grouped + sums[:groups]
        assert isinstance(total, Tensor)
        assert isinstance(grouped, Tensor)
        samples_per_tile = self.grid.tile**2 // self.grid.pixels_per_sample
        samples_of_groups = (self.sizes * samples_per_tile).clamp(min=1)
        return Targets(total / labels.numel(), grouped / samples_of_groups[:, None])

    def samples(self, normalized: Tensor, draw: Draw) -> Tensor:
        """Local features of normalized maps as samples `[S, C]`, scaled as `loss.row_norm` says."""
        return self.normalize_samples(self.grid.to_samples(self._local(normalized, draw.filters)))

    def _local(self, normalized: Tensor, filters: Tensor) -> Tensor:
        return local_features(normalized, filters, self.recipe.transform.padding)

    def normalize_samples(self, samples: Tensor) -> Tensor:
        """Divide each sample by its length under `loss.row_norm: row`; a global norm is already in the filters."""
        if self.recipe.loss.row_norm != "row":
            return samples
        lengths = torch.linalg.vector_norm(samples, dim=-1, keepdim=True, dtype=torch.float32)
        return (samples / lengths.clamp(min=_LENGTH_EPS)).to(samples.dtype)

    def neighborhoods(self, tiles: Tensor, statistics: Statistics) -> Tensor:
        """Real tiles with the surrounding pixels that a valid convolution needs to give their local features.

        Args:
            tiles: int64 `[P]`, real tiles.
            statistics: Statistics that normalize the real maps.

        Returns:
            float `[P, c, s, s]` with `s = tile + k - 1`.
        """
        transform, tile = self.recipe.transform, self.grid.tile
        side = tile + transform.neighborhood - 1
        patch, down, across = self._place(tiles)
        found = self.features.new_empty((len(tiles), self.features.shape[1], side, side), dtype=torch.float32)
        for start in range(0, len(self.features), CHUNK):
            wanted = torch.nonzero((patch >= start) & (patch < start + CHUNK)).flatten()
            maps = self.normalize(self.features[start : start + CHUNK], statistics)
            maps = pad(maps, transform.neighborhood, transform.padding)
            maps = maps.unfold(2, side, tile).unfold(3, side, tile)
            found[wanted] = maps[patch[wanted] - start, :, down[wanted], across[wanted]].float()
        return found

    @torch.no_grad()
    def discrepancy(self, lr: Tensor, network: torch.nn.Module, names: list[object]) -> float:
        """Mean instance distance (paper Eq. 6, unweighted) of uint8 patches `[n, 3, h, w]` over the named draws."""
        raw = extract(network, lr, self.recipe)
        normalized = self.normalize(raw, self.statistics_for(raw)[1])
        values = []
        for name in names:
            draw, targets = self.at(name, keep=True)
            sums, count = torch.zeros_like(targets.instance), 0
            for piece in normalized.split(piece_size(len(lr), lr[0, 0].numel())):
                samples = self.samples(piece, draw)
                everything = torch.ones(1, len(samples), device=samples.device)
                sums += set_sums(samples, draw.freqs, everything, self.recipe.loss)[0]
                count += len(samples)
            values.append(set_distance(targets.instance, sums / count, self.recipe.loss))
        return float(torch.stack(values).mean())

    @torch.no_grad()
    def greedy_subset(self, count: int) -> Tensor:
        """Indices into `lr` of patches that together have a low instance distance (`subset.greedy_subset`).

        The distance is the one that the optimization minimizes, on the first draws of the bank, except that a
        subset's features are always normalized with the real statistics.

        Returns:
            int64 `[count]`.
        """
        names = range(min(SUBSET_DRAWS, self.recipe.loss.bank_size))
        functions = torch.stack([self._patch_functions(self.draw(name, self.statistics)) for name in names])
        # All patches have the same number of samples, so the mean over all samples is the mean over the patches.
        return torch.tensor(greedy_subset(functions, functions.mean(1), count, self.recipe.loss))

    def _patch_functions(self, draw: Draw) -> Tensor:
        """`Targets.instance` of every real patch alone: `[N, T]`."""
        pieces = []
        for piece in self.features.split(CHUNK):
            samples = self.samples(self.normalize(piece), draw)
            labels = torch.arange(len(piece), device=samples.device).repeat_interleave(len(samples) // len(piece))
            sums = set_sums(samples, draw.freqs, membership(labels, len(piece)), self.recipe.loss)
            pieces.append(sums * (len(piece) / len(samples)))
        return torch.cat(pieces)

    def _place(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patch, vertical and horizontal position of real tiles."""
        per_patch, across = self.grid.tiles_down * self.grid.tiles_across, self.grid.tiles_across
        place = tiles % per_patch
        return tiles // per_patch, place // across, place % across

    @torch.no_grad()
    def _rms_norm(self, draw: Draw, statistics: Statistics) -> Tensor:
        """Root mean square length of the real samples, a float64 scalar that stays on the device."""
        total, count = torch.zeros((), dtype=torch.float64, device=self.features.device), 0
        for piece in self.features[:: -(-len(self.features) // _RMS_PATCHES)].split(CHUNK):
            samples = self.grid.to_samples(self._local(self.normalize(piece, statistics), draw.filters))
            total += samples.double().square().sum()
            count += len(samples)
        # The features of a one-color photograph are all 0; the clamp avoids a division by 0.
        return (total / count).sqrt().clamp(min=_NORM_EPS)


def represented_patches(lr: Tensor, recipe: Recipe, hardness: np.ndarray | None = None) -> Tensor:
    """Indices of the real patches that the synthetic ones represent (`patches.complexity`).

    Args:
        lr: uint8 `[N, 3, h, w]`, all real patches of a photograph.
        recipe: The recipe.
        hardness: As in `RealSide`.

    Returns:
        int64, ascending, at least one.
    """
    if recipe.patches.complexity == "all":
        return torch.arange(len(lr))
    if recipe.patches.complexity == "hardness":
        assert hardness is not None
        measure = hardness
    else:
        measure = complexity(lr.cpu().numpy())
    # The tolerance keeps all patches if they are equal, however the mean is rounded.
    return torch.from_numpy(np.flatnonzero(measure >= measure.mean() * (1 - 1e-9)))


def extract(network: torch.nn.Module, lr: Tensor, recipe: Recipe, *, whole: bool = False) -> Tensor:
    """Raw features of LR patches `[B, 3, h, w]`, uint8 or float in [0, 1], computed in `features.precision`.

    Patches that together exceed `pieces.WHOLE_PIXELS` are processed in pieces unless `whole`.
    """
    pixels = lr.float() / 255 if lr.dtype == torch.uint8 else lr

    def features(piece: Tensor) -> Tensor:
        if recipe.features.precision == "fp32":
            return feature_maps(network, piece, recipe.features.layer)
        with torch.autocast(piece.device.type, torch.bfloat16):
            return feature_maps(network, piece, recipe.features.layer)

    size = piece_size(len(pixels), pixels[0, 0].numel())
    if whole or size == len(pixels):
        return features(pixels)
    return torch.cat([recomputed(features, piece) for piece in pixels.split(size)])
