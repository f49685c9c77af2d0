"""quality: compare a set with random real patches of the same photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.gate import measure_version
from idc_hub.dataset.hr import load_hr_source
from idc_hub.dataset.manifest import TeacherRecord
from idc_hub.errors import RunError
from idc_hub.runs.progress import Reporting
from idc_hub.runs.run import Run


@dataclass(frozen=True)
class QualityResult:
    """Result of `quality`.

    Attributes:
        run: The Run directory.
        hr_version: Name of the measured HR version.
        passed: Whether no figure fails.
        warnings: A sentence for each figure that fails.
        figures: For each figure `set`, `real` (mean over the draws of random real patches), `real_range`, `at_least`,
            `at_most` (the limits, None if there is none) and `passed` (None without limits).
        lr_digest: SHA-256 of the LR patches.
        photographs: Number of photographs in the sample.
        patches: Number of patches in the sample.
        draws: Number of draws of random real patches that it was compared with.
        spectra: `cycles_per_patch`, and the power spectra `set` and `real`.
        gradient_norms: For each weighted term of the loss, the median gradient norm over the second half of the steps,
            averaged over photographs.
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
    """Compare an HR version of a finished Run with random real patches of its photographs.

    Writes the figures to `quality.json` in the Run, to `idc.json` and to the card.

    Args:
        run_dir: A Run whose photographs are still where its recipe says.
        hr_version: Name of the HR version; None: the default version.
        teacher: The teacher that made it; None: the recipe's teacher.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        The figures, and a warning for each one that fails.

    Raises:
        RunError: The Run is not finished, there is no such HR version, or another teacher made it.
        ImageError: Photographs are missing or have changed.
        NetworkError: The teacher cannot be loaded, or gives NaN or Inf.
    """
    path = Path(run_dir)
    condensed = CondensedSet.open(path)
    if not (path / "run.json").is_file():
        raise RunError(
            f"{path} holds a condensed set without its photographs, so there are no real patches to compare it with.",
            "The card shows the figures measured when it was made.",
        )
    run = Run.open(path)
    name = condensed.hr_version(hr_version)
    made_by = condensed.manifest.hr_versions[name].teacher
    settings = made_by.model_dump(include={"steps", "guidance", "prompt", "seed"})
    teacher = teacher or run.recipe.teacher.network
    source = load_hr_source(path, teacher, scale=condensed.manifest.scale, settings=settings)
    if not made_by.is_same(TeacherRecord.of(source.describe())):
        raise RunError(
            f"The HR version {name!r} was made by {made_by.name}, not by {source.name} with these weights.",
            "Name its teacher with --teacher.",
        )
    return QualityResult(run=str(path), hr_version=name, **measure_version(run, condensed, name, source, progress))
