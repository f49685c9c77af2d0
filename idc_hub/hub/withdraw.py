"""Withdraw an HR version from a set on the Hub: one commit, and a tag that raises MAJOR."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from idc_hub.dataset.card import merge_card
from idc_hub.dataset.check import hr_version_of
from idc_hub.dataset.condensed_set import CARD, RECIPE
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.dataset.pictures import PICTURE
from idc_hub.errors import HubError, RecipeError, RunError, enumerated
from idc_hub.hub.releases import LR_INDEX, DatasetRelease, card_of
from idc_hub.hub.revisions import (
    Revision,
    client,
    commit_of,
    raised_version,
    read_footer,
    read_revision,
    read_tags,
    tag_name,
    withdrawn,
    withdrawn_versions,
)
from idc_hub.hub_errors import AGAIN, hub_sentences

ATTEMPTS = 5


@dataclass(frozen=True)
class Withdrawal:
    """An HR version was withdrawn from the Hub.

    Attributes:
        commit: The commit.
        tag: Its tag.
        default: The default version.
        deletions: The deleted paths.
    """

    commit: str
    tag: str
    default: str
    deletions: list[str]


def next_default(manifest: Manifest, where: str, name: str, default: str | None) -> str:
    """The default version after `name` has been deleted.

    Args:
        manifest: The set.
        where: What messages call the set.
        name: The version to delete.
        default: The version to make the default; None: it does not change.

    Raises:
        RecipeError: There is no such version, it is the only one, or it is the default and `default` is None.
    """
    others = manifest.hr_versions.keys() - {name}
    if name not in manifest.hr_versions:
        raise RecipeError(f"{where} has no HR version {name!r}.", f"Its HR versions: {enumerated(others)}.")
    if not others:
        raise RecipeError(f"{name} is the only HR version of {where}.", "Add another one first: `idc regenerate`.")
    chosen = default or manifest.default
    if chosen == name or chosen is None:
        raise RecipeError(
            f"{name} is the default HR version of {where}.",
            f"Name another one with --default: {enumerated(others)}.",
        )
    if chosen not in others:
        raise RecipeError(f"{where} has no HR version {chosen!r}.", f"Name one with --default: {enumerated(others)}.")
    return chosen


def withdraw(repo_id: str, name: str, *, default: str | None = None, token: str | None = None) -> Withdrawal:
    """Delete an HR version from the main branch of a set on the Hub. Released tags keep it.

    Args:
        repo_id: `owner/name`.
        name: The version.
        default: The version that becomes the default; required if `name` is the default.
        token: Access token; None: HF_TOKEN, or the token that `hf auth login` stored.

    Returns:
        What was done.

    Raises:
        RecipeError: See `next_default`.
        HubError: The Hub refused or could not be reached, or the repository is not a condensed set.
    """
    with hub_sentences(repo_id):
        api = client(token)
        deletions: list[str] = []
        for attempt in range(ATTEMPTS):
            head = read_revision(api, repo_id, commit_of(api.repo_info(repo_id, repo_type="dataset")), DatasetRelease)
            if head.facts is None:
                raise HubError(f"{repo_id} is not a condensed set: it has no {MANIFEST}.")
            tags = read_tags(api, repo_id, "dataset")
            tag = tag_name(raised_version(max(tags), 0) if tags else (1, 0, 0))
            if name in withdrawn_versions(head.facts) and not head.repair and head.sha not in tags.values():
                commit = str(head.sha)  # an earlier call made the commit, and its answer or its tag was lost
                break
            manifest = withdrawn(head.facts, {name}, next_default(head.facts, repo_id, name, default))
            pictures = [PICTURE.as_posix()]  # it can show the version
            deletions = [path for path in head.files if hr_version_of(path) == name or path in pictures]
            try:
                commit = _commit(api, repo_id, head, manifest, deletions, tag, f"Withdraw HR version {name}")
                break
            except (HfHubHTTPError, httpx.TransportError) as error:
                status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
                if attempt == ATTEMPTS - 1 or not (status in (409, 412) or status >= 500):
                    raise
                time.sleep(0.25 * 2**attempt)
        try:
            api.create_tag(repo_id, tag=tag, revision=commit, repo_type="dataset")
        except (HfHubHTTPError, httpx.TransportError) as error:
            raise HubError(f"{repo_id} has the commit {commit}, but it could not be tagged.", AGAIN) from error
        left = read_revision(api, repo_id, commit, DatasetRelease)
    return Withdrawal(commit, tag, str(left.facts.default), deletions)


def _commit(
    api: HfApi, repo_id: str, head: Revision, manifest: Manifest, deletions: list[str], tag: str, title: str
) -> str:
    """Commit a smaller set: its idc.json, its card, and the deletions."""
    left = [path for path in head.files if path not in deletions]
    footers = {
        path: read_footer(api, repo_id, head, path) for path in left if hr_version_of(path) in manifest.hr_versions
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in {RECIPE, LR_INDEX} & head.files.keys():
            api.hf_hub_download(repo_id, name, repo_type="dataset", revision=head.sha, local_dir=folder)
        pictures = [path for path in left if path.startswith("report/")]
        try:
            generated = card_of(manifest, folder, pictures, footers, repo_id, None, tag)
            card = merge_card(head.card or "", generated)
        except RunError as error:
            raise HubError(error.message.replace(scratch, repo_id), error.hint) from error
        manifest.save(folder)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(MANIFEST, (folder / MANIFEST).read_bytes()),
            CommitOperationAdd(CARD, card.encode()),
            *(CommitOperationDelete(path, is_folder=False) for path in deletions),
        ]
        info = api.create_commit(repo_id, operations, commit_message=title, repo_type="dataset", parent_commit=head.sha)
    return info.oid
