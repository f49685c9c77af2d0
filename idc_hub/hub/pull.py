"""Pull a condensed set from the Hub into a Run directory, comparing each file with its digest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage, rmtree

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.card import write_card
from idc_hub.dataset.check import check_contents, hr_version_of, is_repository_path, repository_files
from idc_hub.dataset.condensed_set import CARD, CondensedSet, repository_lock
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import HubError, RecipeError, RunError, enumerated
from idc_hub.hub.revisions import client, commit_of, list_files, matches, read_tags, restore_manifest, without_missing
from idc_hub.hub_errors import AGAIN, hub_sentences

LR = "lr"
"""Stands for the LR patches alone, without an HR version."""

_STAGING = ".pull-"


@dataclass(frozen=True)
class PullResult:
    """The result of a pull.

    Attributes:
        repo_id: `owner/name`.
        commit: The pulled commit.
        run_dir: The Run directory.
        hr_versions: Names of the HR versions.
        files: Number of files.
        bytes: Total size of the files.
        repair: What was wrong with the idc.json on the Hub, and what was done; otherwise empty.
    """

    repo_id: str
    commit: str
    run_dir: str
    hr_versions: list[str]
    files: int
    bytes: int
    repair: str = ""


def pull(
    repo_id: str,
    *,
    run_dir: str | Path,
    only: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> PullResult:
    """Download a condensed set into a Run directory, to verify it, add HR versions, or push it again.

    Afterwards `run_dir/repo` equals the repository on the Hub byte for byte. It appears only when it is complete. If
    interrupted, call it again to continue.

    Args:
        repo_id: `owner/name` on the Hub.
        run_dir: A missing or empty folder, or one left by an interrupted or identical pull.
        only: Name of the only HR version to download, or "lr" for none of them; None: all. The folder is then a
            smaller set: its idc.json and card list what was downloaded. Pushing it leaves the other versions on the
            Hub as they are.
        revision: Tag, branch or commit; None: the head of the main branch.
        token: Access token; None: HF_TOKEN, or the login of `hf auth login`.

    Returns:
        The commit, the HR versions, and the number and size of the files.

    Raises:
        RecipeError: There is no HR version `only`.
        RunError: `run_dir` holds other files, or the disk has too little space.
        HubError: The Hub refused or could not be reached, the repository is not a condensed set or contradicts its
            idc.json, or a file arrived damaged.
    """
    run_dir = Path(run_dir)
    with hub_sentences(repo_id, revision):
        api = client(token)
        info = api.repo_info(repo_id, repo_type="dataset", revision=revision)
        repo_id, sha = info.id, commit_of(info)  # another id if it was renamed
        files = {path: entry for path, entry in list_files(api, repo_id, sha).items() if is_repository_path(path)}
        if MANIFEST not in files and not read_tags(api, repo_id, "dataset"):
            raise HubError(f"{repo_id} is not a condensed set: it has no {MANIFEST}.")
        if only is not None:
            files = _only(repo_id, only, files)
        repair = ""
        folder, staging = run_dir / "repo", run_dir / f"{_STAGING}{sha}"
        run_dir.mkdir(parents=True, exist_ok=True)
        with repository_lock(folder):  # a second pull into the same folder waits
            if not _is_pulled(folder, files, ignore=() if only is None else (CARD, MANIFEST)):
                _check_free(run_dir, repo_id)
                _check_space(run_dir, staging, files)
                api.snapshot_download(
                    repo_id, repo_type="dataset", revision=sha, local_dir=staging, allow_patterns=sorted(files)
                )
                _check_arrived(repo_id, staging, files)
                if only is not None:
                    _keep_only(staging, only)
                repair = _repair(api, repo_id, staging, files)
                _check_consistent(repo_id, staging)
                rmtree(staging / ".cache")
                staging.rename(folder)
                for abandoned in run_dir.glob(f"{_STAGING}*/"):
                    rmtree(abandoned)
    return PullResult(
        repo_id=repo_id,
        commit=sha,
        run_dir=str(run_dir),
        hr_versions=sorted(CondensedSet(folder).manifest.hr_versions),
        files=len(files),
        bytes=sum(entry.size for entry in files.values()),
        repair=repair,
    )


def _only(repo_id: str, only: str, files: dict[str, RepoFile]) -> dict[str, RepoFile]:
    """The files without the HR versions that are not wanted, and without pictures, which can show them."""
    versions = {version for version in map(hr_version_of, files) if version}
    if only not in {LR, *versions}:
        raise RecipeError(f"{repo_id} has no HR version {only!r}.", f"It has {enumerated(versions)}, and {LR}.")
    return {
        path: entry
        for path, entry in files.items()
        if hr_version_of(path) in (None, only) and not path.startswith("report/")
    }


def _keep_only(folder: Path, only: str) -> None:
    """List no other HR versions in a downloaded set. What was measured of the others goes with them."""
    try:
        manifest = Manifest.load(folder)
    except (RunError, OSError):
        return  # reported later
    versions = {name: version for name, version in manifest.hr_versions.items() if name == only}
    facts = dict(manifest.condensation)
    if isinstance(quality := facts.get("quality"), dict):
        facts["quality"] = {name: measured for name, measured in quality.items() if name == only}
    default = only if only in versions else None
    manifest.model_copy(update={"hr_versions": versions, "default": default, "condensation": facts}).save(folder)
    if versions:
        write_card(CondensedSet(folder))


def _is_pulled(folder: Path, files: dict[str, RepoFile], ignore: Collection[str]) -> bool:
    """Whether a repository folder holds exactly these files; the bytes of those in `ignore` may differ."""
    local = repository_files(folder)
    return local.keys() == files.keys() and all(
        name in ignore or matches(path, files[name]) for name, path in local.items()
    )


def _check_free(run_dir: Path, repo_id: str) -> None:
    """Refuse a Run directory that holds anything except earlier attempts to pull, and the repository's lock."""
    expected = (_STAGING, ".repo.lock", ".repo.json", "..repo.json.")
    if any(not path.name.startswith(expected) for path in run_dir.iterdir()):
        raise RunError(
            f"{run_dir} is not empty and does not hold this commit of {repo_id}.", "Choose another --run-dir."
        )


