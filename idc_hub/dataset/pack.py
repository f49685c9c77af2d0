"""Pack the finished photographs of a Run into the LR side of its repository folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idc_hub.atomic import write_text_atomically
from idc_hub.dataset.condensed_set import RECIPE, CondensedSet, repository_lock
from idc_hub.dataset.manifest import FORMAT, FORMAT_VERSION, MANIFEST, Manifest
from idc_hub.dataset.shards import Facts, write_shards
from idc_hub.errors import RunError, enumerated
from idc_hub.images.sources import count_conversions
from idc_hub.machine import machine, packages
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def pack(run: Run, *, workers: int) -> CondensedSet:
    """Write the LR patches of a finished Run to `repo/lr`, and `idc.json` and `recipe.yaml` beside it.

    Never deletes an HR version. Calling it again changes nothing.

    Args:
        run: A Run with all photographs finished.
        workers: Number of processes that worked on it, for the card.

    Returns:
        The set.

    Raises:
        RunError: A finished file is missing or damaged; or there are HR versions, but idc.json is missing or belongs to
            other LR patches.
    """
    recipe = run.recipe
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "lr_recipe_hash": recipe.lr_recipe_hash,
        "scale": recipe.scale,
    }
    with repository_lock(run.repo):
        manifest = Manifest.load(run.repo) if (run.repo / MANIFEST).is_file() else None
        hr_versions = [path.name for path in (run.repo / "data").glob("*") if any(path.glob("train-*"))]
        if hr_versions and manifest is None:
            raise RunError(
                f"{run.repo} has the HR versions {enumerated(hr_versions)}, but no {MANIFEST} that describes them.",
                f"Restore {MANIFEST}. To make the HR versions again instead, delete {run.repo / 'data'}.",
            )
        expected = manifest.lr_digest if manifest and hr_versions else None
        digest = write_shards(
            run.repo / "lr", _patches(run), metadata=metadata, facts=_index_facts(run), expected=expected
        )
        if manifest is None or manifest.lr_digest != digest:
            manifest = Manifest(
                name=recipe.name,
                scale=recipe.scale,
                patch_size=recipe.patches.size,
                lr_recipe_hash=recipe.lr_recipe_hash,
                lr_digest=digest,
                instances=sum(instance.count > 0 for instance in run.instances),
                patches=sum(instance.count for instance in run.instances),
                packages=packages(),
                condensation=_facts(run, workers),
            )
            manifest.save(run.repo)
        write_text_atomically(run.repo / RECIPE, publishable(recipe).to_yaml())
    return CondensedSet(run.repo, manifest)


def publishable(recipe: Recipe) -> Recipe:
    """The recipe without local paths: those of photographs, extractor and teacher keep only their last part.

    The extractor is identified by its digest in the recipe, the teacher by its digest in idc.json.
    """
    source = recipe.source.model_copy(update={"path": _without_folder(recipe.source.path, "photographs")})
    features = recipe.features.model_copy(update={"network": _without_folder(recipe.features.network, "extractor")})
    teacher = recipe.teacher.model_copy(update={"network": _without_folder(recipe.teacher.network, "teacher")})
    return recipe.model_copy(update={"source": source, "features": features, "teacher": teacher})


def _without_folder(location: str, unnamed: str) -> str:
    """The last part of a local path; anything else, such as a name or a Hub id, unchanged."""
    path = Path(location).expanduser()
    is_local = path.is_absolute() or path.exists() or location.startswith(("~", ".")) or "\\" in location
    return (path.resolve().name or unnamed) if is_local else location


def _patches(run: Run) -> Iterator[tuple[str, Tensor]]:
    for instance in run.instances:
        if instance.count:
            yield instance.id, run.read_patches(instance)


def _index_facts(run: Run) -> dict[str, Facts]:
    """Facts for the index of the LR shards; photographs that an older idc-hub condensed have no `nearest_real`."""
    return {
        instance.id: Facts(source_sha256=instance.sha256, nearest_real=run.read_facts(instance).get("nearest_real"))
        for instance in run.instances
        if instance.count
    }


def _facts(run: Run, workers: int) -> dict[str, Any]:
    """Facts about a condensation or a selection, for the card."""
    recipe = run.recipe
    ends = [line for instance in run.instances for line in run.read_metrics(instance.id) if line["event"] == "end"]
    return {
        "photographs": len(run.instances),
        "real_patches": sum(instance.patches for instance in run.instances),
        "conversions": count_conversions(run.instances),
        **({"steps": recipe.optimizer.steps} if recipe.method == "idc" else {}),
        **run.held_out(),
        "worker_seconds": round(sum(line["seconds"] for line in ends), 1),
        "workers": workers,
        **machine(),
    }
