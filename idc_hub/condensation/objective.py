"""The loss at one step: the three terms of the paper (Eq. 6-8), computed from the synthetic patches' features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.assignment import Assignment, TileGrid
from idc_hub.condensation.discrepancy import membership, set_distance, set_sums
from idc_hub.condensation.pieces import piece_size, recomputed
from idc_hub.condensation.real_side import Draw, RealSide, Statistics, Targets, generator
from idc_hub.condensation.transforms import convolve

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

PARTNER_BYTES = 1 << 30
"""Size of the cache of real partners' samples, kept from one use of a draw to the next; the rest is recomputed."""


@dataclass(frozen=True)
class Piece:
    """Consecutive synthetic patches that are processed together, and what the assignment says about them.

    Attributes:
        members: float32 `[groups + 1, samples]` from `membership`.
        pairs: Their range among all pairs.
        paired: int64 `[s]`, indices of their samples that have a partner, in ascending order.
        order: int64 `[s]`, the partners' samples in the same order, as indices into those of the tiles of `pairs`.
        weights: float32 `[s]`, the weight of each sample's distance in the pair term.
    """

    members: Tensor
    pairs: slice
    paired: Tensor
    order: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Inputs:
    """What the real side contributes to one step; its shapes stay the same between two assignment events.

    Attributes:
        draw: Filters and frequencies.
        targets: The real side's characteristic functions at this draw.
        partners: `[s, C]`, samples of the real partners in the order of `Piece.paired`; None if there are none, or if
            the patches are split into pieces, where every piece computes its own.
    """

    draw: Draw
    targets: Targets
    partners: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, always in the same order."""
        found = [self.draw.filters, self.draw.freqs, self.targets.instance, self.targets.groups]
        return found if self.partners is None else [*found, self.partners]

    def copy(self) -> Inputs:
        """The same values in tensors of their own."""
        filters, freqs, instance, groups, *partners = (tensor.clone() for tensor in self.tensors)
        return Inputs(Draw(filters, freqs), Targets(instance, groups), partners[0] if partners else None)


class Objective:
    """The three terms of the loss, given raw features of the synthetic patches.

    Args:
        real: The real side.
        grid: The tiles of the synthetic maps.
        recipe: The recipe.
    """

    def __init__(self, real: RealSide, grid: TileGrid, recipe: Recipe) -> None:
        self.real = real
        self.grid = grid
        self.recipe = recipe
        self.samples_of_tiles = grid.samples_of_tiles().to(real.features.device)
        self.piece_size = piece_size(grid.patches, grid.height * grid.width)
        self.take_partners(Assignment.empty(len(grid), real.features.device))

    def take_partners(self, assignment: Assignment) -> None:
        """Precompute what the steps need from the assignment; call it after every event."""
        groups = len(self.real.centroids)
        members = membership(self.grid.sample_labels(assignment.group, groups), groups + 1)
        sizes = members[:groups].sum(1)
        self.present = torch.nonzero(sizes).flatten()
        self.group_sizes = sizes[self.present, None]
        self.paired = torch.nonzero(assignment.partner >= 0).flatten()
        self.partners = assignment.partner[self.paired]
        self.pieces = self._split(members, self._pair_weights(assignment.group[self.paired]))
        self.kept: dict[object, Tensor] = {}
        self.neighborhoods: Tensor | None = None
        if len(self.paired):
            self.neighborhoods = self.real.neighborhoods(self.partners, self.real.statistics)

    def _split(self, members: Tensor, pair_weights: Tensor) -> list[Piece]:
        """Split all samples and pairs into pieces of `piece_size` patches."""
        patches, per_tile = self.grid.patches, self.samples_of_tiles.shape[1]
        tiles, samples = len(self.grid) // patches, members.shape[1] // patches
        pieces = []
        for start in range(0, patches, self.piece_size):
            end = min(start + self.piece_size, patches)
            first, last = ((self.paired < place * tiles).sum().item() for place in (start, end))
            pairs = slice(int(first), int(last))
            # Ascending order: once all samples are paired, they are compared in place without a copy.
            paired, order = self.samples_of_tiles[self.paired[pairs]].flatten().sort()
            weights = pair_weights[pairs.start * per_tile : pairs.stop * per_tile][order]
            here = members[:, start * samples : end * samples]
            pieces.append(Piece(here, pairs, paired - start * samples, order, weights))
        return pieces

    def __call__(self, raw: Tensor, step: int, inputs: Inputs | None = None) -> dict[str, Tensor]:
        """The unweighted terms: `instance`, `group` once a tile is grouped, `pair` once a tile is paired.

        Args:
            raw: float `[n, c, h, w]`, raw features of the synthetic patches.
            step: The step, which selects the draw.
            inputs: What `inputs` returned for the step, if the caller keeps it in tensors of its own.
        """
        real_statistics, syn_statistics = self.real.statistics_for(raw)
        given = inputs or self.inputs(step, real_statistics)

        def sums_and_pair_term(maps: Tensor, piece: Piece) -> tuple[Tensor, ...]:
            samples = self.real.samples(self.real.normalize(maps, syn_statistics), given.draw)
            fused = self.recipe.workers.fused
            sums = set_sums(samples, given.draw.freqs, piece.members, self.recipe.loss, fused=fused)
            if self.neighborhoods is None:
                return (sums,)
            partners = given.partners
            if partners is None:
                partners = self.partner_samples(given.draw, real_statistics, piece)
            return sums, self.pair_term(samples, partners, piece)

        if len(self.pieces) == 1:
            found = sums_and_pair_term(raw, self.pieces[0])
        else:
            pieces = zip(raw.split(self.piece_size), self.pieces, strict=True)
            parts = [recomputed(sums_and_pair_term, *piece) for piece in pieces]
            found = tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        terms = self.distribution_terms(found[0], given.targets)
        if self.neighborhoods is not None:
            terms["pair"] = found[1]
        return terms

    def draw_name(self, step: int) -> object:
        """The draw of a step: a fresh one, or the next of the bank, whose order is reshuffled in every round."""
        loss = self.recipe.loss
        if loss.draws == "fresh":
            return f"step-{step}"
        round_, place = divmod(step, loss.bank_size)
        rng = generator(self.recipe.seed, self.real.instance_id, "order", round_)
        order: list[int] = torch.randperm(loss.bank_size, generator=rng).tolist()
        return order[place]

    def inputs(self, step: int, statistics: Statistics) -> Inputs:
        """The draw of a step, and the real side at this draw.

        Args:
            step: The step.
            statistics: Statistics that normalize the real maps: those of the real side, or `joint` ones.
        """
        name = self.draw_name(step)
        if self.recipe.features.statistics == "joint":
            draw = self.real.draw(name, statistics)
            targets = self.real.targets(draw, statistics)
        else:
            draw, targets = self.real.at(name, keep=self.recipe.loss.draws == "bank")
        # If the samples do not fit into one piece, they are too large to keep as well.
        if self.neighborhoods is None or len(self.pieces) > 1:
            return Inputs(draw, targets, None)
        if name in self.kept:
            return Inputs(draw, targets, self.kept[name])
        partners = self.partner_samples(draw, statistics, self.pieces[0])
        keep = self.recipe.loss.draws == "bank" and self.recipe.features.statistics != "joint"
        if keep and (len(self.kept) + 1) * partners.nbytes <= PARTNER_BYTES:
            self.kept[name] = partners
        return Inputs(draw, targets, partners)

    def distribution_terms(self, sums: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The instance term (Eq. 6), and the group term (Eq. 7) once a tile is grouped.

        Args:
            sums: `set_sums` of all samples by group, `[groups + 1, ...]`; the last entry holds the ungrouped ones.
            targets: The real side at the same draw.
        """
        loss = self.recipe.loss
        terms = {"instance": set_distance(targets.instance, sums.sum(0) / self.grid.samples, loss)}
        if len(self.present):
            means = sums.index_select(0, self.present) / self.group_sizes
            distances = set_distance(targets.groups[self.present], means, loss)
            terms["group"] = distances.sum() if loss.group_reduction == "sum" else distances.mean()
        return terms

    def pair_term(self, samples: Tensor, partners: Tensor, piece: Piece) -> Tensor:
        """The weighted L1 distance (Eq. 8) between a piece's paired samples and its `partner_samples`."""
        paired = samples if len(piece.paired) == len(samples) else samples.index_select(0, piece.paired)
        distances = torch.linalg.vector_norm(paired - partners, ord=1, dim=1, dtype=torch.float32)
        return distances @ piece.weights

    def partner_samples(self, draw: Draw, statistics: Statistics, piece: Piece) -> Tensor:
        """Samples of a piece's real partners, in the order of `piece.paired`."""
        if self.recipe.features.statistics == "joint":
            neighborhoods = self.real.neighborhoods(self.partners[piece.pairs], statistics)
        else:
            assert self.neighborhoods is not None
            neighborhoods = self.neighborhoods[piece.pairs]
        samples = self.grid.to_samples(convolve(neighborhoods, draw.filters))
        return self.real.normalize_samples(samples)[piece.order]

    def _pair_weights(self, groups: Tensor) -> Tensor:
        """Weight of each paired sample's L1 distance, given the group of each pair.

        Eq. 8 sums over the pairs of a group and divides by their number, but leaves open whether the distance of a
        pair is summed or averaged over its elements; `loss.pair_reduction` selects the reading.
        """
        channels = self.recipe.transform.local_channels(self.real.features.shape[1])
        elements = self.grid.tile**2 * channels
        sizes = torch.bincount(groups, minlength=1)[groups].float()
        weights = {
            "mean": 1 / (elements * torch.full_like(sizes, len(groups))),
            "literal": 1 / sizes,
            "group-mean": 1 / (elements * sizes),
            "group-mean-twice": 1 / (elements * sizes.square()),
        }[self.recipe.loss.pair_reduction]
        return weights.repeat_interleave(self.samples_of_tiles.shape[1])


def weighted(terms: dict[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """The terms multiplied by their weights in the recipe."""
    return {term: getattr(recipe.loss, f"{term}_weight") * value for term, value in terms.items()}
