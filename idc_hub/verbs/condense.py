"""condense: photographs to a condensed set, ready to push."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idc_hub.dataset.gate import measure_version, recorded
from idc_hub.dataset.pack import pack
from idc_hub.dataset.regenerate import add_version
from idc_hub.errors import RecipeError
from idc_hub.machine import device, machine, packages
from idc_hub.networks.extractors import load_extractor
from idc_hub.networks.teachers import load_teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.forecast import predict_seconds
from idc_hub.runs.launch import default_num_processes, launch
from idc_hub.runs.progress import Reporting, show_progress
from idc_hub.runs.run import Run, default_run_dir
from idc_hub.runs.worker import find_photographs

if TYPE_CHECKING:
    from idc_hub.images.sources import Instance


@dataclass(frozen=True)
class CondensePlan:
    """What `condense(dry_run=True)` found out.

    Attributes:
        run: The Run directory that would be used.
        photographs: Number of photographs.
        real_patches: Number of their real LR patches.
        patches: Number of patches that would stand for them.
        lr_recipe_hash: Hash of everything in the recipe that determines the LR patches.
        predicted_seconds: What the workers will need, by a calibration of about ten seconds on this device.
        counts: Patches of each photograph, by instance id.
    """

    run: str
    photographs: int
    real_patches: int
    patches: int
    lr_recipe_hash: str
    predicted_seconds: float
    counts: dict[str, int]


@dataclass(frozen=True)
class CondenseResult:
    """What `condense` made.

    Attributes:
        run: The Run directory.
        photographs: Number of photographs.
        real_patches: Number of their real LR patches.
        patches: Number of synthetic LR patches.
        lr_digest: Digest of the LR patches.
        hr_version: Name of the HR version by the recipe's teacher.
        held_out: Mean discrepancy (paper Eq. 6, unweighted) of the patches on draws that no step used.
        held_out_random: The same for as many random real patches.
        quality: The gate's figures; see `quality`.
        warnings: A sentence for each figure that fails.
        seconds: Time of this call.
    """

    run: str
    photographs: int
    real_patches: int
    patches: int
    lr_digest: str
    hr_version: str
    held_out: float
    held_out_random: float
    quality: dict[str, Any]
    warnings: list[str]
    seconds: float


def condense(
    recipe: Recipe | str | Path,
    *,
    run_dir: str | Path | None = None,
    num_processes: int | None = None,
    restart: bool = False,
    dry_run: bool = False,
    progress: Reporting = True,
) -> CondenseResult | CondensePlan:
    """Condense photographs: LR patches, HR by the recipe's teacher, and a repository folder ready to push.

    Call it again to continue an interrupted Run. Where nothing is left to do, it does nothing.

    Args:
        recipe: A recipe, or the name, file or Hub repository of one.
        run_dir: The Run directory; `$IDC_RUNS` or `runs`, and the recipe's name, by default.
        num_processes: Workers; None: the visible GPUs, or on a CPU what its cores can feed.
        restart: Discard what the Run directory holds.
        dry_run: Check everything and say what would be done; write nothing.
        progress: True shows bars on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        What was made; with `dry_run`, what would be.

    Raises:
        RecipeError: The recipe cannot be run, or the Run directory belongs to another one.
        ImageError: Photographs cannot be used; all of them are named.
        NetworkError: The extractor or the teacher cannot be loaded or has another scale.
        IncompleteError: Photographs failed or workers died; the same call continues.
        Interrupted: A signal stopped the work; the same call continues.
    """
    begun = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if recipe.method != "idc":
        raise RecipeError(
            f"The recipe {recipe.name} chooses real patches (method: {recipe.method}); nothing is condensed.",
            f"Say `idc select {recipe.method} {recipe.source.path}`, or condense with method=idc.",
        )
    features = recipe.features
    extractor = load_extractor(features.network, features.layer, scale=recipe.scale, size=recipe.patches.size)
    recipe = recipe.with_extractor(extractor.weights_sha256)
    teacher = load_teacher(recipe.teacher.network, scale=recipe.scale, device=device())
    instances = find_photographs(recipe, progress)
    path = Path(run_dir) if run_dir else default_run_dir(recipe.name)
    real_patches = sum(instance.patches for instance in instances)
    if not any(instance.count for instance in instances):
        raise RecipeError(
            f"{real_patches} real patches at a ratio of {recipe.patches.ratio} leave no synthetic patch.",
            "Raise patches.ratio, or set patches.min_per_image=1.",
        )
    processes = num_processes or default_num_processes(recipe, len(instances))
    if dry_run:
        return _plan(path, recipe, instances, extractor.network, processes)
    if restart and (path / "run.json").is_file():
        shutil.rmtree(path)
    run = Run.create(path, recipe, instances, {"packages": packages(), "machine": machine()})
    run.clear_failures()
    with show_progress(run, progress):
        launch(run, processes)
    run.require_finished()
    condensed = pack(run, workers=processes)
    name = recipe.teacher.hr_version or teacher.name
    first = name not in condensed.manifest.hr_versions
    add_version(condensed, teacher, name, set_default=first, progress=progress)
    measured = recorded(run, condensed).get(name) or measure_version(run, condensed, name, teacher, progress)
    return CondenseResult(
        run=str(path),
        photographs=len(instances),
        real_patches=real_patches,
        patches=condensed.manifest.patches,
        lr_digest=condensed.manifest.lr_digest,
        hr_version=name,
        **run.held_out(),
        quality=measured["figures"],
        warnings=measured["warnings"],
        seconds=round(time.monotonic() - begun, 1),
    )


def _plan(
    path: Path, recipe: Recipe, instances: list[Instance], network: torch.nn.Module, processes: int
) -> CondensePlan:
    seconds = predict_seconds(recipe, instances, network, processes, torch.device(device()))
    return CondensePlan(
        run=str(path),
        photographs=len(instances),
        real_patches=sum(instance.patches for instance in instances),
        patches=sum(instance.count for instance in instances),
        lr_recipe_hash=recipe.lr_recipe_hash,
        predicted_seconds=round(seconds, 1),
        counts={instance.id: instance.count for instance in instances},
    )
