"""select: make a set by a baseline, to compare a condensed set with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.dataset.gate import measured_version
from idc_hub.dataset.hr import REAL, HRSource, RealHR
from idc_hub.dataset.pack import pack
from idc_hub.dataset.regenerate import add_version
from idc_hub.errors import RecipeError
from idc_hub.images.sources import count_conversions
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
    """Result of `select`.

    Attributes:
        run: The Run directory.
        photographs: Number of photographs.
        real_patches: Number of their real LR patches.
        patches: Number of chosen patches.
        lr_digest: SHA-256 of the LR patches.
        hr_version: Name of the HR version.
        held_out: Mean discrepancy (paper Eq. 6, unweighted) of the chosen patches on draws that no choice used.
            Measured on a sample of the photographs; for cf-greedy, on all of them.
        held_out_random: The same for equally many random real patches.
        quality: Figures of the quality gate, as `QualityResult.figures`; empty without `gate`. A baseline gets no
            warnings.
        seconds: Wall-clock seconds of this call.
        conversions: Number of photographs that took each conversion, such as "gray converted to RGB".
        left_out: Names of the files of the source that are no photographs.
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
    conversions: dict[str, int]
    left_out: list[str]


def select(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    gate: bool = True,
    progress: Reporting = True,
) -> SelectResult:
    """Choose real patches by a baseline (paper appendix C.2), or draw dead leaves; the result is a Run that every other
    verb accepts.

    If interrupted, call it again to continue. A finished Run is checked and not made again.

    Args:
        recipe: A recipe whose `method` is not idc, such as `selection_recipe` makes. Its teacher may be `real`: the HR
            pixels of the photographs.
        run_dir: The Run directory; None: the recipe's name in `$IDC_RUNS`, or in `runs`.
        gate: Whether to measure the figures of the quality gate, which can take as long as everything else.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        Counts, digest and quality figures.

    Raises:
        RecipeError: The recipe's method is idc, its ratio is too small for a single patch or too large for its filters,
            its patches have no real HR, or the Run directory belongs to another recipe or to other photographs.
        ImageError: Photographs cannot be used; the message names all of them.
        NetworkError: The extractor or the teacher cannot be loaded, has another scale, or gives NaN or Inf.
        RunError: A file of the Run is damaged.
        HubError: The photographs or weights are on the Hub and cannot be loaded.
    """
    begun = time.monotonic()
    if recipe.method == "idc":
        raise RecipeError("The method idc condenses patches; it does not choose any.", "Use `idc condense RECIPE`.")
    features, teacher = recipe.features, recipe.teacher
    if (recipe.method, teacher.network) == ("leaves", REAL):
        raise RecipeError("No photograph shows the HR side of dead leaves.", "Name a teacher, such as edsr-small.")
    extractor = load_extractor(
        features.network, features.layer, scale=recipe.scale, size=recipe.patches.size, device=device()
    )
    recipe = recipe.with_extractor(extractor.weights_sha256)
    source: HRSource | None = None
    if teacher.network != REAL:
        source = load_teacher(teacher.network, scale=recipe.scale, device=device())
    instances, left_out = find_photographs(recipe, progress)
    path = Path(run_dir) if run_dir else default_run_dir(recipe.name)
    with counting("describing photographs", progress) as count:
        facts = {"packages": packages(), "machine": machine()}
        run = begin(path, recipe, instances, extractor.network, facts, count)
    with counting("photographs finished", progress) as count:
        finish(run, extractor.network, count)
    condensed = pack(run, workers=1)
    source = source or RealHR(run)
    name = teacher.hr_version or source.name
    add_version(condensed, source, name, set_default=False, progress=progress)
    quality = measured_version(run, condensed, name, source, progress)["figures"] if gate else {}
    return SelectResult(
        run=str(path),
        photographs=len(instances),
        real_patches=sum(instance.patches for instance in instances),
        patches=condensed.manifest.patches,
        lr_digest=condensed.manifest.lr_digest,
        hr_version=name,
        **run.held_out(),
        quality=quality,
        seconds=round(time.monotonic() - begun, 1),
        conversions=count_conversions(instances),
        left_out=left_out,
    )
