"""A condensed set as what is pushed: which files, which card, and what is new since the last time."""

from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.card import render_card
from idc_hub.dataset.check import MANIFEST, check_repository, hr_version_of, is_ours, listed, own_files
from idc_hub.dataset.manifest import Manifest
from idc_hub.errors import HubError


class DatasetRelease:
    """The repository tree in a folder, checked as a consumer will see it; see `hub_revision.Release`.

    Raises:
        RunError: The tree is not complete, or `datasets` cannot load it.
    """

    kind = "dataset"
    facts_file = MANIFEST

    def __init__(self, folder: Path) -> None:
        check_repository(folder)
        self.folder = folder
        self.facts = Manifest.load(folder)

    def files(self) -> dict[str, Path]:
        """See `Release`."""
        return own_files(self.folder)

    def read_facts(self, folder: Path, files: dict[str, RepoFile]) -> Manifest:
        """See `Release`."""
        return Manifest.load(folder)

    def check_nothing_is_lost(self, repo_id: str, there: Manifest | None) -> None:
        """Raise HubError where the Hub has an HR version of the same patches that the tree lacks."""
        if there is None or there.lr_digest != self.facts.lr_digest:
            return
        missing = there.hr_versions.keys() - self.facts.hr_versions.keys()
        if missing:
            raise HubError(
                f"{repo_id} has HR versions that {self.folder} lacks: {listed(missing)}.",
                "Pull first: `idc pull` into a new folder, `idc regenerate` there, and push that.",
            )

    def render_card(self, repo_id: str, license: str) -> str:
        """See `Release`."""
        return render_card(self.folder, repo_id=repo_id, license=license)

    def is_retired(self, path: str, there: Manifest | None) -> bool:
        """See `Release`. Rows came from an earlier push if idc.json knew their HR version."""
        known = there.hr_versions if there else {}
        return is_ours(path) and hr_version_of(path) in {None, *known}

    def message(self, there: Manifest | None) -> str:
        """See `Release`."""
        here = self.facts
        patches = f"{here.patches:,} patches, LR {here.lr_digest[:8]}…"
        if there is None:
            return f"Add {here.name}: {listed(here.hr_versions)} ({patches})"
        if there.lr_digest != here.lr_digest:
            return f"Replace the LR patches: {listed(here.hr_versions)} ({patches})"
        changed = [name for name, facts in here.hr_versions.items() if there.hr_versions.get(name) != facts]
        if changed:
            return f"Add HR version {listed(changed)} ({patches})"
        return "Update the card" if there.default == here.default else f"Make {here.default} the default"

    def change(self, released: Manifest | None) -> int:
        """MAJOR for other LR patches, MINOR for other HR versions or another default, PATCH for anything else."""
        here = self.facts
        if released is None or released.lr_digest != here.lr_digest:
            return 0
        return 1 if (released.hr_versions, released.default) != (here.hr_versions, here.default) else 2
