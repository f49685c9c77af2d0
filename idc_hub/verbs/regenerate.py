"""regenerate: add an HR version to a set without changing its LR patches."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.gate import measured_version
from idc_hub.dataset.hr import load_hr_source
from idc_hub.dataset.regenerate import add_version
from idc_hub.errors import IDCError, IncompleteError
from idc_hub.runs.progress import Reporting
from idc_hub.runs.run import Run, default_run_dir
from idc_hub.verbs.pull import pull


@dataclass(frozen=True)
class RegenerateResult:
    """Result of `regenerate`.

    Attributes:
        repo: The repository folder.
        hr_version: Name of the HR version.
        written: False if the same teacher had already made this version from the same LR patches.
        default: The version that `load_dataset` gives without a config name.
        patches: Number of pairs in the version.
        bytes: Size of its parquet files.
        seconds: Wall-clock seconds of this call.
    """

    repo: str
    hr_version: str
    written: bool
    default: str
    patches: int
    bytes: int
    seconds: float


def regenerate(
    run_or_repo: str | Path,
    *,
    teacher: str,
    name: str,
    run_dir: str | Path | None = None,
    set_default: bool = False,
    gate: bool = True,
    progress: Reporting = True,
    **settings: Any,
) -> RegenerateResult:
    """Add an HR version to a condensed set, your own or one from the Hub; the LR patches do not change.

    The version of a Run is measured as by `quality`; if its photographs are gone, a warning says so.

    Args:
        run_or_repo: A Run, a repository folder, or the id of a dataset repository on the Hub.
        teacher: The teacher: a bundled name, `bicubic`, a folder, a weights file, a Hub id or `package.module:build`.
            `real` takes the HR pixels of the photographs, for a Run that `select` made.
        name: Name of the HR version: the config name that users pass to `load_dataset`.
        run_dir: Where to pull a Hub repository to; None: its name in `$IDC_RUNS`, or in `runs`.
        set_default: Make it the version that `load_dataset` gives without a config name; the first version of a set
            always is.
        gate: Whether to measure the figures of the quality gate.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.
        **settings: `steps`, `guidance`, `prompt` and `seed` of a diffusion teacher.

    Returns:
        The version's name and size, and whether it was written.

    Raises:
        RunError: There is no condensed set, or it is damaged.
        NetworkError: The teacher cannot be loaded, has another scale, or gives NaN or Inf.
        RecipeError: The name is not allowed, or another teacher made the version of that name.
        ImageError: For `real`: a photograph is gone or has changed.
        HubError: The repository or the teacher cannot be downloaded.
        IncompleteError: The disk is full; the same call continues.
    """
    begun = time.monotonic()
    path = Path(run_or_repo)
    if not path.exists():
        target = Path(run_dir) if run_dir else default_run_dir(path.name)
        pull(str(run_or_repo), run_dir=target)
        path = target
    condensed = CondensedSet.open(path)
    source = load_hr_source(path, teacher, scale=condensed.manifest.scale, settings=settings)
    added = add_version(condensed, source, name, set_default=set_default, progress=progress)
    if gate and (path / "run.json").is_file():
        try:
            measured_version(Run.open(path), condensed, added.hr_version, source, progress)
        except IncompleteError:
            raise
        except IDCError as error:  # the version is complete all the same
            warnings.warn(f"The quality of {added.hr_version} was not measured: {error}", stacklevel=2)
    return RegenerateResult(
        repo=str(condensed.folder),
        hr_version=added.hr_version,
        written=added.written,
        default=added.default,
        patches=added.patches,
        bytes=added.bytes,
        seconds=round(time.monotonic() - begun, 1),
    )
