"""verify: whether a Run or a repository folder is in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from idc_hub.dataset.check import check_repository
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST
from idc_hub.runs.run import Run


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found in order. A part that is not there yet, or that a repository folder does not have, is None.

    Attributes:
        photographs: Photographs of the Run.
        finished: Photographs among them whose patches are there and have the digest that they name.
        name: Name of the set.
        lr_digest: Digest of the LR patches.
        instances: Number of instances that have patches.
        patches: Number of LR patches.
        default: The HR version that `load_dataset` gives without a config name.
        hr_versions: Names of all HR versions, each of which was loaded.
        one_color: Names of the pairs whose LR and HR are both of one and the same color, as in a black border.
    """

    photographs: int | None = None
    finished: int | None = None
    name: str | None = None
    lr_digest: str | None = None
    instances: int | None = None
    patches: int | None = None
    default: str | None = None
    hr_versions: list[str] | None = None
    one_color: list[str] | None = None


def verify(path: str | Path) -> VerifyResult:
    """Check a Run or a repository folder: digests, counts, pairing, and that every config loads.

    Args:
        path: A Run, finished or not, or a repository folder.

    Returns:
        What was checked.

    Raises:
        RunError: At the first thing that is wrong, with the file that is.
    """
    path = Path(path)
    photographs = finished = None
    if (path / "run.json").is_file():
        run = Run.open(path)
        there = [instance for instance in run.instances if run.instance_file(instance.id).is_file()]
        for instance in there:
            if instance.count:
                run.read_patches(instance)
        photographs, finished = len(run.instances), len(there)
        if not (run.repo / MANIFEST).is_file():
            return VerifyResult(photographs, finished)
    condensed = CondensedSet.open(path)
    one_color = check_repository(condensed, again=True)
    manifest = condensed.manifest
    return VerifyResult(
        photographs,
        finished,
        manifest.name,
        manifest.lr_digest,
        manifest.instances,
        manifest.patches,
        manifest.default,
        sorted(manifest.hr_versions),
        one_color,
    )
