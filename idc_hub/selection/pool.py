"""A selection as a Run: its patches are real ones, chosen by a baseline, or dead leaves.

The choice is made once, when the Run is created, and stored in `run.json`. Then photographs are read and finished one
by one, and measured like condensed ones. Only descriptors of the whole pool are in memory at once, never its patches.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from idc_hub.condensation.condense import held_out_discrepancies
from idc_hub.condensation.real_side import RealSide, extract, generator, non_finite_features, seed_of
from idc_hub.errors import RecipeError
from idc_hub.images.figures import bicubic_errors
from idc_hub.images.leaves import dead_leaves
from idc_hub.images.patches import complexity, hr_patches, lr_patches, places, synthetic_counts
from idc_hub.images.sources import Instance, Source, load_hr, open_source
from idc_hub.machine import device
from idc_hub.networks.teachers import load_teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.run import DamagedError, Run
from idc_hub.runs.worker import full_counts, nearest_real, real_patches
from idc_hub.selection import methods as selection

BATCH = 32
"""Patches per forward pass of the extractor."""
MEASURED = 16
"""Most photographs, drawn by seed, whose held-out discrepancy is measured: it costs far more than the choice."""

Chosen = dict[str, list[int]]
"""Numbers of the chosen patches among a photograph's real ones, ascending, by instance id."""


def selection_recipe(
    method: str,
    source: str | Path,
    *,
    ratio: float = 0.1,
    scale: int = 4,
    seed: int = 0,
    teacher: str = "real",
    name: str | None = None,
    overrides: Iterable[str] = (),
) -> Recipe:
    """Make the recipe of a selection, for `select`.

    Args:
        method: whole, random, herding, herding-deepcore, k-center, dcsr, cf-greedy, hardness, filtered or leaves (see
            `recipe.Recipe.method`).
        source: A folder or zip of photographs, or a Hub dataset.
        ratio: Fraction of the patches to choose, in (0, 1]; the method `whole` takes all of them.
        scale: Super-resolution scale: 2, 3 or 4.
        seed: Seed of all random draws.
        teacher: `real` for the HR pixels of the photographs, or a teacher as for `regenerate`; the method `leaves`
            needs a teacher.
        name: Name of the set; None: made from source and method.
        overrides: Recipe keys as `section.key=value`; they override all other arguments.

    Returns:
        The recipe.

    Raises:
        RecipeError: There is no such method, or another key is wrong.
    """
    default_name = re.sub("[^a-z0-9]+", "-", f"{Path(source).stem}-{method}".lower()).strip("-")
    values = {
        "name": name or default_name,
        "method": method,
        "scale": scale,
        "seed": seed,
        "source": {"path": str(source)},
        # By default a baseline chooses from all patches, and is measured against all of them.
        "patches": {"ratio": 1 if method == "whole" else ratio, "complexity": "all"},
        "teacher": {"network": teacher},
    }
    return Recipe.from_dict(values, overrides)


