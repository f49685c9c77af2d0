"""Condense one photograph: the loop of the paper (Algorithm 1), top to bottom.

`condense_instance` optimizes a few LR patches until their local features are distributed as those of all the
photograph's real patches. Three terms are added: the instance term matches the whole distribution (Eq. 6), the
group term matches it inside clusters of local patches (Eq. 7), the pair term pulls single local patches to
real ones (Eq. 8). Local patches ("tiles") join groups and pairs progressively (appendix B).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.assignment import Assignment, TileGrid, event_share, proportional_quotas
from idc_hub.condensation.objective import Objective, weighted
from idc_hub.condensation.real_side import HELD_OUT_DRAWS, RealSide, extract, generator

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

TERMS = ("instance", "group", "pair")
MOMENTS = ("exp_avg", "exp_avg_sq")
RANDOM_SUBSETS = 4


class Stopped(Exception):
    """The caller asked to stop; the state has been handed to `checkpoint`."""


@dataclass
class State:
    """All that one optimization carries from step to step; what a checkpoint holds.

    Attributes:
        step: Steps done.
        patches: float32 `[n, 3, h, w]` in [0, 1] (outside it only with `optimizer.clamp: end`), a leaf.
        shifts: float32 `[tiles, 2]`, learned deformation (y, x) of each pair in pixels, a leaf.
        moments: Adam's step count and two moments of `patches` and of `shifts`; Adam updates them in place.
        assignment: Group and partner of every tile.
    """

    step: int
    patches: Tensor
    shifts: Tensor
    moments: dict[str, Tensor]
    assignment: Assignment

    @classmethod
    def start(cls, patches: Tensor, tiles: int) -> State:
        """The state before the first step, from initial patches."""
        shifts = torch.zeros(tiles, 2, device=patches.device)
        moments: dict[str, Tensor] = {}
        for name, leaf in (("patches", patches), ("shifts", shifts)):
            moments |= {f"{name}.{moment}": torch.zeros_like(leaf) for moment in MOMENTS}
            moments[f"{name}.step"] = torch.zeros(())
        return cls(0, patches, shifts, moments, Assignment.empty(tiles, patches.device))

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a safetensors file."""
        return {
            "step": torch.tensor(self.step),
            "patches": self.patches.detach(),
            "shifts": self.shifts.detach(),
            "group": self.assignment.group,
            "partner": self.assignment.partner,
            **self.moments,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> State:
        """The state that `to_tensors` wrote, on a device."""
        rest = {
            # Adam keeps its step count on the CPU.
            name: tensor.clone().to("cpu" if name.endswith("step") else device)
            for name, tensor in tensors.items()
        }
        step = int(rest.pop("step"))
        patches, shifts = rest.pop("patches"), rest.pop("shifts")
        assignment = Assignment(rest.pop("group"), rest.pop("partner"))
        return cls(step, patches, shifts, rest, assignment)


@dataclass
class Condensed:
    """What came of one photograph.

    Attributes:
        patches: uint8 `[n, 3, h, w]`, the synthetic LR patches as consumers read them.
        held_out: Discrepancy (Eq. 6, unweighted) of `patches` on draws that no step used.
        held_out_random: The same for random real subsets of the same size, mean over `RANDOM_SUBSETS`.
        losses: Unweighted terms at the last logged step.
        gradient_norms: Norms of the three weighted terms' gradients at every logged step, by term.
        seconds: Time of this process on this photograph, set-up included.
    """

    patches: Tensor
    held_out: float
    held_out_random: float
    losses: dict[str, float]
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def condense_instance(
    lr: Tensor,
    offsets: Tensor,
    count: int,
    network: torch.nn.Module,
    recipe: Recipe,
    instance_id: str,
    *,
    resume: State | None = None,
    checkpoint: Callable[[State], None] = lambda state: None,
    log: Callable[[dict[str, float]], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Condensed:
    """Optimize `count` synthetic LR patches for one photograph (paper Algorithm 1).

    The result depends on the arguments alone: on a CPU, with the same number of threads, a resumed run ends with
    the bytes of an uninterrupted one.

    Args:
        lr: uint8 `[N, 3, h, w]`, all real LR patches of the photograph.
        offsets: int64 `[N, 2]`, their (top, left) in the LR photograph, pixels.
        count: Synthetic patches `n`, at least 1.
        network: The extractor, frozen and in eval mode, on the device to use.
        recipe: The recipe.
        instance_id: The photograph's id; seeds what is drawn for it alone.
        resume: The state to go on from.
        checkpoint: Called with the state every `workers.checkpoint_every` steps and when stopping.
        log: Called every `workers.log_every` steps with the step, the terms and their gradient norms.
        should_stop: Asked before every step.

    Returns:
        The condensed patches and what was measured on them.

    Raises:
        Stopped: After `should_stop` said so and the state was handed to `checkpoint`.
        ValueError: If a term of the loss is not finite when it is logged.
    """
    begun = time.monotonic()
    device = next(network.parameters()).device
    real = RealSide(lr.to(device), offsets, network, recipe, instance_id)
    patches = initial_patches(real, count) if resume is None else resume.patches
    grid = replace(real.grid, patches=count)
    state = resume or State.start(patches, len(grid))
    optimizer = _adam(state, recipe)
    objective = Objective(real, grid, recipe)
    objective.take_partners(state.assignment)
    events = assignment_events(recipe)
    norms: dict[str, list[float]] = {term: [] for term in TERMS}
    last: dict[str, float] = {}

    while state.step < recipe.optimizer.steps:
        if should_stop():
            checkpoint(state)
            raise Stopped
        step = state.step
        if step in events:
            update_assignment(state, real, grid, network, recipe, events[step])
            objective.take_partners(state.assignment)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        raw = extract(network, state.patches, recipe)
        terms, penalty = objective(raw, state.shifts, step)
        if (step + 1) % recipe.workers.log_every == 0:
            last = _measure(terms, state, recipe, norms)
            log({"step": step + 1, **last, "seconds": time.monotonic() - begun})
        (sum(weighted(terms, recipe).values()) + penalty).backward()  # type: ignore[union-attr]
        optimizer.step()
        if recipe.optimizer.clamp == "step":
            state.patches.data.clamp_(0, 1)
        state.step = step + 1
        if state.step % recipe.workers.checkpoint_every == 0 and state.step < recipe.optimizer.steps:
            checkpoint(state)

    finished = (state.patches.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    held_out, held_out_random = held_out_discrepancies(real, finished, network)
    return Condensed(
        patches=finished.cpu(),
        held_out=held_out,
        held_out_random=held_out_random,
        losses={term: last[term] for term in TERMS if term in last},
        gradient_norms=norms,
        seconds=time.monotonic() - begun,
    )


def assignment_events(recipe: Recipe) -> dict[int, int]:
    """Number of the assignment event, from 1 on, at each step that has one; none where nothing follows from it."""
    if recipe.loss.group_weight == recipe.loss.pair_weight == 0:
        return {}
    steps = recipe.assignment.event_steps(recipe.optimizer.steps)
    return {step: number for number, step in enumerate(steps, start=1)}


def held_out_discrepancies(real: RealSide, patches: Tensor, network: torch.nn.Module) -> tuple[float, float]:
    """Discrepancy (Eq. 6, unweighted) of finished patches on draws that no step and no choice used.

    Args:
        real: The photograph.
        patches: uint8 `[n, 3, h, w]`, on the device of `network`.
        network: The extractor.

    Returns:
        That of `patches`, and the mean of `RANDOM_SUBSETS` random real subsets of the same size.
    """
    names: list[object] = [f"held-out-{k}" for k in range(HELD_OUT_DRAWS)]
    subsets = [random_subset(real, len(patches), "held-out", k) for k in range(RANDOM_SUBSETS)]
    at_random = [real.discrepancy(real.lr[subset], network, names) for subset in subsets]
    return real.discrepancy(patches, network, names), sum(at_random) / len(at_random)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Adam's step size at a step: times `gamma` from each milestone on (paper C.1)."""
    passed = sum(step >= milestone for milestone in recipe.optimizer.milestone_steps())
    return recipe.optimizer.learning_rate * recipe.optimizer.gamma**passed


def initial_patches(real: RealSide, count: int) -> Tensor:
    """The patches before the first step, float32 `[count, 3, h, w]` in [0, 1] (`optimizer.initial`).

    `noise` is N(0.5, 0.25) clamped, as NCFM's released code starts; `real` is a random subset of the real
    patches; `cf-greedy` is `RealSide.greedy_subset`.
    """
    recipe = real.recipe
    if recipe.optimizer.initial == "noise":
        rng = generator(recipe.seed, real.instance_id, "initial")
        noise = torch.randn((count, *real.lr.shape[1:]), generator=rng)
        return (noise * 0.25 + 0.5).clamp(0, 1).to(real.features.device)
    if recipe.optimizer.initial == "cf-greedy":
        chosen = real.greedy_subset(count)
    else:
        chosen = random_subset(real, count, "initial")
    return real.lr[chosen].float() / 255


def random_subset(real: RealSide, count: int, *name: object) -> Tensor:
    """`count` different real patches at random; with repetition only where there are too few. int64 `[count]`."""
    rng = generator(real.recipe.seed, real.instance_id, *name)
    rounds = [torch.randperm(len(real.lr), generator=rng) for _ in range(-(-count // len(real.lr)))]
    return torch.cat(rounds)[:count]


@torch.no_grad()
def update_assignment(
    state: State, real: RealSide, grid: TileGrid, network: torch.nn.Module, recipe: Recipe, event: int
) -> None:
    """One event of the progressive assignment (paper appendix B): pair what was grouped before, then group more.

    Event `k` = 1 .. `assignment.events` groups a share of the tiles; one further event only pairs the last share.
    """
    spec = recipe.assignment
    raw = extract(network, state.patches, recipe)
    statistics = real.statistics_for(raw)[1]
    assignment = state.assignment
    syn_tiles = grid.cut(real.crop(real.normalize(raw, statistics)))
    assignment.pair(syn_tiles, real.tiles, real.labels, real.content, spec.pairing)
    if event > spec.events:
        return
    quotas = proportional_quotas(real.sizes.cpu(), len(grid))
    if spec.quotas == "proportional":
        room = event_share(quotas, event, spec.events)
        limit = int(room.sum())
    else:
        room = quotas - torch.bincount(assignment.group[assignment.group >= 0].cpu(), minlength=len(quotas))
        limit = int(event_share(torch.tensor(len(grid)), event, spec.events))
    assignment.add_to_groups(real.descriptors(raw, statistics), real.centroids, room, limit)


def _adam(state: State, recipe: Recipe) -> torch.optim.Adam:
    """Adam over the patches and the shifts, its moments being those of the state."""
    leaves = {"patches": state.patches, "shifts": state.shifts}
    optimizer = torch.optim.Adam(
        [{"params": [leaf.requires_grad_()], "lr": recipe.optimizer.learning_rate} for leaf in leaves.values()],
        foreach=False,
    )
    for name, leaf in leaves.items():
        optimizer.state[leaf] = {key: state.moments[f"{name}.{key}"] for key in ("step", *MOMENTS)}
    return optimizer


def _measure(terms: dict[str, Tensor], state: State, recipe: Recipe, norms: dict[str, list[float]]) -> dict[str, float]:
    """Values of the terms and norms of their weighted gradients in the pixels; three backward passes."""
    line = {term: float(value.detach()) for term, value in terms.items()}
    if not all(map(math.isfinite, line.values())):
        raise ValueError(f"The loss is not finite at step {state.step + 1}: {line}. Try a lower learning rate.")
    values = weighted(terms, recipe)
    leaves = (state.patches, state.shifts)
    for term in values:
        # The other terms count nothing, but their part of the graph is walked: what was made again of it is let go.
        slopes = [torch.full_like(value, float(name == term)) for name, value in values.items()]
        gradient = torch.autograd.grad(list(values.values()), leaves, slopes, retain_graph=True, allow_unused=True)[0]
        norms[term].append(float(gradient.norm()))
        line[f"gradient_{term}"] = norms[term][-1]
    tiles = len(state.assignment.group)
    line["grouped"] = int((state.assignment.group >= 0).sum()) / tiles
    line["paired"] = int((state.assignment.partner >= 0).sum()) / tiles
    return line