def _check_space(run_dir: Path, staging: Path, files: dict[str, RepoFile]) -> None:
    """Refuse a download that does not fit onto the disk."""
    needed = sum(entry.size for path, entry in files.items() if not (staging / path).is_file())
    free = disk_usage(run_dir).free
    if needed > free:
        raise RunError(
            f"{run_dir} has {free / 1e9:,.1f} GB of free space; the download needs {needed / 1e9:,.1f} GB.",
            "Free some space, or choose another --run-dir.",
        )


def _check_arrived(repo_id: str, folder: Path, files: dict[str, RepoFile]) -> None:
    """Compare downloaded files with the Hub's listing; remove damaged ones."""
    damaged = [p for p, entry in files.items() if not (folder / p).is_file() or not matches(folder / p, entry)]
    for path in damaged:
        (folder / path).unlink(missing_ok=True)
    if damaged:
        raise HubError(f"These files of {repo_id} arrived damaged: {enumerated(damaged)}.", AGAIN)


def _repair(api: HfApi, repo_id: str, folder: Path, files: dict[str, RepoFile]) -> str:
    """If idc.json is missing or lists HR versions whose files were deleted, write it and the card again.

    Returns:
        A sentence that says so; empty if all is well.
    """
    restored = ""
    if MANIFEST not in files:
        restored = restore_manifest(api, repo_id, files, folder)
        if not restored:
            rmtree(folder)
            raise HubError(f"{repo_id} is not a condensed set: it has no {MANIFEST}.")
    try:
        manifest, missing = without_missing(Manifest.load(folder), files)
    except RunError:
        return ""  # _check_consistent reports it
    if restored or missing:
        manifest.save(folder)
        write_card(CondensedSet(folder))
    return " ".join(filter(None, (restored, missing)))


def _check_consistent(repo_id: str, folder: Path) -> None:
    """Compare downloaded files with idc.json; remove all of them if they contradict it."""
    try:
        check_contents(CondensedSet(folder))
    except RunError as error:
        rmtree(folder)
        raise HubError(
            f"{repo_id} contradicts itself: {error.message.replace(str(folder), repo_id)}",
            "Ask its owner to push it again.",
        ) from error
