"""regenerate: another HR version of a set whose LR patches stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.hr import load_hr_source
from idc_hub.dataset.regenerate import add_version
from idc_hub.runs.progress import Reporting
from idc_hub.runs.run import default_run_dir
from idc_hub.verbs.pull import pull


@dataclass(frozen=True)
class RegenerateResult:
    """What `regenerate` did.

    Attributes:
        repo: The repository folder.
        hr_version: Name of the HR version.
        written: False where it was there already, made by the same teacher from the same patches.
        default: The version that `load_dataset` gives without a config name.
        patches: Rows of the version.
        bytes: Size of its parquet files.
    """

    repo: str
    hr_version: str
    written: bool
    default: str
    patches: int
    bytes: int


def regenerate(
    run_or_repo: str | Path,
    *,
    teacher: str,
    name: str,
    run_dir: str | Path | None = None,
    set_default: bool = True,
    progress: Reporting = True,
    **settings: Any,
) -> RegenerateResult:
    """Add an HR version to a condensed set, your own or one from the Hub; LR is not touched.

    Args:
        run_or_repo: A Run, a repository folder, or the id of a dataset repository on the Hub.
        teacher: What makes HR: a bundled name, `bicubic`, a folder, a weights file, a Hub id or `package.module:build`;
            or `real` for the photographs' own, of a Run that `select` made.
        name: Name of the HR version, the config that consumers load.
        run_dir: Where to pull a Hub repository to; `$IDC_RUNS` or `runs`, and its name, by default.
        set_default: Make it the version that `load_dataset` gives without a config name.
        progress: True shows bars on stderr, False nothing; a function gets every `Progress` event.
        **settings: `steps`, `guidance`, `prompt` and `seed` of a diffusion teacher.

    Returns:
        What was done.

    Raises:
        RunError: There is no condensed set, or it is damaged.
        NetworkError: The teacher cannot be loaded or has another scale.
        RecipeError: The name is not allowed, or taken by another teacher.
        HubError: The repository cannot be pulled.
    """
    path = Path(run_or_repo)
    if not path.exists():
        target = Path(run_dir) if run_dir else default_run_dir(path.name)
        pull(str(run_or_repo), run_dir=target)
        path = target
    condensed = CondensedSet.open(path)
    source = load_hr_source(path, teacher, scale=condensed.manifest.scale, settings=settings)
    added = add_version(condensed, source, name, set_default=set_default, progress=progress)
    return RegenerateResult(
        str(condensed.folder), added.hr_version, added.written, added.default, added.patches, added.bytes
    )
