"""Pull a condensed set from the Hub into a Run directory, comparing each file with its digest."""

from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.check import is_repository_path, repository_files
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST
from idc_hub.dataset.parquet import size_of_version
from idc_hub.errors import HubError, RunError, enumerated
from idc_hub.hub.revisions import client, commit_of, list_files, matches
from idc_hub.hub_errors import AGAIN, hub_sentences

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
    """

    repo_id: str
    commit: str
    run_dir: str
    hr_versions: list[str]
    files: int
    bytes: int


def pull(repo_id: str, run_dir: Path, *, revision: str | None = None, token: str | None = None) -> PullResult:
    """Download a condensed set to `run_dir/repo`, byte for byte as on the Hub.

    Compares every file with the digest in the Hub's listing, and the contents with idc.json. `repo` appears at the end,
    complete; if interrupted, call it again to continue.

    Args:
        repo_id: `owner/name` on the Hub.
        run_dir: A folder that is missing or empty, or that holds an interrupted pull or the same set.
        revision: Tag, branch or commit; None: the newest commit.
        token: Access token; None: HF_TOKEN, or the token that `hf auth login` stored.

    Returns:
        What was pulled.

    Raises:
        RunError: `run_dir` holds something else.
        HubError: The Hub refused or could not be reached, the repository is not a condensed set or contradicts itself,
            or a file arrived damaged.
    """
    with hub_sentences(repo_id, revision):
        api = client(token)
        sha = commit_of(api.repo_info(repo_id, repo_type="dataset", revision=revision))
        files = {path: entry for path, entry in list_files(api, repo_id, sha).items() if is_repository_path(path)}
        if MANIFEST not in files:
            raise HubError(f"{repo_id} is not a condensed set: it has no {MANIFEST}.")
        folder, staging = run_dir / "repo", run_dir / f"{_STAGING}{sha}"
        if not _is_pulled(folder, files):
            _check_free(run_dir, repo_id)
            api.snapshot_download(
                repo_id, repo_type="dataset", revision=sha, local_dir=staging, allow_patterns=sorted(files)
            )
            _check_arrived(repo_id, staging, files)
            rmtree(staging / ".cache")
            staging.rename(folder)
            for abandoned in run_dir.glob(f"{_STAGING}*"):
                rmtree(abandoned)
    return PullResult(
        repo_id=repo_id,
        commit=sha,
        run_dir=str(run_dir),
        hr_versions=sorted(CondensedSet(folder).manifest.hr_versions),
        files=len(files),
        bytes=sum(entry.size for entry in files.values()),
    )


def _is_pulled(folder: Path, files: dict[str, RepoFile]) -> bool:
    """Whether a repository folder holds exactly these files."""
    local = repository_files(folder)
    return local.keys() == files.keys() and all(matches(path, files[name]) for name, path in local.items())


def _check_free(run_dir: Path, repo_id: str) -> None:
    """Refuse a Run directory that holds anything except earlier attempts to pull."""
    if run_dir.exists() and any(not path.name.startswith(_STAGING) for path in run_dir.iterdir()):
        raise RunError(
            f"{run_dir} is not empty and does not hold this commit of {repo_id}.", "Choose another --run-dir."
        )


def _check_arrived(repo_id: str, folder: Path, files: dict[str, RepoFile]) -> None:
    """Compare downloaded files with the Hub's listing and with idc.json; remove damaged ones."""
    damaged = [p for p, entry in files.items() if not (folder / p).is_file() or not matches(folder / p, entry)]
    for path in damaged:
        (folder / path).unlink(missing_ok=True)
    if damaged:
        raise HubError(f"These files of {repo_id} arrived damaged: {enumerated(damaged)}.", AGAIN)
    try:
        condensed = CondensedSet(folder)
        condensed.check_lr()
        for version in condensed.manifest.hr_versions:
            if size_of_version(condensed.data(version)).rows != condensed.manifest.patches:
                raise RunError(f"{folder}/data/{version} does not have {condensed.manifest.patches} rows.")
    except RunError as error:
        rmtree(folder)
        raise HubError(
            f"{repo_id} contradicts itself: {error.message.replace(str(folder), repo_id)}",
            "Ask its owner to push it again.",
        ) from error
