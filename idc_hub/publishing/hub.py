"""A repository tree and the Hub: push it as one commit, pull it back.

Consumers only ever see complete releases: everything is uploaded first, one commit makes it visible, and a tag that
never moves names it. Whatever breaks in between, the same command continues.
"""

import io
import json
import re
import tempfile
import time
from dataclasses import dataclass, field, replace
from difflib import unified_diff
from pathlib import Path
from shutil import rmtree
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from idc_hub.errors import HubError, RecipeError, RunError
from idc_hub.publishing.card import merge_card
from idc_hub.publishing.hub_errors import AGAIN, hub_sentences, refused
from idc_hub.publishing.tree import CARD, MANIFEST, check_repository, hr_version_of, is_ours, listed, own_files
from idc_hub.storage.atomic import write_text_atomically
from idc_hub.storage.manifest import Manifest
from idc_hub.storage.parquet import measure
from idc_hub.storage.shards import verify_lr

ATTEMPTS = 5

_LIBRARY = "idc-hub"
_STAGING = ".pull-"
_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class PushResult:
    """What a push did, or for a dry run would do.

    Attributes:
        repo_id: Owner and name on the Hub.
        url: Its page.
        private: Whether only its owner can see it.
        sizes: Bytes of every file of the release, by path.
        uploads: The paths among them that the Hub does not have in this form.
        deletions: Paths of the release before that are gone from this one.
        card_diff: Unified diff from the card on the Hub to the new one; empty where they are equal.
        commit: The commit that was made; None when nothing had changed, and for a dry run.
        tag: The release's tag; None for a dry run and for a pull request.
        pull_request: Address of the pull request, if one was opened.
    """

    repo_id: str
    url: str
    private: bool
    sizes: dict[str, int]
    uploads: list[str]
    deletions: list[str]
    card_diff: str
    commit: str | None = None
    tag: str | None = None
    pull_request: str | None = None

    def __str__(self) -> str:
        """The tree with sizes and what changes in it, and the card's diff: what `--dry-run` prints."""
        marks = dict.fromkeys(self.uploads, "+") | dict.fromkeys(self.deletions, "-")
        sizes = dict.fromkeys(self.deletions, 0) | self.sizes
        lines = [f"{marks.get(path, ' ')} {size:>15,}  {path}" for path, size in sorted(sizes.items())]
        volume = sum(self.sizes[path] for path in self.uploads)
        lines.append(f"{len(self.uploads)} of {len(self.sizes)} files ({volume:,} bytes) differ from {self.url}")
        return "\n".join([*lines, self.card_diff]).rstrip()


@dataclass(frozen=True)
class _Remote:
    """The head of the repository on the Hub; empty while there is no repository."""

    sha: str | None = None
    private: bool = True
    files: dict[str, RepoFile] = field(default_factory=dict)
    card: str = ""
    manifest: Manifest | None = None


def push(
    repo_folder: Path,
    repo_id: str,
    *,
    license: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> PushResult:
    """Publish a repository tree as a dataset: one commit with everything that changed, then a tag.

    The first tag is v1.0.0; then other LR patches make a new MAJOR, other HR versions or another default a new MINOR,
    anything else a new PATCH. The card on the Hub keeps its user's keys and prose; the merged card is written into
    `repo_folder` too, so that both stay equal.

    Args:
        repo_folder: `repo/` of a Run.
        repo_id: `owner/name`, or a name under the token's account. Created if there is no such dataset.
        license: The Hub's identifier of the licence. None keeps the one that the card names.
        public: Whether a new repository can be seen by everybody. One that exists stays as it is.
        create_pr: Open a pull request instead of committing: the way to add to somebody else's dataset.
        dry_run: Find out everything and change nothing.
        token: Access token; None takes HF_TOKEN or the one that `hf auth login` stored.
        commit_message: First line of the commit; None says what changed.

    Raises:
        RunError: The tree is not complete, or `datasets` cannot load it; nothing was uploaded.
        RecipeError: No licence.
        HubError: The Hub refused or could not be reached, or holds something that this push would destroy.
    """
    manifest = check_repository(repo_folder)
    with hub_sentences(repo_id):
        api = HfApi(token=token, library_name=_LIBRARY)
        account = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{account}/{repo_id}"
        attempt = _Push(api, repo_folder, repo_id, manifest, license, create_pr, commit_message)
        if dry_run:
            return attempt.plan(public)
        return attempt.publish(public)


class _Push:
    """One push: what it was given, and the head of the repository as it was last read."""

    def __init__(
        self,
        api: HfApi,
        folder: Path,
        repo_id: str,
        manifest: Manifest,
        license: str | None,
        create_pr: bool,
        message: str | None,
    ) -> None:
        self.api, self.folder, self.repo_id, self.manifest = api, folder, repo_id, manifest
        self.license, self.create_pr, self.message = license, create_pr, message
        self.remote = _Remote()
        self.card = ""

    def publish(self, public: bool) -> PushResult:
        """Plans, uploads and commits until the commit is there; then tags it."""
        for attempt in range(ATTEMPTS):
            plan = self.plan(public)
            if not plan.uploads and not plan.deletions:
                # Found on a later attempt, the commit of an earlier one had worked and only its answer was lost.
                plan = replace(plan, commit=self.remote.sha if attempt else None)
                break
            if self.remote.sha is None:
                self.api.create_repo(self.repo_id, repo_type="dataset", private=not public, exist_ok=True)
                self.remote = _read_remote(self.api, self.repo_id)
            try:
                info = self.commit(plan)
                plan = replace(plan, commit=info.oid, pull_request=info.pr_url)
                break
            except (HfHubHTTPError, httpx.TransportError) as error:
                if attempt == ATTEMPTS - 1 or not self.may_pass(error):
                    raise
                time.sleep(0.5 * 2**attempt)
        write_text_atomically(self.folder / CARD, self.card)
        return plan if self.create_pr else replace(plan, tag=self.tag(plan.commit))

    def plan(self, public: bool) -> PushResult:
        """Reads the head of the repository and finds out what has to change there."""
        self.remote = remote = _read_remote(self.api, self.repo_id)
        self.check_allowed()
        self.card = self.merge_card()
        contents = self.contents()
        diff = unified_diff(
            remote.card.splitlines(), self.card.splitlines(), "README.md on the Hub", "README.md", lineterm=""
        )
        return PushResult(
            repo_id=self.repo_id,
            url=f"{constants.ENDPOINT}/datasets/{self.repo_id}",
            private=remote.private if remote.sha else not public,
            sizes={path: _size(content) for path, content in contents.items()},
            uploads=[path for path, content in contents.items() if not _matches(content, remote.files.get(path))],
            deletions=[path for path in remote.files if path not in contents and self.is_retired(path)],
            card_diff="\n".join(diff),
        )
