"""What `push` publishes, a condensed set or a network: its files, its card, and its changes since the last release."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.card import render_card
from idc_hub.dataset.check import check_repository, hr_version_of, is_repository_path, repository_files
from idc_hub.dataset.condensed_set import CARD, CondensedSet
from idc_hub.dataset.licenses import LICENSE_FILES, License
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import HubError, RunError, enumerated
from idc_hub.hub.model_card import render_model_card
from idc_hub.networks import load, weights_sha256
from idc_hub.networks.registry import CONFIG, WEIGHTS, read_config
from idc_hub.training.evaluation import RESULTS
from idc_hub.training.loop import FACTS

NETWORK_FILES = (CARD, CONFIG, WEIGHTS, FACTS, RESULTS)
"""The files of a network; `push` leaves all others on the Hub alone."""


class Release(Protocol):
    """A folder that becomes a repository on the Hub: a condensed set or a network.

    Attributes:
        kind: The Hub's type of repository, "dataset" or "model".
        folder: The folder to publish.
        facts_file: The file that identifies a release.
        facts: The facts in that file. Methods take the facts of a release on the Hub, None if it has no such file.
    """

    kind: str
    folder: Path
    facts_file: str
    facts: Any

    def files(self) -> dict[str, Path]:
        """The files of the release by their path on the Hub."""

    def read_facts(self, folder: Path, files: dict[str, RepoFile]) -> Any:
        """The facts of a release on the Hub, from its facts file in `folder` and its listing `files`."""

    def check_nothing_is_lost(self, repo_id: str, remote: Any) -> None:
        """Raise a HubError if a push would remove something that this release does not replace."""

    def render_card(self, repo_id: str, license: License, revision: str | None) -> str:
        """The generated card, without anything a user wrote; `revision` is the tag of the release."""

    def is_retired(self, path: str, remote: Any) -> bool:
        """Whether a file on the Hub that this release lacks came from an earlier release, so that it can be deleted."""

    def message(self, remote: Any) -> str:
        """The first line of the commit message: what changed."""

    def change(self, released: Any) -> int:
        """Which number of the version to raise: major (0), minor (1) or patch (2)."""


class DatasetRelease:
    """A condensed set in its repository folder, checked by `check_repository`; see `Release`.

    Raises:
        RunError: The repository folder is incomplete, or `datasets` cannot load it.
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
        return repository_files(self.folder)

    def read_facts(self, folder: Path, files: dict[str, RepoFile]) -> Manifest:
        """See `Release`."""
        return Manifest.load(folder)

    def check_nothing_is_lost(self, repo_id: str, remote: Manifest | None) -> None:
        """Raise a HubError if the Hub has an HR version of the same LR patches that the repository folder lacks."""
        if remote is None or remote.lr_digest != self.facts.lr_digest:
            return
        missing = remote.hr_versions.keys() - self.facts.hr_versions.keys()
        if missing:
            raise HubError(
                f"{repo_id} has HR versions that {self.folder} lacks: {enumerated(missing)}.",
                "Pull first: `idc pull` into a new folder, `idc regenerate` there, and push that.",
            )

    def render_card(self, repo_id: str, license: License, revision: str | None) -> str:
        """See `Release`."""
        return render_card(self.condensed, repo_id=repo_id, license=license, revision=revision)

    def is_retired(self, path: str, remote: Manifest | None) -> bool:
        """See `Release`. A parquet file came from an earlier push if the idc.json there lists its HR version.

        A license's text may have been written on the Hub, so that it stays.
        """
        known = remote.hr_versions if remote else {}
        return is_repository_path(path) and path not in LICENSE_FILES and hr_version_of(path) in {None, *known}

    def message(self, remote: Manifest | None) -> str:
        """See `Release`."""
        local = self.facts
        patches = f"{local.patches:,} patches, LR {local.lr_digest[:8]}…"
        if remote is None:
            return f"Add {local.name}: {enumerated(local.hr_versions)} ({patches})"
        if remote.lr_digest != local.lr_digest:
            return f"Replace the LR patches: {enumerated(local.hr_versions)} ({patches})"
        changed = [name for name, version in local.hr_versions.items() if remote.hr_versions.get(name) != version]
        if changed:
            return f"Add HR version {enumerated(changed)} ({patches})"
        return "Update the card" if remote.default == local.default else f"Make {local.default} the default"

    def change(self, released: Manifest | None) -> int:
        """Major for other LR patches, minor for other HR versions or another default, patch for anything else."""
        local = self.facts
        if released is None or released.lr_digest != local.lr_digest:
            return 0
        return 1 if (released.hr_versions, released.default) != (local.hr_versions, local.default) else 2


class NetworkFacts(NamedTuple):
    """The facts of a network: its `config.json`, and the SHA-256 of its weights."""

    config: dict[str, Any]
    weights_sha256: str | None


class NetworkRelease:
    """A network in its folder, loaded once to check it; see `Release`.

    Raises:
        NetworkError: The network cannot be loaded.
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
                raise RunError(f"{path} is not a plain file.", "Replace it with the file itself.")
        return found

    def read_facts(self, folder: Path, files: dict[str, RepoFile]) -> NetworkFacts:
        """See `Release`.

        Raises:
            NetworkError: The `config.json` on the Hub is not one of idc-hub.
        """
        weights = files.get(WEIGHTS)
        return NetworkFacts(read_config(folder), weights.lfs.sha256 if weights and weights.lfs else None)

    def check_nothing_is_lost(self, repo_id: str, remote: NetworkFacts | None) -> None:
        """Nothing can be lost: earlier weights stay available under their tags."""

    def render_card(self, repo_id: str, license: License, revision: str | None) -> str:
        """See `Release`."""
        return render_model_card(self.folder, repo_id=repo_id, license=license)

    def is_retired(self, path: str, remote: NetworkFacts | None) -> bool:
        """See `Release`."""
        return path in NETWORK_FILES

    def message(self, remote: NetworkFacts | None) -> str:
        """See `Release`."""
        name = f"{self.facts.config['name']} x{self.facts.config['scale']}"
        if remote is None:
            return f"Add {name}"
        return f"Replace the weights of {name}" if remote != self.facts else "Update the card"

    def change(self, released: NetworkFacts | None) -> int:
        """Major for another network or other weights, patch for anything else."""
        return 2 if released == self.facts else 0


def is_network(folder: Path) -> bool:
    """Whether a folder holds a network: its config and its weights."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
