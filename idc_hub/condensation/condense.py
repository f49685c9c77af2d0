"""Condense photographs: the optimization loop of the paper (Algorithm 1).

`condense_instance` optimizes a few LR patches until their local features are distributed like those of all the
photograph's real patches; `condense_batch` does so for several photographs at a time. The loss is a sum of three
terms: the instance term matches the whole distribution (Eq. 6), the group term matches it within clusters of local
patches (Eq. 7), and the pair term pulls single local patches toward real ones (Eq. 8). Local patches ("tiles") join
groups and pairs progressively (appendix B).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.assignment import Assignment, TileGrid, event_share, proportional_quotas
from idc_hub.condensation.objective import Objective
from idc_hub.condensation.parametrization import Spectrum
from idc_hub.condensation.real_side import HELD_OUT_DRAWS, RealSide, extract, generator, non_finite_features, seed_of
from idc_hub.condensation.state import State, Watch
from idc_hub.condensation.step import TERMS, Step
from idc_hub.errors import one_line
from idc_hub.images.leaves import dead_leaves

if TYPE_CHECKING:
    import numpy as np

    from idc_hub.recipe import Recipe

RANDOM_SUBSETS = 4
"""Random real subsets that finished patches are compared with."""


class Stopped(Exception):
    """The caller asked to stop; `checkpoint` has received the state of every photograph."""


@dataclass
class Condensed:
    """The result for one photograph.

    Attributes:
        patches: uint8 `[n, 3, h, w]`, the synthetic LR patches as they are published.
        held_out: Instance distance (Eq. 6, unweighted) of `patches` on draws that no step used.
        held_out_random: The same for random real subsets of the same size, mean over `RANDOM_SUBSETS`.
        losses: Unweighted terms at the last logged step.
        gradient_norms: Gradient norms of the weighted terms at every logged step, by term.
        seconds: Time that this process spent on this photograph, including setup; an equal share of a batch's time.
        batch: Photographs in its batch.
    """

    patches: Tensor
    held_out: float
    held_out_random: float
    losses: dict[str, float]
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    batch: int = 1


@dataclass(eq=False)
class Photograph:
    """A photograph to condense.

    Attributes:
        lr: uint8 `[N, 3, h, w]`, all real LR patches of the photograph.
        count: Synthetic patches `n`, at least 1.
        instance_id: The photograph's id, which seeds its own random draws.
        resume: The state to continue from.
        checkpoint: Called with the state every `workers.checkpoint_every` steps and when stopping.
        log: Called every `workers.log_every` steps with the step, the terms and their gradient norms.
        hardness: As in `RealSide`.
    """

    lr: Tensor
    count: int
    instance_id: str
    resume: State | None = None
    checkpoint: Callable[[State], None] = lambda state: None
    log: Callable[[dict[str, float]], None] = lambda line: None
    hardness: np.ndarray | None = None


Outcomes = Iterator[tuple[Photograph, Condensed | Exception]]


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
        lr: uint8 `[N, 3, h, w]`, as in `Photograph`.
        count: Synthetic patches `n`, at least 1.
        network: The extractor, frozen and in eval mode, on the device to use.
        recipe: The recipe.
        instance_id: The photograph's id.
        resume: The state to continue from.
        checkpoint: As in `Photograph`.
        log: As in `Photograph`.
        should_stop: Called before every step.

    Returns:
        The condensed patches and their measurements.

    Raises:
        Stopped: When `should_stop` returned True, after `checkpoint` received the state.
        DivergedError: If the loss, a gradient or the state is NaN or Inf; `checkpoint` never receives such a state.
        NetworkError: If the extractor returns NaN or Inf for the real patches or for the finished ones.
    """
    photograph = Photograph(lr, count, instance_id, resume, checkpoint, log)
    ((_, found),) = condense_batch([photograph], network, recipe, should_stop=should_stop)
    if isinstance(found, Exception):
        raise found
    return found


