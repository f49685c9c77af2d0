"""verify: check a Run or a repository folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from idc_hub.dataset.check import check_repository, hr_version_of, repository_files
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import RunError
from idc_hub.runs.run import Run


@dataclass(frozen=True)
class VerifyResult:
    """Result of `verify`. What does not exist yet, or what a repository folder does not have, is None.

    Attributes:
        photographs: Number of photographs of the Run.
        finished: Number of photographs whose instance file was read and matches its digest.
        name: Name of the set.
        lr_digest: SHA-256 of the LR patches.
        instances: Number of instances that have patches.
        patches: Number of LR patches.
        default: The HR version that `load_dataset` gives without a config name.
        hr_versions: Names of all HR versions; each was loaded with `load_dataset`.
        checked: What was checked about each file of the repository folder, by path.
        one_color: Names of the pairs whose LR and HR patches are both of the same single color, as in a black border.
    """

    photographs: int | None = None
    finished: int | None = None
    name: str | None = None
    lr_digest: str | None = None
    instances: int | None = None
    patches: int | None = None
    default: str | None = None
    hr_versions: list[str] | None = None
    checked: dict[str, str] | None = None
    one_color: list[str] | None = None


def verify(path: str | Path) -> VerifyResult:
    """Check digests, counts and pairing of a Run or a repository folder, and load every HR version.

    Args:
        path: A Run, finished or not, a repository folder, or a snapshot of a set in the Hub's cache.

    Returns:
        Counts, digest and names of what was checked.

    Raises:
        RunError: A check failed; the message names the file. Checking stops there.
    """
    path = Path(path)
    photographs = finished = None
    if (path / "run.json").is_file():
        run = Run.open(path)
        with_file = [instance for instance in run.instances if run.instance_file(instance.id).is_file()]
        for instance in with_file:
            if instance.count:
                run.read_patches(instance)
        photographs, finished = len(run.instances), len(with_file)
        if not (run.repo / MANIFEST).is_file():
            if any(path.is_file() for path in (run.repo / "data").rglob("*")):
                raise RunError(
                    f"{run.repo} has HR versions, but no {MANIFEST} that describes them.",
                    f"Delete {run.repo}, and run the command that made this Run again.",
                )
            return VerifyResult(photographs, finished)
    condensed = CondensedSet.open(path)
    one_color = check_repository(condensed, again=True, cached=True)
    manifest = condensed.manifest
    checked = {name: _what_was_checked(name, manifest) for name in repository_files(condensed.folder, cached=True)}
    return VerifyResult(
        photographs,
        finished,
        manifest.name,
        manifest.lr_digest,
        manifest.instances,
        manifest.patches,
        manifest.default,
        sorted(manifest.hr_versions),
        checked,
        one_color,
    )


def _what_was_checked(name: str, manifest: Manifest) -> str:
    match name.split("/")[0]:
        case "lr":
            return "read; its patches match the digest in idc.json"
        case "data":
            version = manifest.hr_versions[str(hr_version_of(name))]
            digest = "no digest in idc.json" if version.files is None else "matches its digest in idc.json"
            return f"{digest}; loaded with load_dataset; LR compared with lr/, HR with LR in a sample"
        case "idc.json":
            return "format, and agreement with the other files"
        case "README.md":
            return "configs"
    return "presence only"
