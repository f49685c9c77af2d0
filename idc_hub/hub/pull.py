"""Pull a condensed set from the Hub into a Run directory, each file held to its digest."""

from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.check import is_ours, own_files
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST
from idc_hub.dataset.parquet import measure
from idc_hub.errors import HubError, RunError, enumerated
from idc_hub.hub.revisions import client, commit_of, list_files, matches
from idc_hub.hub_errors import AGAIN, hub_sentences

_STAGING = ".pull-"


@dataclass(frozen=True)
class PullResult:
    """What a pull fetched.

    Attributes:
        repo_id: `owner/name`.
        commit: The commit that was fetched.
        run_dir: The Run directory.
        hr_versions: Names of its HR versions.
        files: Number of files.
        bytes: Their size together.
    """

    repo_id: str
    commit: str
    run_dir: str
    hr_versions: list[str]
    files: int
    bytes: int


def pull(repo_id: str, run_dir: Path, *, revision: str | None = None, token: str | None = None) -> PullResult:
    """Download a dataset into a Run: `run_dir/repo` is then what stands on the Hub, byte for byte.

    Every file is held to the digest in the Hub's listing, which the client does not do, and the contents to idc.json.
    `repo` appears at the end, complete; after an interruption the same call continues.

    Args:
        repo_id: `owner/name` on the Hub.
        run_dir: A folder that is missing or empty, or that an interrupted or an equal pull left.
        revision: Tag, branch or commit; None takes the newest state.
        token: Access token; None takes HF_TOKEN or the one that `hf auth login` stored.

    Returns:
        What was fetched.

    Raises:
        RunError: `run_dir` holds something else.
        HubError: The Hub refused or could not be reached, the repository is not one of ours or contradicts itself, or
            a file arrived damaged.
    """
    with hub_sentences(repo_id, revision):
        api = client(token)
        sha = commit_of(api.repo_info(repo_id, repo_type="dataset", revision=revision))
        files = {path: entry for path, entry in list_files(api, repo_id, sha).items() if is_ours(path)}
        if MANIFEST not in files:
            raise HubError(f"{repo_id} is not a dataset made by idc: it has no {MANIFEST}.")
        repo, staging = run_dir / "repo", run_dir / f"{_STAGING}{sha}"
        if not _is_pulled(repo, files):
            _check_free(run_dir, repo_id)
            api.snapshot_download(
                repo_id, repo_type="dataset", revision=sha, local_dir=staging, allow_patterns=sorted(files)
            )
            _check_arrived(repo_id, staging, files)
            rmtree(staging / ".cache")
            staging.rename(repo)
            for abandoned in run_dir.glob(f"{_STAGING}*"):
                rmtree(abandoned)
    return PullResult(
        repo_id=repo_id,
        commit=sha,
        run_dir=str(run_dir),
        hr_versions=sorted(CondensedSet(repo).manifest.hr_versions),
        files=len(files),
        bytes=sum(entry.size for entry in files.values()),
    )


def _is_pulled(repo: Path, files: dict[str, RepoFile]) -> bool:
    """Whether a folder holds exactly these files."""
    here = own_files(repo)
    return here.keys() == files.keys() and all(matches(path, files[name]) for name, path in here.items())


def _check_free(run_dir: Path, repo_id: str) -> None:
    """A pull writes into a folder only if nothing but earlier attempts lies there."""
    if run_dir.exists() and any(not path.name.startswith(_STAGING) for path in run_dir.iterdir()):
        raise RunError(
            f"{run_dir} is not empty and does not hold this state of {repo_id}.", "Choose another --run-dir."
        )


def _check_arrived(repo_id: str, folder: Path, files: dict[str, RepoFile]) -> None:
    """Holds what was downloaded to the Hub's listing and to its own idc.json; damaged files are removed."""
    damaged = [p for p, entry in files.items() if not (folder / p).is_file() or not matches(folder / p, entry)]
    for path in damaged:
        (folder / path).unlink(missing_ok=True)
    if damaged:
        raise HubError(f"These files of {repo_id} arrived damaged: {enumerated(damaged)}.", AGAIN)
    try:
        condensed = CondensedSet(folder)
        condensed.check_lr()
        for version in condensed.manifest.hr_versions:
            if measure(condensed.data(version)).rows != condensed.manifest.patches:
                raise RunError(f"{folder}/data/{version} has not {condensed.manifest.patches} rows.")
    except RunError as error:
        rmtree(folder)
        raise HubError(
            f"{repo_id} contradicts itself: {error.message.replace(str(folder), repo_id)}",
            "Ask its owner to push it again.",
        ) from error
