"""A selection as a Run whose patches are real ones, chosen by a baseline.

The choice is made once, when the Run is created, and stored in `run.json`. Then photographs are read and finished one
by one, and measured like condensed ones. Only descriptors of the whole pool are in memory at once, never its patches.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from idc_hub.condensation.condense import held_out_discrepancies
from idc_hub.condensation.real_side import RealSide, extract, generator, non_finite_features
from idc_hub.errors import RecipeError
from idc_hub.images.patches import complexity, synthetic_counts
from idc_hub.images.sources import Instance, Source, open_source
from idc_hub.recipe import Recipe
from idc_hub.runs.run import DamagedError, Run
from idc_hub.runs.worker import real_patches
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
        method: whole, random, herding, herding-deepcore, k-center, dcsr or cf-greedy (see `selection.methods`).
        source: A folder or zip of photographs, or a Hub dataset.
        ratio: Fraction of the patches to choose, in (0, 1]; the method `whole` takes all of them.
        scale: Super-resolution scale: 2, 3 or 4.
        seed: Seed of all random draws.
        teacher: `real` for the HR pixels of the photographs, or a teacher as for `regenerate`.
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
        RecipeError: The ratio is too small for a single patch, or the directory holds something else.
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
    """The number of patches of each photograph, and which; None for cf-greedy, which chooses them in `finish`."""
    counts = [instance.patches for instance in instances]
    if recipe.method == "cf-greedy":
        return synthetic_counts(counts, recipe.patches.ratio, recipe.patches.min_per_image), None
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
    in_groups = partial(selection.select_in_groups, size, recipe.patches.ratio, recipe.seed)
    if method == "random":
        return in_groups(lambda members, count, seed: selection.random(len(members), count, seed))
    if method == "dcsr":
        descriptors = _descriptors(recipe, instances, _complexity_and_texture, progress)
        return in_groups(
            lambda members, count, seed: selection.dcsr(descriptors[members, 0], descriptors[members, 1:], count, seed)
        )
    features = _descriptors(recipe, instances, partial(_mean_features, network=network, recipe=recipe), progress)
    if method == "k-center":
        return in_groups(lambda members, count, seed: selection.k_center(features[members], count, seed))
    herd = {"herding": selection.herding, "herding-deepcore": selection.herding_deepcore}[method]
    return in_groups(lambda members, count, seed: herd(features[members], count))


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
            lr, _ = real_patches(instance, source, recipe)
            descriptors = describe(lr)
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
    """Write the patches of one photograph; `chosen` is None for cf-greedy."""
    recipe = run.recipe
    if instance.count == 0:
        side = recipe.patches.size
        run.write_patches(instance, torch.zeros(0, 3, side, side, dtype=torch.uint8), {"places": []})
        return
    lr, places = real_patches(instance, source, recipe)
    facts: dict[str, float] = {}
    if chosen is not None and len(chosen) == len(lr):
        facts = {"held_out": 0.0, "held_out_random": 0.0}  # all patches are chosen: there is no discrepancy
    elif chosen is not None and not measure:
        lr, places = lr[chosen], [places[number] for number in chosen]
    else:
        device = next(network.parameters()).device
        real = RealSide(lr.to(device), network, recipe, instance.id)
        if chosen is None:
            subset = real.represented[real.greedy_subset(instance.count).sort().values]
        else:
            subset = torch.tensor(chosen)
        lr, places = lr[subset], [places[number] for number in subset.tolist()]
        names = ("held_out", "held_out_random")
        facts = dict(zip(names, held_out_discrepancies(real, lr.to(device), network), strict=True))
    nearest_real = [0.0] * len(lr)  # each of them is a real one
    cut_out = [list(place if recipe.patches.scales != (1.0,) else place[:2]) for place in places]
    run.write_patches(instance, lr, {**facts, "nearest_real": nearest_real, "seed": recipe.seed, "places": cut_out})