def condense_batch(
    photographs: Sequence[Photograph],
    network: torch.nn.Module,
    recipe: Recipe,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcomes:
    """Condense several photographs together: at each step, one pass through the network for all of their patches.

    Except for rounding, a photograph's result does not depend on the others. A photograph that fails leaves the batch.
    If the common step fails, for example for lack of memory, the two halves of the batch continue one after the other,
    and so on until the photograph that cannot continue is alone.

    Args:
        photographs: The photographs, all at the same step.
        network: The extractor, frozen and in eval mode, on the device to use.
        recipe: The recipe.
        should_stop: Called before every step.

    Yields:
        Each photograph with its result, or with the error that ended it, as soon as either is known.

    Raises:
        Stopped: When `should_stop` returned True, after `checkpoint` received the state of every photograph.
        ValueError: The photographs are at different steps.
    """
    if len({photograph.resume.step if photograph.resume else 0 for photograph in photographs}) > 1:
        raise ValueError("Photographs of one batch must be at the same step.")
    left = list(photographs)
    members: list[Member] = []
    try:
        for photograph, outcome in _together(photographs, members, network, recipe, should_stop):
            left.remove(photograph)
            yield photograph, outcome
        return
    except Stopped:
        raise
    except Exception as error:
        if len(left) == 1:
            yield left[0], error
            return
        reason = f"{type(error).__name__}: {one_line(error)}"
    # Outside of the except clause, since the error keeps alive what filled the memory.
    warnings.warn(f"{len(left)} photographs failed together ({reason}); they continue in two halves.", stacklevel=1)
    for photograph, failure in _each(members, Member.leave):
        left.remove(photograph)
        yield photograph, failure
    members.clear()
    middle = len(left) // 2
    for half in (left[:middle], left[middle:]):
        yield from condense_batch(half, network, recipe, should_stop=should_stop)


class Member:
    """A photograph in a batch: its real side, its state, and what was measured of it.

    Args:
        photograph: The photograph.
        network: The extractor.
        recipe: The recipe.
        batch: Photographs in the batch.
    """

    def __init__(self, photograph: Photograph, network: torch.nn.Module, recipe: Recipe, batch: int) -> None:
        self.begun = time.monotonic()
        self.photograph, self.network, self.recipe, self.batch = photograph, network, recipe, batch
        device = next(network.parameters()).device
        lr = photograph.lr.to(device)
        self.real = RealSide(lr, network, recipe, photograph.instance_id, photograph.hardness)
        self.grid = replace(self.real.grid, patches=photograph.count)
        self.state = photograph.resume or initial_state(self.real, self.grid)
        self.event: tuple[int, Assignment] | None = None
        self.objective = Objective(self.real, self.grid, recipe)
        self.objective.take_partners(self.state.assignment)
        self.watch = Watch(self.state, recipe, photograph.instance_id)
        self.norms: dict[str, list[float]] = {term: [] for term in TERMS}
        self.measured: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def check(self) -> None:
        """Raise a DivergedError unless the optimization consists of numbers."""
        self.watch.check()

    def assign(self, event: int) -> None:
        """Make an assignment event."""
        self.check()
        self.event = self.state.step, deepcopy(self.state.assignment)
        update_assignment(self.state, self.real, self.grid, self.network, self.recipe, event)
        self.objective.take_partners(self.state.assignment)

    def log(self) -> None:
        """Log what the last step measured."""
        if not all(map(math.isfinite, self.measured.values())):
            raise self.watch.diverged(self.state.step)
        for term in TERMS:
            self.norms[term] += [value for name, value in self.measured.items() if name == f"gradient_{term}"]
        assignment = self.state.assignment
        done = {"grouped": assignment.group, "paired": assignment.partner}
        shares = {name: int((tiles >= 0).sum()) / len(tiles) for name, tiles in done.items()}
        self.last = {**self.measured, **shares}
        self.photograph.log({"step": self.state.step, **self.last, "seconds": time.monotonic() - self.begun})

    def save(self) -> None:
        """Write a checkpoint."""
        self.check()
        self.photograph.checkpoint(self.state)

    def leave(self) -> None:
        """Leave a batch whose step failed, to continue from the same step in another one."""
        if self.event and self.event[0] == self.state.step:
            self.state.assignment = self.event[1]  # the event is repeated with its step
        if self.state.step > self.watch.start:
            self.save()
        self.photograph.resume = self.state

    def finish(self) -> Condensed:
        """The result, after the last step."""
        self.check()
        finished = (self.state.patches.detach() * 255).round().to(torch.uint8)
        held_out, held_out_random = held_out_discrepancies(self.real, finished, self.network)
        return Condensed(
            patches=finished.cpu(),
            held_out=held_out,
            held_out_random=held_out_random,
            losses={term: self.last[term] for term in TERMS if term in self.last},
            gradient_norms=self.norms,
            seconds=(time.monotonic() - self.begun) / self.batch,
            batch=self.batch,
        )


def _together(
    photographs: Sequence[Photograph],
    members: list[Member],
    network: torch.nn.Module,
    recipe: Recipe,
    should_stop: Callable[[], bool],
) -> Outcomes:
    """The loop of `condense_batch`; `members` are those under way. What it raises concerns all of them."""
    for photograph in photographs:
        try:
            members.append(Member(photograph, network, recipe, len(photographs)))
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            yield photograph, error
    events, workers, steps = assignment_events(recipe), recipe.workers, recipe.optimizer.steps
    advance: Step | None = None
    while members and (step := members[0].state.step) < steps:
        if should_stop():
            yield from _each(members, Member.save)
            raise Stopped
        measured = (step + 1) % workers.log_every == 0 or step + 1 == steps
        if step in events:
            yield from _each(members, partial(Member.assign, event=events[step]))
            advance = None
        elif measured:
            yield from _each(members, Member.check)
        if not members:
            return
        if advance is None or len(advance.members) != len(members):
            advance = Step([(member.state, member.objective, member.watch) for member in members], network, recipe)
        lines = advance(step, learning_rate(recipe, step), measured=measured)
        for member in members:
            member.state.step = step + 1
        if measured:
            for member, line in zip(members, lines, strict=True):
                member.measured = line
            yield from _each(members, Member.log)
        if (step + 1) % workers.checkpoint_every == 0 and step + 1 < steps:
            yield from _each(members, Member.save)
    yield from _each(members, Member.finish)


def _each(members: list[Member], action: Callable[[Member], Condensed | None]) -> Outcomes:
    """Do something for each member; those that fail or return a result leave. Lack of memory concerns all of them."""
    for member in list(members):
        try:
            outcome: Condensed | Exception | None = action(member)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            outcome = error
        if outcome is not None:
            members.remove(member)
            yield member.photograph, outcome


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


def initial_state(real: RealSide, grid: TileGrid) -> State:
    """The state before the first step: the initial patches in their parametrization (`optimizer.parametrization`)."""
    spectrum = Spectrum.of(real.lr, real.recipe.optimizer.parametrization)
    return State.start(initial_patches(real, grid.patches, spectrum), len(grid), spectrum)


def initial_patches(real: RealSide, count: int, spectrum: Spectrum | None = None) -> Tensor:
    """The patches before the first step, float32 `[count, 3, h, w]` in [0, 1] (`optimizer.initial`).

    `noise` is N(0.5, 0.25) clamped, as in the released code of NCFM, which introduced the distance, or such noise with
    a spectrum (`Spectrum.shaped`); `leaves` are `dead_leaves`; `real` is a random subset of the real patches;
    `cf-greedy` is `RealSide.greedy_subset`.
    """
    recipe = real.recipe
    if recipe.optimizer.initial == "noise":
        rng = generator(recipe.seed, real.instance_id, "initial")
        noise = 0.25 * torch.randn((count, *real.lr.shape[1:]), generator=rng)
        return (spectrum.shaped(noise) if spectrum else noise + 0.5).clamp(0, 1).to(real.features.device)
    if recipe.optimizer.initial == "leaves":
        leaves = dead_leaves(count, real.lr.shape[-1], seed_of(recipe.seed, real.instance_id, "initial"))
        return torch.from_numpy(leaves).to(real.lr.device).float() / 255
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
