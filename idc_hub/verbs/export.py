"""export: write an HR version as files for BasicSR and other trainers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.export import export_version
from idc_hub.runs.progress import Reporting, counting
from idc_hub.runs.run import default_run_dir
from idc_hub.verbs.pull import pull


@dataclass(frozen=True)
class ExportResult:
    """Result of `export`.

    Attributes:
        out: The folder.
        format: Its format.
        hr_version: Name of the HR version.
        pairs: Number of LR/HR pairs.
        bytes: Size of all files.
        options: For each trainer that reads the format, what to paste into its options; also in the folder's README.md.
    """

    out: str
    format: str
    hr_version: str
    pairs: int
    bytes: int
    options: dict[str, str]


def export(
    run_or_repo: str | Path,
    out: str | Path,
    *,
    format: str = "basicsr",
    hr_version: str | None = None,
    lmdb: bool = False,
    run_dir: str | Path | None = None,
    progress: Reporting = True,
) -> ExportResult:
    """Write an HR version of a set as image files; their bytes are those of the set.

    Args:
        run_or_repo: A Run, a repository folder, or the id of a dataset repository on the Hub.
        out: Folder to make.
        format: `basicsr` (folders `gt` and `lq`, `meta_info.txt`; also for traiNNer-redux, neosr and KAIR),
            `webdataset` (tar files) or `folder` (`HR` and `LR`, which `idc train --data HR --lr LR` reads).
        hr_version: Name of the HR version; None: the default version.
        lmdb: For basicsr: LMDBs instead of folders.
        run_dir: Where to pull a Hub repository to; None: its name in `$IDC_RUNS`, or in `runs`.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        The folder, and what to paste into a trainer's options.

    Raises:
        RecipeError: `out` is not empty, or the format is unknown or does not fit `lmdb`, or lmdb is not installed.
        RunError: There is no condensed set or HR version, or it is damaged.
        HubError: The repository cannot be downloaded.
    """
    path = Path(run_or_repo)
    if not path.exists():
        target = Path(run_dir) if run_dir else default_run_dir(path.name)
        pull(str(run_or_repo), run_dir=target, only=hr_version)
        path = target
    condensed, folder = CondensedSet.open(path), Path(out)
    version = condensed.hr_version(hr_version)
    with counting(f"pairs of {version} written", progress) as count:
        options = export_version(condensed, version, folder, format, lmdb=lmdb, on_progress=count)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return ExportResult(str(out), format, version, condensed.manifest.patches, size, options)
