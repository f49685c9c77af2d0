"""What `push` publishes, a condensed set or a network: its files, its card, and its changes since the last release."""

import shutil
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.card import render_card
from idc_hub.dataset.check import check_repository, hr_version_of, is_repository_path, repository_files
from idc_hub.dataset.condensed_set import CARD, RECIPE, CondensedSet
from idc_hub.dataset.licenses import LICENSE_FILES, License
from idc_hub.dataset.manifest import MANIFEST, HRVersion, Manifest
from idc_hub.dataset.shards import INDEX_NAME
from idc_hub.errors import RunError, enumerated
from idc_hub.hub.model_card import render_model_card
from idc_hub.hub.revisions import WITHDRAWN, Revision, footer, withdrawn_versions
from idc_hub.networks import load, weights_sha256
from idc_hub.networks.registry import CONFIG, WEIGHTS, read_config
from idc_hub.training.evaluation import RESULTS
from idc_hub.training.loop import FACTS

LR_INDEX = f"lr/{INDEX_NAME}"
"""The index of the LR patches."""

NETWORK_FILES = (CARD, CONFIG, WEIGHTS, FACTS, RESULTS, *LICENSE_FILES)
"""The files of a network; `push` leaves all others on the Hub alone."""


class Release(Protocol):
    """A folder that becomes a repository on the Hub: a condensed set or a network.

    Attributes:
        kind: The Hub's type of repository, "dataset" or "model".
        folder: The folder to publish.
        facts_file: The file that identifies a release.
        facts: The facts in that file.
    """

    kind: str
    folder: Path
    facts_file: str
    facts: Any

    @staticmethod
    def read_facts(folder: Path, files: dict[str, RepoFile]) -> Any:
        """The facts of a release on the Hub, from its facts file in `folder` and its listing `files`."""

    def merged(self, remote: Any, *, contributes: bool) -> Any:
        """The facts to publish over the facts `remote`; `contributes`: as a pull request."""

    def contents(self, published: Any, head: Revision) -> dict[str, Path | bytes]:
        """The files to publish by path, without the card and without files of the Hub that stay as they are."""

    def render_card(
        self,
        repo_id: str,
        license: License,
        revision: str | None,
        published: Any,
        footers: dict[str, tuple[int, bytes]],
    ) -> str:
        """The generated card, without anything a user wrote.

        `revision` is the tag that it names, and `footers` belong to the parquet files that only the Hub has.
        """

    def kept(self, published: Any, head: Revision) -> list[str]:
        """Paths of parquet files on the Hub that stay there and that the folder lacks."""

    def is_retired(self, path: str, published: Any, remote: Any) -> bool:
        """Whether a file on the Hub that this release lacks came from an earlier release, so that it can be deleted."""

    def replaced(self, published: Any, before: Revision, changed: Collection[str]) -> list[str]:
        """HR versions of `before` that the release withdraws or replaces; `changed`: paths it changes or deletes."""

    def changes(self, published: Any, remote: Any, replaced: Collection[str]) -> list[str]:
        """What changed in the facts, for the first line of the commit message."""

    def change(self, published: Any, before: Revision, changed: Collection[str]) -> int:
        """Which number of the version to raise: major (0), minor (1) or patch (2); `changed`: as for `replaced`."""


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

    @staticmethod
    def read_facts(folder: Path, files: dict[str, RepoFile]) -> Manifest:
        """See `Release`."""
        return Manifest.load(folder)

    def merged(self, remote: Manifest | None, *, contributes: bool) -> Manifest:
        """The local manifest with the HR versions of the same LR patches that only the Hub has.

        The Hub's default stays in a pull request, and if the folder lacks that version.
        """
        local = self.facts
        if remote is None or remote.lr_digest != local.lr_digest:
            return local
        versions = remote.hr_versions | local.hr_versions
        keeps_default = contributes or remote.default not in local.hr_versions
        facts = _united(remote.condensation, local.condensation)
        if withdrawn := withdrawn_versions(remote) - versions.keys():
            facts[WITHDRAWN] = enumerated(withdrawn)
        else:
            facts.pop(WITHDRAWN, None)
        default = remote.default if keeps_default and remote.default else local.default
        return local.model_copy(update={"hr_versions": versions, "default": default, "condensation": facts})

    def contents(self, published: Manifest, head: Revision) -> dict[str, Path | bytes]:
        """See `Release`."""
        found: dict[str, Path | bytes] = dict(repository_files(self.folder))
        found.pop(CARD, None)
        if self.kept(published, head):  # the Hub's pictures can show versions that the folder lacks
            found = {path: file for path, file in found.items() if not (_is_report(path) and path in head.files)}
        if published == head.facts and not head.repair:
            del found[MANIFEST]
        elif published != self.facts:
            with tempfile.TemporaryDirectory() as scratch:
                published.save(Path(scratch))
                found[MANIFEST] = (Path(scratch) / MANIFEST).read_bytes()
        return found

    def render_card(
        self,
        repo_id: str,
        license: License,
        revision: str | None,
        published: Manifest,
        footers: dict[str, tuple[int, bytes]],
    ) -> str:
        """See `Release`."""
        if not footers and published == self.facts:
            return render_card(self.condensed, repo_id=repo_id, license=license, revision=revision)
        local = repository_files(self.folder)
        footers = {path: local_footer(file) for path, file in local.items() if hr_version_of(path)} | footers
        return card_of(published, self.folder, filter(_is_report, local), footers, repo_id, license, revision)

    def kept(self, published: Manifest, head: Revision) -> list[str]:
        """See `Release`."""
        names = published.hr_versions.keys() - self.facts.hr_versions.keys()
        return [path for path in head.files if hr_version_of(path) in names]

    def is_retired(self, path: str, published: Manifest, remote: Manifest | None) -> bool:
        """See `Release`. A parquet file came from an earlier push if the idc.json there lists its HR version.

        A license's text may have been written on the Hub, so that it stays.
        """
        name = hr_version_of(path)
        only_there = published.hr_versions.keys() - self.facts.hr_versions.keys()
        if path in (MANIFEST, *LICENSE_FILES) or name in only_there or (only_there and _is_report(path)):
            return False
        known = remote.hr_versions if remote else {}
        return is_repository_path(path) and name in {None, *known}

    def replaced(self, published: Manifest, before: Revision, changed: Collection[str]) -> list[str]:
        """See `Release`; empty for other LR patches, which replace everything."""
        if before.facts is None or before.facts.lr_digest != published.lr_digest:
            return []
        touched = {hr_version_of(path) for path in changed}
        return sorted(
            name
            for name, version in before.facts.hr_versions.items()
            if name in touched or not _is_same(version, published.hr_versions.get(name))
        )

    def changes(self, published: Manifest, remote: Manifest | None, replaced: Collection[str]) -> list[str]:
        """See `Release`."""
        patches = f"{published.patches:,} patches, LR {published.lr_digest[:8]}…"
        if remote is None:
            return [f"Add {published.name}: {enumerated(published.hr_versions)} ({patches})"]
        if remote.lr_digest != published.lr_digest:
            return [f"Replace the set: {enumerated(published.hr_versions)} ({patches})"]
        added = published.hr_versions.keys() - remote.hr_versions.keys()
        found = [f"Add HR version {enumerated(added)} ({patches})"] if added else []
        found += [f"Replace HR version {enumerated(replaced)}"] if replaced else []
        found += [f"Make {published.default} the default"] if published.default != remote.default else []
        return found

    def change(self, published: Manifest, before: Revision, changed: Collection[str]) -> int:
        """Major for other LR patches and replaced or withdrawn HR versions, minor for new HR versions or another
        default, patch for anything else.
        """
        old = before.facts
        if old is None or old.lr_digest != published.lr_digest:
            return 0
        if self.replaced(published, before, changed):
            return 0
        return 1 if (old.hr_versions, old.default) != (published.hr_versions, published.default) else 2


