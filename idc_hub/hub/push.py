"""Push a condensed set or a network to the Hub, as one commit and a tag.

Consumers only ever see complete releases: after all files are uploaded, one commit makes them visible, and a tag that
never moves names the release. After any failure, the same command continues.
"""

import re
import time
from dataclasses import dataclass, replace
from difflib import unified_diff
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from idc_hub.atomic import write_text_atomically
from idc_hub.dataset.card import keep_edited_section, merge_card, read_card, read_metadata
from idc_hub.dataset.condensed_set import CARD
from idc_hub.dataset.licenses import License, choose
from idc_hub.errors import HubError, RecipeError
from idc_hub.hub.releases import DatasetRelease, NetworkRelease, Release, is_network
from idc_hub.hub.revisions import Revision, client, commit_of, matches, read_revision, size_of
from idc_hub.hub_errors import AGAIN, hub_sentences, page_of, refused

ATTEMPTS = 5

_TAG = re.compile(r"v(\d+)\.(\d+)\.(\d+)")

_Version = tuple[int, int, int]


@dataclass(frozen=True)
class PushResult:
    """The result of a push, or of a dry run.

    Attributes:
        repo_id: `owner/name`.
        url: Address of the repository's page.
        private: Whether the repository is private.
        files: Size in bytes of every file of the release, by path.
        uploads: Paths that were new or different on the Hub.
        deletions: Paths that were deleted on the Hub.
        card_diff: Unified diff from the card on the Hub to the new one.
        commit: The commit; None if nothing had changed, and for a dry run.
        tag: The tag of this release; None for a dry run and a pull request.
        pull_request: Address of the pull request, with `create_pr`.
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
    license_name: str | None = None,
    license_link: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> PushResult:
    """Publish a repository folder as a dataset, or a network as a model: one commit with the changes, then a tag.

    The first tag is v1.0.0. After that, new LR patches or weights raise MAJOR, new HR versions or another default raise
    MINOR, and anything else raises PATCH. The card keeps the user's keys and text, whether written on the Hub or in
    `folder`. The pushed card is also written to `folder`.

    Args:
        folder: The repository folder of a set, or a network's folder.
        repo_id: `owner/name`, or a name under the token's account. Created if missing.
        license: The Hub's identifier of the license; None: the license on the present card.
        license_name: Name of the license, for `other`; None: the name on the present card.
        license_link: Its https:// address, or LICENSE; None: the link on the present card.
        public: Whether a new repository is public. Does not change an existing one.
        create_pr: Open a pull request instead of committing, for example on somebody else's repository.
        dry_run: Only report what would change.
        token: Access token; None: HF_TOKEN, or the token that `hf auth login` stored.
        commit_message: First line of the commit message; None: a summary of the changes.

    Returns:
        What was done, or would be done.

    Raises:
        RunError: The repository folder is incomplete, or `datasets` cannot load it; nothing was uploaded.
        NetworkError: The network cannot be loaded; nothing was uploaded.
        RecipeError: There is no license, or it is not one of the Hub's.
        HubError: The Hub refused or could not be reached, or holds something that this push would destroy.
    """
    given = License(license, license_name, license_link) if license else None
    if given is None and (license_name or license_link):
        raise RecipeError("--license-name and --license-link need --license other.", "Add it.")
    if given and given.identifier != "other":
        given.check()
    release: Release = NetworkRelease(folder) if is_network(folder) else DatasetRelease(folder)
    with hub_sentences(repo_id, kind=release.kind):
        api = client(token)
        account = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{account}/{repo_id}"
        attempt = _Push(api, release, repo_id, given, public, create_pr)
        return attempt.plan() if dry_run else attempt.publish(commit_message)


class _Push:
    """A push: its arguments, and the head of the repository as last read."""

    def __init__(
        self, api: HfApi, release: Release, repo_id: str, license: License | None, public: bool, create_pr: bool
    ) -> None:
        self.api, self.release, self.repo_id = api, release, repo_id
        self.license, self.create_pr = license, create_pr
        self.head = Revision()
        self.private = not public
        self.card = ""
        self.contents: dict[str, Path | bytes] = {}
        self.additions: list[CommitOperationAdd] = []

    def publish(self, message: str | None) -> PushResult:
        """Plan, upload and commit, again after another commit or a lost answer; then tag the commit."""
        done = None
        for attempt in range(ATTEMPTS):
            plan = self.plan()
            if not plan.uploads and not plan.deletions:
                # On a later attempt this means that an earlier commit succeeded and only its answer was lost.
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
        for card in dict.fromkeys((read_card(self.release.folder / CARD), self.head.card or "")):
            keep_edited_section(self.release.folder, card)
        write_text_atomically(self.release.folder / CARD, self.card)
        return plan if self.create_pr else replace(plan, tag=self.tag(plan.commit))

    def plan(self) -> PushResult:
        """Read the head of the repository and compare it with the release."""
        self.head = self.read_head()
        if self.head.facts is None and self.head.files.keys() - {".gitattributes", CARD}:
            kind, file = self.release.kind, self.release.facts_file
            raise HubError(
                f"{self.repo_id} exists and is not a {kind} of idc-hub: it has files, but no {file}.",
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
        """Read the head of the repository, after checking that the token may change it."""
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
        """Read a commit of the repository."""
        return read_revision(self.api, self.repo_id, sha, self.release)

    def merged_card(self) -> str:
        """The card for this release, with the keys and text that its user wrote on the Hub or in the folder.

        Raises:
            HubError: The user edited both cards since the last release.
            RecipeError: There is no license, or it is not one of the Hub's.
            RunError: The metadata of a card cannot be read.
        """
        path, remote_card = self.release.folder / CARD, self.head.card
        local_card = read_card(path)
        license = choose(self.license, *(read_metadata(card) for card in (remote_card, local_card) if card))
        if license is None:
            raise RecipeError(
                f"A {self.release.kind} needs a license to be pushed.",
                "Name one with --license, such as cc-by-4.0; it must agree with the license of the photographs.",
            )
        license.check()
        generated = self.release.render_card(self.repo_id, license, self.revision())
        local = merge_card(local_card, generated)
        if remote_card is None:
            return local
        remote = merge_card(remote_card, generated)
        if _same(local, remote) or _same(local, generated):
            return remote
        tags = self.tags()
        released = self.revision_of(tags[max(tags)]).card if tags else None
        base = generated if released is None else merge_card(released, generated)
        if _same(local, base):
            return remote
        if _same(remote, base):
            return local
        raise HubError(
            f"{CARD} was edited both in {self.release.folder} and on the Hub since the last push.",
            "Make both texts equal first, for example by pasting yours into the page on the Hub.",
        )

    def upload(self, plan: PushResult) -> None:
        """Upload large files one by one, without those that the Hub has already. Nothing is visible yet."""
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
        """Commit all changes at once; fails if the head has moved since it was planned."""
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
        """Whether a retry may succeed. A pull request is not retried after a lost answer: it could be opened twice."""
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return status in (409, 412) or (status >= 500 and not self.create_pr)
        return not isinstance(error, httpx.ConnectError) and not self.create_pr

    def tags(self) -> dict[_Version, str]:
        """The commits of all releases so far, by version."""
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.release.kind).tags
        found = ((_TAG.fullmatch(ref.name), ref.target_commit) for ref in refs)
        return {(int(m[1]), int(m[2]), int(m[3])): commit for m, commit in found if m}

    def revision(self) -> str | None:
        """The tag with the files of this release: the next one, or the first with the same files.

        Changes of the card alone do not change it. None for a pull request, which gets no tag.
        """
        if self.create_pr:
            return None
        tags = self.tags() if self.head.sha else {}
        if not tags:
            return _tag_name((1, 0, 0))
        newest = max(tags)
        change = self.release.change(self.revision_of(tags[newest]).facts)
        if change < 2:
            return _tag_name(_raised(newest, change))
        first = (newest[0], newest[1], 0)
        return _tag_name(first if first in tags else newest)

    def tag(self, commit: str | None) -> str:
        """Tag a new commit, or an untagged head that an interrupted push left. Never moves a tag.

        Returns:
            The tag of the release.
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
    """The next version: raises the major (0), minor (1) or patch (2) number."""
    major, minor, patch = version
    return [(major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1)][number]


def _tag_name(version: _Version) -> str:
    return "v{}.{}.{}".format(*version)


def _same(card: str, other: str) -> bool:
    """Whether two cards are equal except for the order of their keys."""
    one, two = RepoCard(card), RepoCard(other)
    return (one.data.to_dict(), one.text) == (two.data.to_dict(), two.text)
