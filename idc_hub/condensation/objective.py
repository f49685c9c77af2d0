"""What the synthetic patches are held to at a step: the three terms of the loss (paper Eq. 6-8)."""

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
"""Rows of real partners that are kept from one meeting of a draw to the next; what does not fit is made again."""


@dataclass(frozen=True)
class Piece:
    """Some consecutive synthetic patches, and what follows for them from the assignment.

    Attributes:
        members: float32 `[groups + 1, rows]` of `membership`.
        pairs: Their pairs among all.
        pair_rows: int64 `[r]`, their rows that have a partner's row, in order.
        pair_order: int64 `[r]`, where the partners' rows stand among those of the windows of `pairs`.
        pair_weights: float32 `[r]`, what the distance of each counts.
    """

    members: Tensor
    pairs: slice
    pair_rows: Tensor
    pair_order: Tensor
    pair_weights: Tensor


class Objective:
    """The three terms of the loss at a step, on the synthetic side alone.

    Args:
        real: The real side.
        grid: The tiles of the synthetic maps.
        recipe: The recipe.
    """

    def __init__(self, real: RealSide, grid: TileGrid, recipe: Recipe) -> None:
        self.real = real
        self.grid = grid
        self.recipe = recipe
        self.margin = 1 if recipe.loss.deformation == "translation" else 0
        self.rows_of_tiles = grid.rows_of_tiles().to(real.features.device)
        self.piece_size = piece_size(grid.patches, grid.height * grid.width)
        self.take_partners(Assignment.empty(len(grid), real.features.device))

    def take_partners(self, assignment: Assignment) -> None:
        """Look up what follows from the assignment, so that no step has to; call it after every event."""
        groups = len(self.real.centroids)
        members = membership(self.grid.row_labels(assignment.group, groups), groups + 1)
        sizes = members[:groups].sum(1)
        self.present = torch.nonzero(sizes).flatten()
        self.group_sizes = sizes[self.present, None]
        self.paired = torch.nonzero(assignment.partner >= 0).flatten()
        self.partners = assignment.partner[self.paired]
        self.pieces = self._cut(members, self._pair_weights(assignment.group[self.paired]))
        self.kept: dict[object, Tensor] = {}
        self.windows: Tensor | None = None
        if len(self.paired):
            self.windows = self.real.windows(self.partners, self.real.statistics, self.margin)

    def _cut(self, members: Tensor, pair_weights: Tensor) -> list[Piece]:
        """What is known of all rows and pairs, by pieces of `piece_size` patches."""
        patches, in_tile = self.grid.patches, self.rows_of_tiles.shape[1]
        tiles, rows = len(self.grid) // patches, members.shape[1] // patches
        pieces = []
        for start in range(0, patches, self.piece_size):
            end = min(start + self.piece_size, patches)
            first, last = ((self.paired < place * tiles).sum().item() for place in (start, end))
            pairs = slice(int(first), int(last))
            # Rows of the maps in their own order: once all are paired, they are compared as they lie in memory.
            pair_rows, order = self.rows_of_tiles[self.paired[pairs]].flatten().sort()
            weights = pair_weights[pairs.start * in_tile : pairs.stop * in_tile][order]
            here = members[:, start * rows : end * rows]
            pieces.append(Piece(here, pairs, pair_rows - start * rows, order, weights))
        return pieces

    def __call__(self, raw: Tensor, shifts: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor | float]:
        """Unweighted terms and the weighted penalty on the deformation.

        Args:
            raw: float `[n, c, h, w]`, raw features of the synthetic patches.
            shifts: float `[tiles, 2]`, see `State`.
            step: The step, which chooses the draw.
        """
        real_statistics, syn_statistics = self.real.statistics_for(raw)
        draw, targets = self.at(step, real_statistics)

        def look_at(maps: Tensor, piece: Piece) -> tuple[Tensor, ...]:
            """Sums for the instance and for the group term, and the pair term once a tile is paired."""
            rows = self.real.rows(self.real.normalize(maps, syn_statistics), draw)
            sums = self.sums(rows, draw, piece)
            if self.windows is None:
                return sums
            partners = self.partner_rows(step, draw, shifts, real_statistics, piece)
            return *sums, self.pair_term(rows, partners, piece)

        if len(self.pieces) == 1:
            found = look_at(raw, self.pieces[0])
        else:
            cut = zip(raw.split(self.piece_size), self.pieces, strict=True)
            parts = [recomputed(look_at, *piece) for piece in cut]
            found = tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        terms = self.distribution_terms(found[0], found[1], targets)
        if self.windows is None:
            return terms, 0.0
        terms["pair"] = found[2]
        if not self.margin:
            return terms, 0.0
        return terms, self.recipe.loss.deformation_weight * shifts[self.paired].square().mean()

    def draw_name(self, step: int) -> object:
        """The draw of a step: fresh, or the bank walked in an order reshuffled every round."""
        loss = self.recipe.loss
        if loss.draws == "fresh":
            return f"step-{step}"
        round_, place = divmod(step, loss.bank_size)
        rng = generator(self.recipe.seed, self.real.instance_id, "order", round_)
        order: list[int] = torch.randperm(loss.bank_size, generator=rng).tolist()
        return order[place]

    def at(self, step: int, statistics: Statistics) -> tuple[Draw, Targets]:
        """The draw of a step, and the real side at it."""
        name = self.draw_name(step)
        if self.recipe.features.statistics == "joint":
            draw = self.real.draw(name, statistics)
            return draw, self.real.targets(draw, statistics)
        return self.real.at(name, keep=self.recipe.loss.draws == "bank")

    def sums(self, rows: Tensor, draw: Draw, piece: Piece) -> tuple[Tensor, Tensor]:
        """What `set_sums` gives for the rows `[S, C]` of a piece and their groups, `[groups + 1, ...]`.

        At the frequencies of the instance term, and at those of the group term.
        """
        loss = self.recipe.loss
        sums = set_sums(rows, draw.freqs, piece.members, loss)
        if draw.group_freqs is draw.freqs or not len(self.present):
            return sums, sums
        return sums, set_sums(rows, draw.group_freqs, piece.members, loss)

    def distribution_terms(self, sums: Tensor, group_sums: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The instance term, and the group term once a tile is grouped, from `sums` over all rows."""
        loss = self.recipe.loss
        terms = {"instance": set_distance(targets.instance, sums.sum(0) / self.grid.rows, loss)}
        if len(self.present):
            means = group_sums.index_select(0, self.present) / self.group_sizes
            distances = set_distance(targets.groups[self.present], means, loss)
            terms["group"] = distances.sum() if loss.group_reduction == "sum" else distances.mean()
        return terms

    def pair_term(self, rows: Tensor, partners: Tensor, piece: Piece) -> Tensor:
        """The L1 distance of a piece's paired rows to `partner_rows`, reduced as the recipe says."""
        paired = rows if len(piece.pair_rows) == len(rows) else rows.index_select(0, piece.pair_rows)
        distances = torch.linalg.vector_norm(paired - partners, ord=1, dim=1, dtype=torch.float32)
        return distances @ piece.pair_weights

    def partner_rows(self, step: int, draw: Draw, shifts: Tensor, statistics: Statistics, piece: Piece) -> Tensor:
        """Rows of a piece's real partners, as many as their tiles have, in the order of the synthetic rows."""
        joint = self.recipe.features.statistics == "joint"
        if joint:
            windows = self.real.windows(self.partners[piece.pairs], statistics, self.margin)
            return self._transformed(windows, draw, shifts, piece)
        assert self.windows is not None
        windows = self.windows[piece.pairs]
        # What is too large for one piece is too large to be kept as well.
        if self.margin or self.recipe.loss.draws == "fresh" or len(self.pieces) > 1:
            return self._transformed(windows, draw, shifts, piece)
        name = self.draw_name(step)
        if name in self.kept:
            return self.kept[name]
        rows = self._transformed(windows, draw, shifts, piece)
        if (len(self.kept) + 1) * rows.nbytes <= PARTNER_BYTES:
            self.kept[name] = rows
        return rows

    def _transformed(self, windows: Tensor, draw: Draw, shifts: Tensor, piece: Piece) -> Tensor:
        if self.margin:
            windows = shift_windows(windows, shifts[self.paired[piece.pairs]])
        return self.real.norm_rows(self.grid.to_rows(convolve(windows, draw.rows)))[piece.pair_order]

    def _pair_weights(self, groups: Tensor) -> Tensor:
        """What each row's L1 distance counts (`loss.pair_reduction`; algorithm note 6.9), from its pair's group."""
        channels = self.recipe.transform.local_channels(self.real.features.shape[1])
        elements = self.grid.tile**2 * channels
        sizes = torch.bincount(groups, minlength=1)[groups].float()
        weights = {
            "mean": 1 / (elements * torch.full_like(sizes, len(groups))),
            "literal": 1 / sizes,
            "group-mean": 1 / (elements * sizes),
            "group-mean-twice": 1 / (elements * sizes.square()),
        }[self.recipe.loss.pair_reduction]
        return weights.repeat_interleave(self.rows_of_tiles.shape[1])


def shift_windows(windows: Tensor, shifts: Tensor) -> Tensor:
    """Move each window by its learned translation and cut the margin of one pixel off.

    Args:
        windows: `[P, c, s + 2, s + 2]`.
        shifts: `[P, 2]` (y, x) in pixels; clamped to [-1, 1].

    Returns:
        `[P, c, s, s]`, bilinearly interpolated; differentiable in `shifts`.
    """
    side = windows.shape[-1] - 2
    steps = torch.arange(side, dtype=windows.dtype, device=windows.device) - (side - 1) / 2
    shifts = shifts.clamp(-1, 1)
    # With align_corners=False a pixel is 2 / (side + 2) wide in grid_sample's coordinates.
    y = (steps + shifts[:, :1]) * (2 / (side + 2))
    x = (steps + shifts[:, 1:]) * (2 / (side + 2))
    where = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    return torch.nn.functional.grid_sample(windows, where, align_corners=False)


def weighted(terms: dict[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """The terms times their weights in the recipe."""
    return {term: getattr(recipe.loss, f"{term}_weight") * value for term, value in terms.items()}
