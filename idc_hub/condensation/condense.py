"""Condense one photograph: the optimization loop of the paper (Algorithm 1).

`condense_instance` optimizes a few LR patches until their local features are distributed like those of all the
photograph's real patches. The loss is a sum of three terms: the instance term matches the whole distribution (Eq. 6),
the group term matches it within clusters of local patches (Eq. 7), and the pair term pulls single local patches toward
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
from idc_hub.condensation.real_side import HELD_OUT_DRAWS, RealSide, extract, generator, non_finite_features
from idc_hub.errors import DivergedError

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

TERMS = ("instance", "group", "pair")
RANDOM_SUBSETS = 4
"""Random real subsets that finished patches are compared with."""


class Stopped(Exception):
    """The caller asked to stop; `checkpoint` has received the state."""


@dataclass
class State:
    """Everything that the optimization carries from step to step, and what a checkpoint holds.

    Attributes:
        step: Steps done.
        patches: float32 `[n, 3, h, w]` in [0, 1], a leaf.
        adam: Adam's state of `patches` (`step`, `exp_avg`, `exp_avg_sq`); Adam updates it in place.
        assignment: Group and partner of every tile.
    """

    step: int
    patches: Tensor
    adam: dict[str, Tensor]
    assignment: Assignment

    @classmethod
    def start(cls, patches: Tensor, tiles: int) -> State:
        """The state before the first step."""
        moments = {name: torch.zeros_like(patches) for name in ("exp_avg", "exp_avg_sq")}
        return cls(0, patches, {"step": torch.zeros(()), **moments}, Assignment.empty(tiles, patches.device))

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a safetensors file."""
        return {
            "step": torch.tensor(self.step),
            "patches": self.patches.detach(),
            "group": self.assignment.group,
            "partner": self.assignment.partner,
            **{f"adam.{name}": tensor for name, tensor in self.adam.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> State:
        """The state that `to_tensors` returned, on a device."""
        # Adam keeps its step count on the CPU.
        own = {name: tensor.clone().to("cpu" if name == "adam.step" else device) for name, tensor in tensors.items()}
        adam = {name.removeprefix("adam."): tensor for name, tensor in own.items() if name.startswith("adam.")}
        return cls(int(own["step"]), own["patches"], adam, Assignment(own["group"], own["partner"]))


class Watch:
    """Whether an optimization still consists of numbers: noted at every step on the device, asked for now and then.

    Asking at every step would make the host wait for a GPU.

    Args:
        state: The state, before the next step.
        recipe: The recipe.
        instance_id: The photograph's id, for the sentence.
    """

    def __init__(self, state: State, recipe: Recipe, instance_id: str) -> None:
        self.state, self.recipe, self.instance_id = state, recipe, instance_id
        self.start = state.step
        self.sound = torch.ones((), dtype=torch.bool, device=state.patches.device)
        self.sound_steps = torch.zeros((), dtype=torch.int64, device=state.patches.device)

    def note(self, loss: Tensor) -> None:
        """Take in a step's loss and gradients, before the step is made of them."""
        assert self.state.patches.grad is not None
        for value in (loss.detach(), self.state.patches.grad):
            self.sound &= value.isfinite().all()
        self.sound_steps += self.sound

    def check(self) -> None:
        """Read what was noted, and look at the state itself: nothing that is not sound may be saved.

        Raises:
            DivergedError: Something is NaN or Inf.
        """
        state = self.state
        moments = [state.adam[name] for name in ("exp_avg", "exp_avg_sq")]
        sound = [tensor.detach().isfinite().all() for tensor in (state.patches, *moments)]
        if not bool(torch.stack([self.sound, *sound]).all()):
            # Adam's moments overflow without a gradient that does: then it is the last step that is known.
            raise self.diverged(min(self.start + int(self.sound_steps) + 1, max(state.step, 1)))

    def diverged(self, step: int) -> DivergedError:
        """The sentence for a step, counted from 1."""
        optimizer, every = self.recipe.optimizer, self.recipe.workers.checkpoint_every
        fp32 = {"features": self.recipe.features.precision, "transform": self.recipe.transform.precision}
        exact = [f"{section}.precision=fp32" for section, precision in fp32.items() if precision != "fp32"]
        saved = max((step - 1) // every * every, self.start)
        return DivergedError(
            f"The optimization of {self.instance_id} has NaN or Inf from step {step} of {optimizer.steps} on.",
            f"Nothing of it was saved after step {saved}; finished photographs stay. Condense into another --run-dir "
            f"with {' and '.join([*exact, 'a lower optimizer.learning_rate'])} (it is {optimizer.learning_rate:g}).",
        )


@dataclass
class Condensed:
    """The result for one photograph.

    Attributes:
        patches: uint8 `[n, 3, h, w]`, the synthetic LR patches as they are published.
        held_out: Instance distance (Eq. 6, unweighted) of `patches` on draws that no step used.
        held_out_random: The same for random real subsets of the same size, mean over `RANDOM_SUBSETS`.
        losses: Unweighted terms at the last logged step.
        gradient_norms: Gradient norms of the weighted terms at every logged step, by term.
        seconds: Time that this process spent on this photograph, including setup.
    """

    patches: Tensor
    held_out: float
    held_out_random: float
    losses: dict[str, float]
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def condense_instance(
    lr: Tensor,
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

    The result depends only on the arguments. On a CPU with the same number of threads, a resumed run produces the same
    bytes as an uninterrupted one.

    Args:
        lr: uint8 `[N, 3, h, w]`, all real LR patches of the photograph.
        count: Synthetic patches `n`, at least 1.
        network: The extractor, frozen and in eval mode, on the device to use.
        recipe: The recipe.
        instance_id: The photograph's id, which seeds its own random draws.
        resume: The state to continue from.
        checkpoint: Called with the state every `workers.checkpoint_every` steps and when stopping.
        log: Called every `workers.log_every` steps with the step, the terms and their gradient norms.
        should_stop: Called before every step.

    Returns:
        The condensed patches and their measurements.

    Raises:
        Stopped: When `should_stop` returned True, after `checkpoint` received the state.
        DivergedError: If the loss, a gradient or the state is NaN or Inf; `checkpoint` never receives such a state.
        NetworkError: If the extractor returns NaN or Inf for the real patches or for the finished ones.
    """
    begun = time.monotonic()
    device = next(network.parameters()).device
    real = RealSide(lr.to(device), network, recipe, instance_id)
    grid = replace(real.grid, patches=count)
    state = resume or State.start(initial_patches(real, count), len(grid))
    optimizer = _adam(state, recipe)
    objective = Objective(real, grid, recipe)
    objective.take_partners(state.assignment)
    events = assignment_events(recipe)
    watch = Watch(state, recipe, instance_id)
    norms: dict[str, list[float]] = {term: [] for term in TERMS}
    last: dict[str, float] = {}

    while state.step < recipe.optimizer.steps:
        if should_stop():
            watch.check()
            checkpoint(state)
            raise Stopped
        step = state.step
        if step in events:
            watch.check()
            update_assignment(state, real, grid, network, recipe, events[step])
            objective.take_partners(state.assignment)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        raw = extract(network, state.patches, recipe)
        terms = objective(raw, step)
        if (step + 1) % recipe.workers.log_every == 0 or step + 1 == recipe.optimizer.steps:
            watch.check()
            last = _measure(terms, state, recipe, norms)
            if not all(map(math.isfinite, last.values())):
                raise watch.diverged(step + 1)
            log({"step": step + 1, **last, "seconds": time.monotonic() - begun})
        loss: Tensor = sum(weighted(terms, recipe).values())  # type: ignore[assignment]
        loss.backward()
        watch.note(loss)
        optimizer.step()
        state.patches.data.clamp_(0, 1)
        state.step = step + 1
        if state.step % recipe.workers.checkpoint_every == 0 and state.step < recipe.optimizer.steps:
            watch.check()
            checkpoint(state)

    watch.check()
    finished = (state.patches.detach() * 255).round().to(torch.uint8)
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
    """Steps of the assignment events to their numbers, from 1; empty if no term of the loss uses the assignment."""
    if recipe.loss.group_weight == recipe.loss.pair_weight == 0:
        return {}
    steps = recipe.assignment.event_steps(recipe.optimizer.steps)
    return {step: number for number, step in enumerate(steps, start=1)}


def held_out_discrepancies(real: RealSide, patches: Tensor, network: torch.nn.Module) -> tuple[float, float]:
    """Instance distance (Eq. 6, unweighted) of finished patches on draws that no step and no choice used.

    Args:
        real: The photograph.
        patches: uint8 `[n, 3, h, w]`, on the device of `network`.
        network: The extractor.

    Returns:
        The distance of `patches`, and the mean of `RANDOM_SUBSETS` random real subsets of the same size.

    Raises:
        NetworkError: One of the distances is NaN or Inf.
    """
    names: list[object] = [f"held-out-{k}" for k in range(HELD_OUT_DRAWS)]
    subsets = [random_subset(real, len(patches), "held-out", k) for k in range(RANDOM_SUBSETS)]
    at_random = [real.discrepancy(real.lr[subset], network, names) for subset in subsets]
    found = real.discrepancy(patches, network, names), sum(at_random) / len(at_random)
    if not all(map(math.isfinite, found)):
        raise non_finite_features(real.instance_id, real.recipe, "the finished patches or random real ones")
    return found


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate at a step: multiplied by `gamma` at each milestone (paper appendix C.1)."""
    passed = sum(step >= milestone for milestone in recipe.optimizer.milestone_steps())
    return recipe.optimizer.learning_rate * recipe.optimizer.gamma**passed


def initial_patches(real: RealSide, count: int) -> Tensor:
    """The patches before the first step, float32 `[count, 3, h, w]` in [0, 1] (`optimizer.initial`).

    `noise` is N(0.5, 0.25) clamped, as in the released code of NCFM, which introduced the distance; `real` is a random
    subset of the real patches; `cf-greedy` is `RealSide.greedy_subset`.
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
    """Indices int64 `[count]` of random real patches, distinct unless there are fewer than `count`."""
    rng = generator(real.recipe.seed, real.instance_id, *name)
    rounds = [torch.randperm(len(real.lr), generator=rng) for _ in range(-(-count // len(real.lr)))]
    return torch.cat(rounds)[:count]


@torch.no_grad()
def update_assignment(
    state: State, real: RealSide, grid: TileGrid, network: torch.nn.Module, recipe: Recipe, event: int
) -> None:
    """One event of the progressive assignment (paper appendix B): pair the tiles grouped so far, then group more.

    Events 1 .. `assignment.events` each group a share of the tiles; one more event only pairs the last share.
    """
    raw = extract(network, state.patches, recipe)
    statistics = real.statistics_for(raw)[1]
    syn_tiles = grid.cut(real.crop(real.normalize(raw, statistics)))
    state.assignment.pair(syn_tiles, real.tiles, real.labels)
    events = recipe.assignment.events
    if event <= events:
        room = event_share(proportional_quotas(real.sizes.cpu(), len(grid)), event, events)
        state.assignment.add_to_groups(real.descriptors(raw, statistics), real.centroids, room)


def _adam(state: State, recipe: Recipe) -> torch.optim.Adam:
    """Adam on the patches, with the moments of the state."""
    optimizer = torch.optim.Adam([state.patches.requires_grad_()], lr=recipe.optimizer.learning_rate, foreach=False)
    optimizer.state[state.patches] = state.adam
    return optimizer


def _measure(terms: dict[str, Tensor], state: State, recipe: Recipe, norms: dict[str, list[float]]) -> dict[str, float]:
    """Values of the terms, and norms of the weighted terms' gradients in the pixels; one backward pass per term."""
    line = {term: float(value.detach()) for term, value in terms.items()}
    values = weighted(terms, recipe)
    for term in values:
        # The other terms get weight 0, so that the whole graph is walked and recomputed tensors are freed.
        grad_outputs = [torch.full_like(value, float(name == term)) for name, value in values.items()]
        gradient = torch.autograd.grad(list(values.values()), state.patches, grad_outputs, retain_graph=True)[0]
        norms[term].append(float(gradient.norm()))
        line[f"gradient_{term}"] = norms[term][-1]
    tiles = len(state.assignment.group)
    line["grouped"] = int((state.assignment.group >= 0).sum()) / tiles
    line["paired"] = int((state.assignment.partner >= 0).sum()) / tiles
    return line
