"""delete_version: remove an HR version from a set, here or on the Hub."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from idc_hub.dataset.card import write_card
from idc_hub.dataset.check import check_repository
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.pictures import draw_patches
from idc_hub.hub.withdraw import next_default, withdraw


@dataclass(frozen=True)
class DeleteVersionResult:
    """Result of `delete_version`.

    Attributes:
        place: The repository folder, or the id of the repository on the Hub.
        deleted: Name of the deleted HR version.
        default: The version that `load_dataset` gives without a config name.
        commit: The commit on the Hub; None for a folder.
        tag: Its tag; None for a folder.
    """

    place: str
    deleted: str
    default: str
    commit: str | None = None
    tag: str | None = None


def delete_version(
    run_or_repo: str | Path, name: str, *, default: str | None = None, token: str | None = None
) -> DeleteVersionResult:
    """Delete an HR version from a set; the LR patches and the other versions do not change.

    On the Hub, one commit removes it from the main branch and the tag raises MAJOR; released tags keep it, and its
    name is on the card. A folder that still has it cannot publish it again by accident.

    Args:
        run_or_repo: A Run, a repository folder, or the id of a dataset repository on the Hub.
        name: Name of the HR version.
        default: The version that becomes the default; required if `name` is the default.
        token: Access token; None: HF_TOKEN, or the login of `hf auth login`.

    Returns:
        The default version that is left and, for a repository on the Hub, commit and tag.

    Raises:
        RecipeError: There is no such version, it is the only one, or it is the default and `default` is None.
        RunError: There is no condensed set, or it is damaged.
        HubError: The Hub refused or could not be reached, or the repository is not a condensed set.
    """
    path = Path(run_or_repo)
    if not path.exists():
        done = withdraw(str(run_or_repo), name, default=default, token=token)
        return DeleteVersionResult(str(run_or_repo), name, done.default, done.commit, done.tag)
    condensed = CondensedSet.open(path)
    with condensed.lock():
        with condensed.updating() as manifest:
            if name in manifest.hr_versions or not condensed.data(name).is_dir():  # else an interrupted call
                manifest.default = next_default(manifest, str(condensed.folder), name, default)
                del manifest.hr_versions[name]
                quality = manifest.condensation.get("quality")
                if isinstance(quality, dict):
                    quality.pop(name, None)
        shutil.rmtree(condensed.data(name))
        draw_patches(condensed)
        write_card(condensed)
        check_repository(condensed)
    return DeleteVersionResult(str(condensed.folder), name, condensed.hr_version())
