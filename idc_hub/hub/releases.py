"""What is pushed: a condensed set or a network; which files, which card, and what is new since the last time."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.card import render_card
from idc_hub.dataset.check import check_repository, hr_version_of, is_ours, own_files
from idc_hub.dataset.condensed_set import CARD, CondensedSet
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import HubError, RunError, enumerated
from idc_hub.hub.model_card import render_model_card
from idc_hub.networks import load, weights_sha256
from idc_hub.networks.registry import CONFIG, WEIGHTS, read_config
from idc_hub.training.evaluation import RESULTS
from idc_hub.training.loop import FACTS

NETWORK_FILES = (CARD, CONFIG, WEIGHTS, FACTS, RESULTS)
"""What a network's repository can have; on the Hub, all other files are somebody else's."""


class Release(Protocol):
    """A folder that becomes a repository on the Hub: a condensed set or a network.

    Attributes:
        kind: "dataset" or "model", the Hub's type of the repository.
        folder: What is published.
        facts_file: The file that tells what a release is.
        facts: What that file says of `folder`; the same type for a release on the Hub, where None means no file.
    """

    kind: str
    folder: Path
    facts_file: str
    facts: Any

    def files(self) -> dict[str, Path]:
        """The files of the release by their path on the Hub."""

    def read_facts(self, folder: Path, files: dict[str, RepoFile]) -> Any:
        """The facts of a release on the Hub: `folder` holds its facts file, `files` is its listing."""

    def check_nothing_is_lost(self, repo_id: str, there: Any) -> None:
        """Raise HubError where a push would bury something of an earlier release that it does not know."""

    def render_card(self, repo_id: str, license: str) -> str:
        """The card, as if there were none."""

    def is_retired(self, path: str, there: Any) -> bool:
        """Whether a file that is not in the release came from an earlier one and may go."""

    def message(self, there: Any) -> str:
        """The first line of the commit: what is new."""

    def change(self, released: Any) -> int:
        """Which number of the version rises: 0 the major, 1 the minor, 2 the patch one."""


class DatasetRelease:
    """The repository tree in a folder, checked as a consumer will see it; see `hub_revision.Release`.

    Raises:
        RunError: The tree is not complete, or `datasets` cannot load it.
    """

    kind = "dataset"
    facts_file = MANIFEST

    def __init__(self, folder: Path) -> None:
        self.condensed = CondensedSet(folder)
        check_repository(self.condensed, again=True)
        self.folder = folder
        self.facts = self.condensed.manifest

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
                f"{repo_id} has HR versions that {self.folder} lacks: {enumerated(missing)}.",
                "Pull first: `idc pull` into a new folder, `idc regenerate` there, and push that.",
            )

    def render_card(self, repo_id: str, license: str) -> str:
        """See `Release`."""
        return render_card(self.condensed, repo_id=repo_id, license=license)

    def is_retired(self, path: str, there: Manifest | None) -> bool:
        """See `Release`. Rows came from an earlier push if idc.json knew their HR version."""
        known = there.hr_versions if there else {}
        return is_ours(path) and hr_version_of(path) in {None, *known}

    def message(self, there: Manifest | None) -> str:
        """See `Release`."""
        here = self.facts
        patches = f"{here.patches:,} patches, LR {here.lr_digest[:8]}…"
        if there is None:
            return f"Add {here.name}: {enumerated(here.hr_versions)} ({patches})"
        if there.lr_digest != here.lr_digest:
            return f"Replace the LR patches: {enumerated(here.hr_versions)} ({patches})"
        changed = [name for name, facts in here.hr_versions.items() if there.hr_versions.get(name) != facts]
        if changed:
            return f"Add HR version {enumerated(changed)} ({patches})"
        return "Update the card" if there.default == here.default else f"Make {here.default} the default"

    def change(self, released: Manifest | None) -> int:
        """MAJOR for other LR patches, MINOR for other HR versions or another default, PATCH for anything else."""
        here = self.facts
        if released is None or released.lr_digest != here.lr_digest:
            return 0
        return 1 if (released.hr_versions, released.default) != (here.hr_versions, here.default) else 2


class NetworkFacts(NamedTuple):
    """What a release of a network is: its `config.json`, and the SHA-256 of its weights."""

    config: dict[str, Any]
    weights_sha256: str | None


class NetworkRelease:
    """The network in a folder, loaded once to see that it is whole; see `hub_revision.Release`.

    Raises:
        NetworkError: It cannot be loaded.
    """

    kind = "model"
    facts_file = CONFIG

    def __init__(self, folder: Path) -> None:
        load(folder, scale=None)
        self.folder = folder
        self.facts = NetworkFacts(read_config(folder), weights_sha256(folder, scale=None))

    def files(self) -> dict[str, Path]:
        """See `Release`.

        Raises:
            RunError: One of them is a link.
        """
        found = {name: self.folder / name for name in NETWORK_FILES if (self.folder / name).exists()}
        for path in found.values():
            if path.is_symlink() or not path.is_file():
                raise RunError(f"{path} is not a plain file.", "Put the file itself there.")
        return found

    def read_facts(self, folder: Path, files: dict[str, RepoFile]) -> NetworkFacts:
        """See `Release`.

        Raises:
            NetworkError: The `config.json` there is of another kind of model.
        """
        weights = files.get(WEIGHTS)
        return NetworkFacts(read_config(folder), weights.lfs.sha256 if weights and weights.lfs else None)

    def check_nothing_is_lost(self, repo_id: str, there: NetworkFacts | None) -> None:
        """Nothing can be: earlier weights stay under their tag."""

    def render_card(self, repo_id: str, license: str) -> str:
        """See `Release`."""
        return render_model_card(self.folder, repo_id=repo_id, license=license)

    def is_retired(self, path: str, there: NetworkFacts | None) -> bool:
        """See `Release`."""
        return path in NETWORK_FILES

    def message(self, there: NetworkFacts | None) -> str:
        """See `Release`."""
        name = f"{self.facts.config['name']} x{self.facts.config['scale']}"
        if there is None:
            return f"Add {name}"
        return f"Replace the weights of {name}" if there != self.facts else "Update the card"

    def change(self, released: NetworkFacts | None) -> int:
        """MAJOR for another network or other weights, PATCH for anything else."""
        return 2 if released == self.facts else 0


def is_network(folder: Path) -> bool:
    """Whether a folder is a network's: it holds the two files that `idc train` writes."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
