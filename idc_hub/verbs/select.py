"""select: real patches chosen by a baseline, as a set like any other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.dataset.gate import measure_version, recorded
from idc_hub.dataset.hr import REAL, HRSource, RealHR
from idc_hub.dataset.pack import pack
from idc_hub.dataset.regenerate import add_version
from idc_hub.errors import RecipeError
from idc_hub.machine import device, machine, packages
from idc_hub.networks.extractors import load_extractor
from idc_hub.networks.teachers import load_teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.progress import Reporting, counting
from idc_hub.runs.run import default_run_dir
from idc_hub.runs.worker import find_photographs
from idc_hub.selection.pool import begin, finish


@dataclass(frozen=True)
class SelectResult:
    """What `select` made.

    Attributes:
        run: The Run directory.
        photographs: Number of photographs.
        real_patches: Number of their real LR patches.
        patches: How many were chosen.
        lr_digest: Digest of the LR patches.
        hr_version: Name of the HR version.
        held_out: Mean discrepancy (paper Eq. 6, unweighted) of the chosen patches on draws that no choice used.
            Measured on a sample of the photographs, except for cf-greedy, which looks at all of them anyway.
        held_out_random: The same for as many random real patches.
        quality: The gate's figures; see `quality`. There are no warnings: a baseline is what it is.
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
    seconds: float


def select(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    progress: Reporting = True,
) -> SelectResult:
    """Choose real patches by a baseline (paper appendix C.2), in a Run like any other: evaluate, push, regenerate it.

    Call it again to continue an interrupted selection. Where nothing is left to do, it does nothing.

    Args:
        recipe: A recipe whose `method` is not idc; `selection.pool.selection_recipe` makes one from a few arguments.
            Its teacher may be `real`, the photographs' own HR.
        run_dir: The Run directory; `$IDC_RUNS` or `runs`, and the recipe's name, by default.
        progress: True shows bars on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        What was made.

    Raises:
        RecipeError: The recipe condenses, the ratio leaves no patch, or the Run directory belongs to something else.
        ImageError: Photographs cannot be used; all of them are named.
        NetworkError: The extractor or the teacher cannot be loaded or has another scale.
    """
    begun = time.monotonic()
    if recipe.method == "idc":
        raise RecipeError("The method idc condenses patches; it does not choose any.", "Say `idc condense RECIPE`.")
    features, teacher = recipe.features, recipe.teacher
    extractor = load_extractor(
        features.network, features.layer, scale=recipe.scale, size=recipe.patches.size, device=device()
    )
    recipe = recipe.with_extractor(extractor.weights_sha256)
    source: HRSource | None = None
    if teacher.network != REAL:
        source = load_teacher(teacher.network, scale=recipe.scale, device=device())
    instances = find_photographs(recipe, progress)
    path = Path(run_dir) if run_dir else default_run_dir(recipe.name)
    with counting("describing photographs", progress) as count:
        facts = {"packages": packages(), "machine": machine()}
        run = begin(path, recipe, instances, extractor.network, facts, count)
    with counting("photographs finished", progress) as count:
        finish(run, extractor.network, count)
    condensed = pack(run, workers=1)
    source = source or RealHR(run)
    name = teacher.hr_version or source.name
    first = name not in condensed.manifest.hr_versions
    add_version(condensed, source, name, set_default=first, progress=progress)
    measured = recorded(run, condensed).get(name) or measure_version(run, condensed, name, source, progress)
    return SelectResult(
        run=str(path),
        photographs=len(instances),
        real_patches=sum(instance.patches for instance in instances),
        patches=condensed.manifest.patches,
        lr_digest=condensed.manifest.lr_digest,
        hr_version=name,
        **run.held_out(),
        quality=measured["figures"],
        seconds=round(time.monotonic() - begun, 1),
    )
