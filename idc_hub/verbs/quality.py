"""quality: a set beside random real patches of the same photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.gate import measure_version
from idc_hub.dataset.hr import load_hr_source
from idc_hub.dataset.regenerate import same_teacher
from idc_hub.errors import RunError
from idc_hub.runs.progress import Reporting
from idc_hub.runs.run import Run


@dataclass(frozen=True)
class QualityResult:
    """What `quality` measured.

    Attributes:
        run: The Run directory.
        hr_version: The HR version that was measured.
        passed: Whether no figure fails.
        warnings: A sentence for each figure that fails.
        figures: For each figure `set`, `real` (mean of the draws of random real patches), `real_range`, `limit` and
            `passed` (both None where it is not judged).
        lr_digest: Digest of the LR patches.
        photographs: How many photographs were looked at.
        patches: How many patches were looked at.
        draws: How many draws of random real patches they were compared with.
        spectra: `cycles_per_patch`, and the power spectra of `set` and `real`.
        gradient_norms: Of the weighted terms of the loss: medians over the second half of the steps, mean over the
            photographs.
    """

    run: str
    hr_version: str
    passed: bool
    warnings: list[str]
    figures: dict[str, dict[str, Any]]
    lr_digest: str
    photographs: int
    patches: int
    draws: int
    spectra: dict[str, list[float]]
    gradient_norms: dict[str, float]


def quality(
    run_dir: str | Path, *, hr_version: str | None = None, teacher: str | None = None, progress: Reporting = True
) -> QualityResult:
    """Measure an HR version of a finished Run beside random real patches of its photographs; keep it with the Run.

    The figures go to `quality.json` in the Run, to `idc.json` and to the card.

    Args:
        run_dir: A Run whose photographs are where its recipe says.
        hr_version: Which one; the default version where it is None.
        teacher: What made it; the recipe's teacher where it is None.
        progress: True shows bars on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        What was measured.

    Raises:
        RunError: There is no finished Run, or no such HR version, or another teacher made it.
        ImageError: Photographs are missing or have changed.
        NetworkError: The teacher cannot be loaded.
    """
    path = Path(run_dir)
    condensed = CondensedSet.open(path)
    if not (path / "run.json").is_file():
        raise RunError(
            f"{path} holds a condensed set without its photographs, and random patches of them are what it is held to.",
            "What was measured where it was made stands on its card.",
        )
    run = Run.open(path)
    name = condensed.hr_version(hr_version)
    made_by = condensed.manifest.hr_versions[name]["teacher"]
    settings = {key: made_by[key] for key in ("steps", "guidance", "prompt", "seed") if key in made_by}
    teacher = teacher or run.recipe.teacher.network
    source = load_hr_source(path, teacher, scale=condensed.manifest.scale, settings=settings)
    if not same_teacher(made_by, source):
        raise RunError(
            f"The HR version {name!r} was made by {made_by['name']}, not by {source.name} with these weights.",
            "Name its teacher with --teacher.",
        )
    return QualityResult(run=str(path), hr_version=name, **measure_version(run, condensed, name, source, progress))
