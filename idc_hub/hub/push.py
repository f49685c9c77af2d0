"""Push a condensed set or a network to the Hub, as one commit and a tag.

Consumers only ever see complete releases: everything is uploaded first, one commit makes it visible, and a tag that
never moves names it. Whatever breaks in between, the same command continues.
"""

import re
import time
from dataclasses import dataclass, replace
from difflib import unified_diff
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from idc_hub.atomic import write_text_atomically
from idc_hub.dataset.card import merge_card
from idc_hub.dataset.condensed_set import CARD
from idc_hub.errors import HubError, RecipeError
from idc_hub.hub.releases import DatasetRelease, NetworkRelease, Release, is_network
from idc_hub.hub.revisions import Revision, client, commit_of, matches, read_revision, size_of
from idc_hub.hub_errors import AGAIN, hub_sentences, page_of, refused

ATTEMPTS = 5

_TAG = re.compile(r"v(\d+)\.(\d+)\.(\d+)")

_Version = tuple[int, int, int]


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do.

    Attributes:
        repo_id: `owner/name`.
        url: Address of the repository's page.
        private: Whether only its owner sees it.
        files: Bytes of every file of the release, by path.
        uploads: Paths among them that the Hub did not have in this form.
        deletions: Paths that are gone.
        card_diff: How the card changes, as a unified diff.
        commit: The commit; None when nothing had changed, and for a dry run.
        tag: The release that the state of the folder now has; None for a dry run and a pull request.
        pull_request: Address of the pull request, where one was asked for.
    """

    repo_id: str
    url: str
    private: bool
    files: dict[str, int]
    uploads: list[str]
    deletions: list[str]
    card_diff: str
    commit: str | None = None
    tag: str | None = None
    pull_request: str | None = None


def push(
    folder: Path,
    repo_id: str,
    *,
    license: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> PushResult:
    """Publish a repository folder as a dataset, or a network as a model: one commit with what changed, then a tag.

    The first tag is v1.0.0; then other LR patches or other weights make a new MAJOR, other HR versions or another
    default a new MINOR, anything else a new PATCH. The card keeps its user's keys and prose, whether they were written
    on the Hub or in `folder`; the card that was pushed is written into `folder`, so that both stay equal.

    Args:
        folder: `repo/` of a Run, or a network's folder.
        repo_id: `owner/name`, or a name under the token's account. Created if there is none.
        license: The Hub's identifier of the license. None keeps the one that the card names.
        public: Whether a new repository can be seen by everybody. One that exists stays as it is.
        create_pr: Open a pull request instead of committing: the way to add to somebody else's repository.
        dry_run: Find out everything and change nothing.
        token: Access token; None takes HF_TOKEN or the one that `hf auth login` stored.
        commit_message: First line of the commit; None says what changed.

    Returns:
        What was done, or would be done.

    Raises:
        RunError: The tree is not complete, or `datasets` cannot load it; nothing was uploaded.
        NetworkError: The network cannot be loaded; nothing was uploaded.
        RecipeError: No license.
        HubError: The Hub refused or could not be reached, or holds something that this push would destroy.
    """
    release: Release = NetworkRelease(folder) if is_network(folder) else DatasetRelease(folder)
    with hub_sentences(repo_id, kind=release.kind):
        api = client(token)
        account = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{account}/{repo_id}"
        attempt = _Push(api, release, repo_id, license, public, create_pr)
        return attempt.plan() if dry_run else attempt.publish(commit_message)


class _Push:
    """One push: what it was given, and the head of the repository as it was last read."""

    def __init__(
        self, api: HfApi, release: Release, repo_id: str, license: str | None, public: bool, create_pr: bool
    ) -> None:
        self.api, self.release, self.repo_id = api, release, repo_id
        self.license, self.create_pr = license, create_pr
        self.head = Revision()
        self.private = not public
        self.card = ""
        self.contents: dict[str, Path | bytes] = {}
        self.additions: list[CommitOperationAdd] = []

    def publish(self, message: str | None) -> PushResult:
        """Plans, uploads and commits until the commit is there, then tags it."""
        done = None
        for attempt in range(ATTEMPTS):
            plan = self.plan()
            if not plan.uploads and not plan.deletions:
                # On a later attempt this says that the commit of an earlier one had worked and its answer was lost.
                plan = replace(done, commit=self.head.sha) if done else plan
                break
            done = plan
            self.upload(plan)
            try:
                info = self.commit(plan, message or self.release.message(self.head.facts))
            except (HfHubHTTPError, httpx.TransportError) as error:
                if attempt == ATTEMPTS - 1 or not self.may_pass(error):
                    raise
                time.sleep(0.25 * 2**attempt)
            else:
                plan = replace(plan, commit=info.oid, pull_request=info.pr_url)
                break
        write_text_atomically(self.release.folder / CARD, self.card)
        return plan if self.create_pr else replace(plan, tag=self.tag(plan.commit))

    def plan(self) -> PushResult:
        """Reads the head of the repository and finds out what has to change there."""
        self.head = self.read_head()
        if self.head.facts is None and self.head.files.keys() - {".gitattributes", CARD}:
            kind, file = self.release.kind, self.release.facts_file
            raise HubError(
                f"{self.repo_id} exists and is not a {kind} made by idc: it has files, but no {file}.",
                "Push to another name.",
            )
        self.release.check_nothing_is_lost(self.repo_id, self.head.facts)
        self.card = self.merged_card()
        self.contents = {**self.release.files(), CARD: self.card.encode()}
        before, after = (self.head.card or "").splitlines(), self.card.splitlines()
        diff = unified_diff(before, after, f"{CARD} on the Hub", CARD, lineterm="")
        remote = self.head.files
        return PushResult(
            repo_id=self.repo_id,
            url=page_of(self.repo_id, self.release.kind),
            private=self.private,
            files={path: size_of(content) for path, content in self.contents.items()},
            uploads=[path for path, content in self.contents.items() if not matches(content, remote.get(path))],
            deletions=[
                path for path in remote if path not in self.contents and self.release.is_retired(path, self.head.facts)
            ],
            card_diff="\n".join(diff),
        )

    def read_head(self) -> Revision:
        """The head of the repository, once it is known that the token may change it."""
        try:
            info = self.api.repo_info(self.repo_id, repo_type=self.release.kind)
        except RepositoryNotFoundError as error:
            if self.create_pr:
                raise HubError(
                    f"There is no {self.release.kind} {self.repo_id} to open a pull request on.",
                    "Push without --create-pr.",
                ) from error
            return Revision()
        if not self.create_pr:
            self.api.auth_check(self.repo_id, repo_type=self.release.kind, write=True)
        self.private = bool(info.private)
        return self.revision_of(commit_of(info))

    def revision_of(self, sha: str) -> Revision:
        """A commit of the repository."""
        return read_revision(self.api, self.repo_id, sha, self.release)

    def merged_card(self) -> str:
        """The card for this release, with the keys and the prose that its user wrote on the Hub or in the folder.

        Raises:
            HubError: They were edited in both places since the last release.
            RecipeError: It names no license.
        """
        path, there = self.release.folder / CARD, self.head.card
        card = path.read_bytes().decode() if path.exists() else ""
        license = self.license or _license(there) or _license(card)
        if not license:
            raise RecipeError(
                f"A {self.release.kind} is not pushed without a license.",
                "Name one with --license, such as cc-by-4.0; the terms of the photographs decide which.",
            )
        fresh = self.release.render_card(self.repo_id, license)
        local = merge_card(card, fresh)
        if there is None:
            return local
        remote = merge_card(there, fresh)
        if _same(local, remote) or _same(local, fresh):
            return remote
        tags = self.tags()
        released = self.revision_of(tags[max(tags)]).card if tags else None
        base = fresh if released is None else merge_card(released, fresh)
        if _same(local, base):
            return remote
        if _same(remote, base):
            return local
        raise HubError(
            f"{CARD} was edited both in {self.release.folder} and on the Hub since the last push.",
            "Bring both to the same text first, for example by pasting yours into the page on the Hub.",
        )

    def upload(self, plan: PushResult) -> None:
        """Uploads large files one by one; what the Hub has already is not sent again. Nothing is visible yet."""
        try:
            RepoCard(self.card).validate(repo_type=self.release.kind)  # before anything large is sent
        except ValueError as error:
            raise refused(self.repo_id, error) from error
        if self.head.sha is None:
            self.api.create_repo(self.repo_id, repo_type=self.release.kind, private=self.private, exist_ok=True)
            self.head = self.read_head()
        self.additions = [CommitOperationAdd(path, self.contents[path]) for path in plan.uploads]
        for addition in self.additions:
            self.api.preupload_lfs_files(
                self.repo_id, [addition], repo_type=self.release.kind, create_pr=self.create_pr
            )

    def commit(self, plan: PushResult, message: str) -> CommitInfo:
        """The one commit, which fails if the head has moved since the plan was made."""
        deletions = [CommitOperationDelete(path, is_folder=False) for path in plan.deletions]
        return self.api.create_commit(
            self.repo_id,
            [*self.additions, *deletions],
            commit_message=message,
            repo_type=self.release.kind,
            parent_commit=self.head.sha,
            create_pr=self.create_pr,
        )

    def may_pass(self, error: Exception) -> bool:
        """Whether to look again and retry. A pull request is not tried twice: it could be there twice."""
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return status in (409, 412) or (status >= 500 and not self.create_pr)
        return not isinstance(error, httpx.ConnectError) and not self.create_pr

    def tags(self) -> dict[_Version, str]:
        """The releases so far and their commits."""
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.release.kind).tags
        found = ((_TAG.fullmatch(ref.name), ref.target_commit) for ref in refs)
        return {(int(m[1]), int(m[2]), int(m[3])): commit for m, commit in found if m}

    def tag(self, commit: str | None) -> str:
        """Tags a new commit, or the head if the push that made it could not. A tag is never moved.

        Returns:
            The tag that the state of the tree now has.
        """
        target = commit or self.head.sha
        problem: Exception | None = None
        for attempt in range(ATTEMPTS):
            tags = self.tags()
            tagged = [version for version, sha in tags.items() if sha == target]
            released = self.revision_of(tags[max(tags)]).facts if tags and not tagged else None
            if tagged or (commit is None and released == self.release.facts):
                return _tag_name(max(tagged or tags))
            name = _tag_name(_raised(max(tags), self.release.change(released)) if tags else (1, 0, 0))
            try:
                self.api.create_tag(self.repo_id, tag=name, revision=target, repo_type=self.release.kind)
                return name
            except (HfHubHTTPError, httpx.TransportError) as error:
                problem = error
                if not self.may_pass(error):
                    break
                time.sleep(0.25 * 2**attempt)
        raise HubError(f"{self.repo_id} has the commit {target}, but it could not be tagged.", AGAIN) from problem


def _raised(version: _Version, number: int) -> _Version:
    """The next version where the major (0), the minor (1) or the patch number (2) rises."""
    major, minor, patch = version
    return [(major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1)][number]


def _tag_name(version: _Version) -> str:
    return "v{}.{}.{}".format(*version)


def _license(card: str | None) -> Any:
    try:
        return RepoCard(card).data.to_dict().get("license") if card else None
    except (ValueError, yaml.YAMLError):
        return None  # merge_card says what is wrong with it


def _same(card: str, other: str) -> bool:
    """Whether two cards say the same; the order of their keys does not count."""
    one, two = RepoCard(card), RepoCard(other)
    return (one.data.to_dict(), one.text) == (two.data.to_dict(), two.text)