def local_footer(path: Path) -> tuple[int, bytes]:
    """Size and footer of a parquet file; see `footer`."""
    size = path.stat().st_size

    def read(count: int) -> bytes:
        with path.open("rb") as file:
            file.seek(max(0, size - count))
            return file.read()

    return size, footer(read)


def card_of(
    manifest: Manifest,
    folder: Path,
    pictures: Iterable[str],
    footers: dict[str, tuple[int, bytes]],
    repo_id: str,
    license: License | None,
    revision: str | None,
) -> str:
    """The generated card of a set whose parquet files are not all on this machine: their footers suffice.

    Args:
        manifest: Its idc.json.
        folder: Where its recipe.yaml, which may be missing, and the index of its LR patches are.
        pictures: Paths of its pictures.
        footers: Size and footer of every parquet file, by path.
        repo_id: Its id on the Hub.
        license: The license to name; None: the card gets none.
        revision: The tag that the card names.

    Raises:
        RunError: A footer or the recipe is damaged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch)
        for name in (*pictures, *footers, LR_INDEX):
            (small / name).parent.mkdir(parents=True, exist_ok=True)
        for name in pictures:
            (small / name).touch()
        for name in (RECIPE, LR_INDEX):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, small / name)
        for name, (size, tail) in footers.items():
            with (small / name).open("wb") as file:  # sparse: as large as the original, but only the footer is there
                file.seek(size - len(tail))
                file.write(tail)
        return render_card(CondensedSet(small, manifest), repo_id=repo_id, license=license, revision=revision)


def _is_report(path: str) -> bool:
    return path.startswith("report/")


def _is_same(version: HRVersion, other: HRVersion | None) -> bool:
    return other is not None and version.teacher.is_same(other.teacher)


def _united(remote: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Facts of both; the local value wins, except that nested facts, such as the quality by HR version, are united."""
    united = remote | local
    for key in remote.keys() & local.keys():
        if isinstance(remote[key], dict) and isinstance(local[key], dict):
            united[key] = _united(remote[key], local[key])
    return united


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

    def merged(self, remote: NetworkFacts | None, *, contributes: bool) -> NetworkFacts:
        """See `Release`: the local facts. Earlier weights stay available under their tags."""
        return self.facts

    def contents(self, published: NetworkFacts, head: Revision) -> dict[str, Path | bytes]:
        """See `Release`.

        Raises:
            RunError: One of them is a link.
        """
        found = {name: self.folder / name for name in NETWORK_FILES if name != CARD and (self.folder / name).exists()}
        for path in found.values():
            if path.is_symlink() or not path.is_file():
                raise RunError(f"{path} is not a plain file.", "Replace it with the file itself.")
        return dict(found)

    @staticmethod
    def read_facts(folder: Path, files: dict[str, RepoFile]) -> NetworkFacts:
        """See `Release`.

        Raises:
            NetworkError: The `config.json` on the Hub is not one of idc-hub.
        """
        weights = files.get(WEIGHTS)
        return NetworkFacts(read_config(folder), weights.lfs.sha256 if weights and weights.lfs else None)

    def render_card(
        self,
        repo_id: str,
        license: License,
        revision: str | None,
        published: NetworkFacts,
        footers: dict[str, tuple[int, bytes]],
    ) -> str:
        """See `Release`."""
        return render_model_card(self.folder, repo_id=repo_id, license=license)

    def kept(self, published: NetworkFacts, head: Revision) -> list[str]:
        """See `Release`."""
        return []

    def is_retired(self, path: str, published: NetworkFacts, remote: NetworkFacts | None) -> bool:
        """See `Release`."""
        return path in NETWORK_FILES and path not in LICENSE_FILES

    def replaced(self, published: NetworkFacts, before: Revision, changed: Collection[str]) -> list[str]:
        """See `Release`: a network has no HR versions."""
        return []

    def changes(self, published: NetworkFacts, remote: NetworkFacts | None, replaced: Collection[str]) -> list[str]:
        """See `Release`."""
        name = f"{published.config['name']} x{published.config['scale']}"
        if remote is None:
            return [f"Add {name}"]
        return [f"Replace the weights of {name}"] if remote != published else []

    def change(self, published: NetworkFacts, before: Revision, changed: Collection[str]) -> int:
        """Major for another network or other weights, patch for anything else."""
        return 2 if before.facts == published else 0


def is_network(folder: Path) -> bool:
    """Whether a folder holds a network: its config and its weights."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
