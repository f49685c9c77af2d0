"""From finished photographs to the LR side of the repository tree."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idc_hub.atomic import write_text_atomically
from idc_hub.dataset.manifest import FILE_NAME, FORMAT, FORMAT_VERSION, Manifest
from idc_hub.dataset.shards import write_shards
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def pack(run: Run, facts: dict[str, Any], packages: dict[str, str]) -> Manifest:
    """Pack the finished photographs of a Run into `repo/lr` and describe them in `repo/idc.json`.

    HR versions that stand in the tree and belong to the same LR patches are kept; a repeated call changes nothing.

    Args:
        run: A Run of which every photograph is finished.
        facts: What the card tells of the condensation.
        packages: Versions of the packages that made it.

    Returns:
        The manifest, saved.

    Raises:
        RunError: If a finished file is missing or damaged.
    """
    recipe = run.recipe
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "lr_recipe_hash": recipe.lr_recipe_hash,
        "scale": recipe.scale,
    }
    digest = write_shards(run.repo / "lr", _finished(run), metadata=metadata)
    before = Manifest.load(run.repo) if (run.repo / FILE_NAME).is_file() else None
    if before is not None and before.lr_digest == digest:
        manifest = before
    else:
        # HR patches of other LR patches would be pairs that do not fit.
        shutil.rmtree(run.repo / "data", ignore_errors=True)
        manifest = Manifest(
            name=recipe.name,
            scale=recipe.scale,
            patch_size=recipe.patches.size,
            lr_recipe_hash=recipe.lr_recipe_hash,
            lr_digest=digest,
            instances=sum(instance.count > 0 for instance in run.instances),
            patches=sum(instance.count for instance in run.instances),
            packages=packages,
            condensation=facts,
        )
        manifest.save(run.repo)
    write_text_atomically(run.repo / "recipe.yaml", publishable(recipe).to_yaml())
    return manifest


def publishable(recipe: Recipe) -> Recipe:
    """The recipe without the place of the photographs on this machine: a local path keeps its last part only."""
    path = Path(recipe.source.path).expanduser()
    if not path.exists():
        return recipe
    source = recipe.source.model_copy(update={"path": path.resolve().name or "photographs"})
    return recipe.model_copy(update={"source": source})


def _finished(run: Run) -> Iterator[tuple[str, Tensor]]:
    for instance in run.instances:
        if instance.count:
            yield instance.id, run.read_patches(instance)
