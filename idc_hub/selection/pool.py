"""A selection as a Run: real patches chosen by a baseline stand where condensed ones would.

What is chosen is decided once, when the Run is made, and noted in `run.json`; after that one photograph at a time is
read, measured as a condensed one is, and finished. Of a large pool only descriptors are in memory at once.
"""

from __future__ import annotations

import re
import time
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
from idc_hub.runs.run import Run
from idc_hub.runs.worker import real_patches
from idc_hub.selection import methods as selection

BATCH = 32
"""Patches whose features are taken at a time."""
MEASURED = 16
"""Photographs, drawn by the seed, whose held-out discrepancy is measured: it costs far more than choosing does."""

Chosen = dict[str, list[int]]
"""For each photograph the numbers of the windows chosen, rising."""


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
    """The recipe of a selection, for `select`.

    Args:
        method: whole, random, herding, herding-deepcore, k-center, dcsr or cf-greedy (`selection.methods`).
        source: A folder or zip of photographs, or a Hub dataset.
        ratio: Which part of the patches to choose; all of them where the method is `whole`.
        scale: How many times larger HR is than LR.
        seed: Seed of every random draw.
        teacher: `real` for the photographs' own HR, or what `regenerate` takes.
        name: Name of the set; None: one that is made of source and method.
        overrides: Further recipe keys as `section.key=value`; they win over all of these.

    Raises:
        RecipeError: There is no such method, or another key is wrong.
    """
    made_up = re.sub("[^a-z0-9]+", "-", f"{Path(source).stem}-{method}".lower()).strip("-")
    values = {
        "name": name or made_up,
        "method": method,
        "scale": scale,
        "seed": seed,
        "source": {"path": str(source)},
        # A baseline is chosen from, and measured against, all patches unless somebody says otherwise.
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
    """Choose patches and make the Run that will hold them, or come back to it and to what it chose.

    Args:
        path: The Run directory.
        recipe: A recipe whose method is a selection, with the extractor's digest.
        instances: The photographs, as the survey found them.
        network: The extractor.
        facts: What `run.json` further says: versions, machine.
        progress: Called with (photographs described, photographs in all).

    Raises:
        RecipeError: The ratio leaves no patch, or the directory holds something else.
        ImageError: A photograph has changed since the survey.
    """
    if (path / "run.json").is_file():
        run = Run.open(path)
        run.check_same(recipe, instances)
        return Run.create(path, recipe, run.instances, {})
    counts, chosen = _shares_of_method(recipe, instances, network, progress)
    if not sum(counts):
        windows = sum(instance.patches for instance in instances)
        raise RecipeError(
            f"{windows} real patches at a ratio of {recipe.patches.ratio} leave none to choose.",
            "Raise the ratio.",
        )
    counted = [replace(instance, count=count) for instance, count in zip(instances, counts, strict=True)]
    return Run.create(path, recipe, counted, {**facts, "chosen": chosen})


def finish(run: Run, network: torch.nn.Module, progress: Callable[[int, int], None] | None) -> None:
    """Write the chosen patches of every photograph that is not finished, with what was measured on them.

    Args:
        run: What `begin` returned.
        network: The extractor.
        progress: Called with (photographs done, photographs in all).

    Raises:
        ImageError: A photograph is gone or has changed.
        RunError: A finished file is damaged.
    """
    source = open_source(**run.recipe.source.model_dump())
    chosen: Chosen | None = run.state["chosen"]
    measured = _sample(run)
    for done, instance in enumerate(run.instances, start=1):
        if not run.is_finished(instance):
            begun = time.monotonic()
            _finish(
                run, instance, chosen[instance.id] if chosen else None, source, network, measure=instance.id in measured
            )
            run.append_metrics(instance.id, {"event": "end", "seconds": time.monotonic() - begun, "time": time.time()})
        if progress:
            progress(done, len(run.instances))


def _shares_of_method(
    recipe: Recipe, instances: list[Instance], network: torch.nn.Module, progress: Callable[[int, int], None] | None
) -> tuple[list[int], Chosen | None]:
    """How many patches each photograph gives, and which; None where each photograph chooses on its own later."""
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
    """Indices into the pool of all patches, in the order of photographs and windows, by a method over the pool."""
    size, method = sum(instance.patches for instance in instances), recipe.method
    in_groups = partial(selection.select_in_groups, size, recipe.patches.ratio, recipe.seed)
    if method == "random":
        return in_groups(lambda members, count, seed: selection.random(len(members), count, seed))
    if method == "dcsr":
        describe = _described(recipe, instances, _edges_and_texture, progress)
        return in_groups(
            lambda members, count, seed: selection.dcsr(describe[members, 0], describe[members, 1:], count, seed)
        )
    features = _described(recipe, instances, partial(_mean_features, network=network, recipe=recipe), progress)
    if method == "k-center":
        return in_groups(lambda members, count, seed: selection.k_center(features[members], count, seed))
    herd = {"herding": selection.herding, "herding-deepcore": selection.herding_deepcore}[method]
    return in_groups(lambda members, count, seed: herd(features[members], count))


def _described(
    recipe: Recipe,
    instances: list[Instance],
    describe: Callable[[torch.Tensor], np.ndarray],
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Descriptors of all patches `[N, d]`, with the patches of one photograph in memory at a time."""

    def pieces() -> Iterator[np.ndarray]:
        source = open_source(**recipe.source.model_dump())
        for done, instance in enumerate(instances, start=1):
            lr, _ = real_patches(instance, source, recipe)
            described = describe(lr)
            if not np.isfinite(described).all():
                raise non_finite_features(instance.id, recipe, "some of its real patches")
            yield described
            if progress:
                progress(done, len(instances))

    return np.concatenate(list(pieces()))


def _edges_and_texture(lr: torch.Tensor) -> np.ndarray:
    """Complexity, then texture: float64 `[n, 1 + d]`."""
    patches = lr.numpy()
    return np.column_stack([complexity(patches), selection.texture(patches)])


@torch.no_grad()
def _mean_features(lr: torch.Tensor, network: torch.nn.Module, recipe: Recipe) -> np.ndarray:
    """The mean over space of each patch's feature map: float32 `[n, c]`."""
    device = next(network.parameters()).device
    means = [extract(network, piece.to(device), recipe).float().mean((2, 3)).cpu() for piece in lr.split(BATCH)]
    return torch.cat(means).numpy()


def _sample(run: Run) -> set[str]:
    """Ids of the photographs that are measured."""
    ids = [instance.id for instance in run.instances if instance.count]
    order = torch.randperm(len(ids), generator=generator(run.recipe.seed, "measured"))[:MEASURED]
    return {ids[number] for number in order.tolist()}


def _finish(
    run: Run, instance: Instance, chosen: list[int] | None, source: Source, network: torch.nn.Module, *, measure: bool
) -> None:
    """Finish one photograph."""
    recipe = run.recipe
    if instance.count == 0:
        side = recipe.patches.size
        run.write_patches(instance, torch.zeros(0, 3, side, side, dtype=torch.uint8), {"windows": []})
        return
    lr, places = real_patches(instance, source, recipe)
    facts: dict[str, float] = {}
    if chosen is not None and len(chosen) == len(lr):
        facts = {"held_out": 0.0, "held_out_random": 0.0}  # what a photograph without a patch left out is
    elif chosen is not None and not measure:
        lr, places = lr[chosen], places[chosen]
    else:
        device = next(network.parameters()).device
        real = RealSide(lr.to(device), network, recipe, instance.id)
        if chosen is None:
            subset = real.represented[real.greedy_subset(instance.count).sort().values]
        else:
            subset = torch.tensor(chosen)
        lr, places = lr[subset], places[subset]
        names = ("held_out", "held_out_random")
        facts = dict(zip(names, held_out_discrepancies(real, lr.to(device), network), strict=True))
    run.write_patches(instance, lr, {**facts, "seed": recipe.seed, "windows": places.tolist()})