def begin(
    path: Path,
    recipe: Recipe,
    instances: list[Instance],
    network: torch.nn.Module,
    facts: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> Run:
    """Choose patches and create their Run; if the Run exists, open it with the choice that it stores.

    Args:
        path: The Run directory.
        recipe: A recipe whose method is a selection, with the extractor's digest.
        instances: The photographs, as returned by the survey.
        network: The extractor.
        facts: Further keys of `run.json`: versions, machine.
        progress: Called with (photographs described, photographs in all).

    Returns:
        The Run.

    Raises:
        RecipeError: The ratio is too small for a single patch, or too large for the method's filters; or the directory
            holds something else.
        ImageError: A photograph has changed since the survey.
        NetworkError: The extractor gives NaN or Inf for a photograph.
    """
    if (path / "run.json").is_file():
        try:
            run = Run.open(path)
        except DamagedError:
            pass  # the choice is made again, and is the same
        else:
            run.check_same(recipe, instances)
            return Run.create(path, recipe, run.instances, {})
    counts, chosen = _counts_and_choice(recipe, instances, network, progress)
    if not sum(counts):
        total = sum(instance.patches for instance in instances)
        raise RecipeError(
            f"A ratio of {recipe.patches.ratio} of {total} real patches is less than one patch.",
            "Raise the ratio.",
        )
    counted = [replace(instance, count=count) for instance, count in zip(instances, counts, strict=True)]
    return Run.create(path, recipe, counted, {**facts, "chosen": chosen})


def finish(run: Run, network: torch.nn.Module, progress: Callable[[int, int], None] | None) -> None:
    """Write the chosen patches of every unfinished photograph, and measure those of a sample of photographs.

    Args:
        run: The Run that `begin` returned.
        network: The extractor.
        progress: Called with (photographs done, photographs in all).

    Raises:
        ImageError: A photograph is gone or has changed.
        RunError: An instance file belongs to another recipe or photograph.
        NetworkError: The extractor gives NaN or Inf for a photograph.
    """
    source = open_source(**run.recipe.source.model_dump())
    chosen: Chosen | None = run.state["chosen"]
    measured = _sample(run)
    for done, instance in enumerate(run.instances, start=1):
        if damaged := run.drop_damaged(instance):
            warnings.warn(f"{damaged} It is made again.", stacklevel=1)
        if not run.instance_file(instance.id).is_file():
            begun = time.monotonic()
            _finish(
                run, instance, chosen[instance.id] if chosen else None, source, network, measure=instance.id in measured
            )
            run.append_metrics(instance.id, {"event": "end", "seconds": time.monotonic() - begun, "time": time.time()})
        if progress:
            progress(done, len(run.instances))


def _counts_and_choice(
    recipe: Recipe, instances: list[Instance], network: torch.nn.Module, progress: Callable[[int, int], None] | None
) -> tuple[list[int], Chosen | None]:
    """The number of patches of each photograph, and which; None for those that `finish` chooses or makes."""
    counts = [instance.patches for instance in instances]
    if recipe.method in ("cf-greedy", "leaves"):
        return synthetic_counts(
            full_counts(recipe, instances), recipe.patches.ratio, recipe.patches.min_per_image
        ), None
    pool = np.arange(sum(counts)) if recipe.method == "whole" else _choose(recipe, instances, network, progress)
    ends = np.cumsum(counts)
    parts = np.split(pool, np.searchsorted(pool, ends[:-1]))
    chosen = {
        instance.id: (part - end + instance.patches).tolist()
        for instance, part, end in zip(instances, parts, ends, strict=True)
    }
    return [len(part) for part in parts], chosen


def _choose(
    recipe: Recipe, instances: list[Instance], network: torch.nn.Module, progress: Callable[[int, int], None] | None
) -> np.ndarray:
    """Indices, ascending, into the pool: the real patches of all photographs in order."""
    size, method = sum(instance.patches for instance in instances), recipe.method
    ratio = Fraction(str(recipe.patches.ratio)) * sum(full_counts(recipe, instances)) / size
    in_groups = partial(selection.select_in_groups, size, ratio, recipe.seed)
    if method == "random":
        return in_groups(lambda members, count, seed: selection.random(len(members), count, seed))
    if method == "dcsr":
        descriptors = _descriptors(recipe, instances, _complexity_and_texture, progress)
        return in_groups(
            lambda members, count, seed: selection.dcsr(descriptors[members, 0], descriptors[members, 1:], count, seed)
        )
    if method == "hardness":
        return _hardest(recipe, instances, progress)
    if method == "filtered":
        return _filtered(recipe, instances, progress)
    features = _descriptors(recipe, instances, partial(_mean_features, network=network, recipe=recipe), progress)
    if method == "k-center":
        return in_groups(lambda members, count, seed: selection.k_center(features[members], count, seed))
    herd = {"herding": selection.herding, "herding-deepcore": selection.herding_deepcore}[method]
    return in_groups(lambda members, count, seed: herd(features[members], count))


def _hardest(recipe: Recipe, instances: list[Instance], progress: Callable[[int, int], None] | None) -> np.ndarray:
    settings, grid = recipe.selection, recipe.grid

    def errors(instance: Instance, hr: np.ndarray) -> np.ndarray:
        lr, own = lr_patches(hr, **grid), hr_patches(hr, **grid)
        if settings.hardness == "bicubic":
            return bicubic_errors(lr, own)
        pairs = zip(torch.from_numpy(lr).split(BATCH), torch.from_numpy(np.stack(own)).split(BATCH), strict=True)
        return torch.cat([(network(x).double() - y).square().mean((1, 2, 3)).sqrt() for x, y in pairs]).numpy()

    if settings.hardness != "bicubic":
        network = load_teacher(settings.hardness, scale=recipe.scale, device=device())
    found = _measured(recipe, instances, errors, progress)
    count = _count(recipe, instances, len(found) - synthetic_counts([len(found)], settings.drop_top, 0)[0])
    where = [
        ((instance.id, place.zoom), place.top, place.left)
        for instance in instances
        for place in places(instance.height, instance.width, **grid)
    ]
    distance = settings.spread * recipe.patches.size
    return np.sort(selection.hardest(found, where, count, drop_top=settings.drop_top, distance=distance))


def _filtered(recipe: Recipe, instances: list[Instance], progress: Callable[[int, int], None] | None) -> np.ndarray:
    side = recipe.scale * recipe.patches.size
    if side < 40:  # three blocks in each direction, wherever they begin
        raise RecipeError(f"The filters need HR patches of 40 x 40, not {side} x {side}.", "Raise patches.size.")

    def passing(instance: Instance, hr: np.ndarray) -> np.ndarray:
        where = places(instance.height, instance.width, **recipe.grid)
        return selection.passes(np.stack(hr_patches(hr, **recipe.grid)), where, recipe.scale, recipe.selection)

    passed = np.flatnonzero(_measured(recipe, instances, passing, progress))
    count = _count(recipe, instances, len(passed))
    return np.sort(passed[selection.random(len(passed), count, seed_of(recipe.seed, "filtered"))])


def _count(recipe: Recipe, instances: list[Instance], most: int) -> int:
    """The number of patches to choose from the pool, of which the method leaves `most`."""
    total = sum(full_counts(recipe, instances))
    (count,) = synthetic_counts([total], recipe.patches.ratio, 0)
    if count > most:
        raise RecipeError(
            f"A ratio of {recipe.patches.ratio} is {count} of {total} real patches, but {recipe.method} leaves {most}.",
            "Lower the ratio, or change the limits (selection.*).",
        )
    return count


def _measured(
    recipe: Recipe,
    instances: list[Instance],
    measure: Callable[[Instance, np.ndarray], np.ndarray],
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """What `measure` finds for each real patch, given an instance and its HR photograph, one at a time."""
    source = open_source(**recipe.source.model_dump())
    found = []
    for done, instance in enumerate(instances, start=1):
        found.append(measure(instance, load_hr(source, instance, scale=recipe.scale)))
        if progress:
            progress(done, len(instances))
    return np.concatenate(found)


def _descriptors(
    recipe: Recipe,
    instances: list[Instance],
    describe: Callable[[torch.Tensor], np.ndarray],
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Descriptors of all patches `[N, d]`; the patches of only one photograph are in memory at a time."""

    def pieces() -> Iterator[np.ndarray]:
        source = open_source(**recipe.source.model_dump())
        for done, instance in enumerate(instances, start=1):
            descriptors = describe(real_patches(instance, source, recipe).lr)
            if not np.isfinite(descriptors).all():
                raise non_finite_features(instance.id, recipe, "some of its real patches")
            yield descriptors
            if progress:
                progress(done, len(instances))

    return np.concatenate(list(pieces()))


def _complexity_and_texture(lr: torch.Tensor) -> np.ndarray:
    """Complexity and texture of each patch: float64 `[n, 1 + d]`."""
    patches = lr.numpy()
    return np.column_stack([complexity(patches), selection.texture(patches)])


@torch.no_grad()
def _mean_features(lr: torch.Tensor, network: torch.nn.Module, recipe: Recipe) -> np.ndarray:
    """The spatial mean of each patch's feature map: float32 `[n, c]`."""
    device = next(network.parameters()).device
    means = [extract(network, batch.to(device), recipe).float().mean((2, 3)).cpu() for batch in lr.split(BATCH)]
    return torch.cat(means).numpy()


def _sample(run: Run) -> set[str]:
    """Ids of the photographs whose held-out discrepancy is measured."""
    ids = [instance.id for instance in run.instances if instance.count]
    order = torch.randperm(len(ids), generator=generator(run.recipe.seed, "measured"))[:MEASURED]
    return {ids[number] for number in order.tolist()}


def _finish(
    run: Run, instance: Instance, chosen: list[int] | None, source: Source, network: torch.nn.Module, *, measure: bool
) -> None:
    """Write the patches of one photograph; `chosen` is None for cf-greedy and leaves."""
    recipe = run.recipe
    if instance.count == 0:
        side = recipe.patches.size
        run.write_patches(instance, torch.zeros(0, 3, side, side, dtype=torch.uint8), {"places": []})
        return
    lr, where, hardness = real_patches(instance, source, recipe, measured=measure or recipe.method == "cf-greedy")
    takes_all = chosen is not None and len(chosen) == len(lr)
    real = None
    if (measure or recipe.method == "cf-greedy") and not takes_all:
        on = next(network.parameters()).device
        real = RealSide(lr.to(on), network, recipe, instance.id, hardness)
    facts: dict[str, Any] = {"seed": recipe.seed}
    if recipe.method == "leaves":
        seed = seed_of(recipe.seed, instance.id, "leaves")
        patches = torch.from_numpy(dead_leaves(instance.count, recipe.patches.size, seed))
        facts["nearest_real"] = nearest_real(patches, lr)
    else:
        if chosen is None:
            assert real is not None
            chosen = real.represented[real.greedy_subset(instance.count)].sort().values.tolist()
        patches = lr[chosen]
        facts["nearest_real"] = [0.0] * len(patches)  # each of them is a real one
        unscaled = recipe.patches.scales == (1.0,)
        facts["places"] = [list(where[number][:2] if unscaled else where[number]) for number in chosen]
    if takes_all:
        facts |= {"held_out": 0.0, "held_out_random": 0.0}  # there is no discrepancy
    elif real is not None:
        found = held_out_discrepancies(real, patches.to(on), network)
        facts |= dict(zip(("held_out", "held_out_random"), found, strict=True))
    run.write_patches(instance, patches, facts)
