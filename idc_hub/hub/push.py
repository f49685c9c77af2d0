"""Push a condensed set or a network to the Hub, as one commit and a tag.

Consumers only ever see complete releases: after all files are uploaded, one commit makes them visible, and a tag that
never moves names the release. After any failure, the same command continues.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import unified_diff
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, Discussion, HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, httpx

from idc_hub.atomic import write_text_atomically
from idc_hub.dataset.card import keep_edited_section, merge_card, read_card, read_metadata
from idc_hub.dataset.condensed_set import CARD
from idc_hub.dataset.licenses import LICENSE_FILES, License, choose
from idc_hub.errors import HubError, RecipeError, enumerated, first_few
from idc_hub.hub.releases import Release
from idc_hub.hub.revisions import (
    Revision,
    commit_of,
    list_files,
    matches,
    raised_version,
    read_footer,
    read_revision,
    read_tags,
    size_of,
    tag_name,
    withdrawn_versions,
)
from idc_hub.hub_errors import AGAIN, page_of, refused

ATTEMPTS = 5
GITIGNORE = ".gitignore"


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
        kept: HR versions that only the Hub has and that stay there.
        replaced: HR versions on the Hub that the push replaces; a push needs their names in `replace`.
        restored: HR versions that somebody withdrew from the Hub and that the push adds again; likewise.
        replaces_set: Whether the Hub has other LR patches, which leave the main branch; a push needs `replace_set`.
        commit: The commit; None if nothing had changed, and for a dry run.
        tag: The tag of this release; None for a dry run and a pull request.
        pull_request: Address of the pull request, with `create_pr`.
        local_card: False if the card in the folder could not be updated, because the folder is read-only.
    """

    repo_id: str
    url: str
    private: bool
    files: dict[str, int]
    uploads: list[str]
    deletions: list[str]
    card_diff: str
    kept: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    replaces_set: bool = False
    commit: str | None = None
    tag: str | None = None
    pull_request: str | None = None
    local_card: bool = True


class Push:
    """A push: its arguments, and the head of the repository as last read.

    Args:
        api: The client, with the user's token.
        account: Its name on the Hub.
        release: What to publish.
        repo_id: `owner/name`; created if missing.
        license: The license to name; None: the license on the present card.
        public: Whether a new repository is public.
        create_pr: Open a pull request instead of committing.
    """

    def __init__(
        self,
        api: HfApi,
        account: str,
        release: Release,
        repo_id: str,
        license: License | None,
        *,
        public: bool,
        create_pr: bool,
    ) -> None:
        self.api, self.account, self.release, self.repo_id = api, account, release, repo_id
        self.license, self.create_pr = license, create_pr
        self.head = Revision()
        self.pull_request: Discussion | None = None
        self.private = not public
        self.card = ""
        self.revision: str | None = None
        self.published: Any = release.facts
        self.footers: dict[str, tuple[int, bytes]] = {}
        self.contents: dict[str, Path | bytes] = {}
        self.uploads: list[str] = []
        self.deletions: list[str] = []
        self.additions: list[CommitOperationAdd] = []

    def publish(
        self,
        message: str | None,
        replace_versions: set[str],
        replace_set: bool,
        on_start: Callable[[PushResult], None] | None,
    ) -> PushResult:
        """Plan, upload and commit, again after another commit or a lost answer; then tag the commit.

        Args:
            message: First line of the commit message; None: a summary of the changes.
            replace_versions: HR versions on the Hub that this push may replace or restore.
            replace_set: Whether this push may replace a set that has other LR patches.
            on_start: Called with the plan before anything is uploaded.

        Raises:
            RecipeError: There is no license, the Hub does not have it, or `replace_versions` has an unknown name.
            RunError: The metadata of a card cannot be read.
            HubError: The Hub refused or could not be reached, or has something that this push would destroy.
        """
        done = None
        for attempt in range(ATTEMPTS):
            plan = self.plan()
            if not plan.uploads and not plan.deletions:
                # On a later attempt this means that an earlier commit succeeded and only its answer was lost.
                plan = replace(done, commit=self.head.sha) if done else plan
                break
            self.check_nothing_is_lost(plan, replace_versions, replace_set)
            if on_start and done is None:
                on_start(plan)
            done = plan
            title = message or self.title(plan)
            if self.create_pr and (request := self.find_pull_request(title)):
                plan = self.aim_at(request, plan)
                if not plan.uploads and not plan.deletions:
                    break
            self.upload(plan)
            try:
                info = self.commit(plan, title)
            except (HfHubHTTPError, httpx.TransportError) as error:
                if attempt == ATTEMPTS - 1 or not self.may_pass(error):
                    raise
                time.sleep(0.25 * 2**attempt)
            else:
                plan = replace(plan, commit=info.oid, pull_request=plan.pull_request or info.pr_url)
                self.read_back(plan, info)
                break
        if not self.create_pr:
            plan = replace(plan, tag=self.tag(plan.commit))
        return replace(plan, local_card=self.write_local_card())

    def plan(self) -> PushResult:
        """Read the head of the repository and compare it with the release."""
        self.head, self.pull_request = self.read_head(), None
        release, remote = self.release, self.head.facts
        if remote is None and self.head.files.keys() - {".gitattributes", GITIGNORE, CARD}:
            raise HubError(
                f"{self.repo_id} exists and is not a {release.kind} of idc-hub: it has files, but no "
                f"{release.facts_file}.",
                "Push to another name.",
            )
        self.published = release.merged(remote, contributes=self.create_pr)
        kept = release.kept(self.published, self.head)
        self.footers = {
            path: self.footers.get(path) or read_footer(self.api, self.repo_id, self.head, path) for path in kept
        }
        files = self.head.files
        self.contents = release.contents(self.published, self.head)
        self.uploads = [path for path, content in self.contents.items() if not matches(content, files.get(path))]
        deletions = self.deletions = [
            path
            for path in files
            if path not in (CARD, *self.contents) and release.is_retired(path, self.published, remote)
        ]
        self.revision = self.described_revision()
        self.card = self.merged_card()
        self.contents[CARD] = self.card.encode()
        if not matches(self.contents[CARD], files.get(CARD)):
            self.uploads.append(CARD)
        uploads = self.uploads
        before, after = (self.head.card or "").splitlines(), self.card.splitlines()
        diff = unified_diff(before, after, f"{CARD} on the Hub", CARD, lineterm="")
        self.check_not_ignored(uploads)
        replaced = release.replaced(self.published, self.head, [*(files.keys() & set(uploads)), *deletions])
        is_set = release.kind == "dataset"
        return PushResult(
            repo_id=self.repo_id,
            url=page_of(self.repo_id, release.kind),
            private=self.private,
            files={path: size_of(content) for path, content in self.contents.items()},
            uploads=uploads,
            deletions=deletions,
            card_diff="\n".join(diff),
            kept=sorted(self.published.hr_versions.keys() - release.facts.hr_versions.keys()) if is_set else [],
            replaced=replaced,
            restored=sorted(withdrawn_versions(remote) & release.facts.hr_versions.keys()) if is_set else [],
            replaces_set=is_set and remote is not None and remote.lr_digest != self.published.lr_digest,
        )

    def find_pull_request(self, title: str) -> Discussion | None:
        """The open pull request of this account with the same title that has what the head has."""
        requests = self.api.get_repo_discussions(
            self.repo_id,
            author=self.account,
            discussion_type="pull_request",
            discussion_status="open",
            repo_type=self.release.kind,
        )
        for request in requests:
            if request.title == title:
                commits = self.api.list_repo_commits(
                    self.repo_id, repo_type=self.release.kind, revision=request.git_reference
                )
                if self.head.sha in {commit.commit_id for commit in commits}:
                    return request
        return None

    def aim_at(self, request: Discussion, plan: PushResult) -> PushResult:
        """The plan for a commit on an open pull request, instead of a new pull request."""
        reference = str(request.git_reference)
        info = self.api.repo_info(self.repo_id, repo_type=self.release.kind, revision=reference)
        self.pull_request, self.head = request, self.revision_of(commit_of(info))
        files = self.head.files
        self.uploads = [path for path, content in self.contents.items() if not matches(content, files.get(path))]
        self.deletions = [path for path in plan.deletions if path in files]
        return replace(
            plan, uploads=self.uploads, deletions=self.deletions, commit=self.head.sha, pull_request=request.url
        )

    def check_nothing_is_lost(self, plan: PushResult, replace_versions: set[str], replace_set: bool) -> None:
        """Refuse to replace a set or an HR version, or to restore a withdrawn one, unless the user allowed it.

        Raises:
            RecipeError: `replace_versions` names a version that the folder lacks.
            HubError: Something would be lost.
        """
        known = self.published.hr_versions.keys() if self.release.kind == "dataset" else set()
        if unknown := replace_versions - known:
            raise RecipeError(
                f"--replace names {enumerated(unknown)}, but {self.release.folder} has {enumerated(known)}."
            )
        if plan.replaces_set and not replace_set:
            remote = self.head.facts
            raise HubError(
                f"{self.repo_id} is another set: its LR patches and the HR versions {enumerated(remote.hr_versions)}, "
                f"made from {remote.patches:,} patches with the digest {remote.lr_digest[:8]}…, would leave the main "
                "branch.",
                "Push to another name, or add --replace-set. Released tags keep the old files.",
            )
        if replaced := set(plan.replaced) - replace_versions:
            raise HubError(
                f"{self.repo_id} has HR versions of the same name made otherwise: {enumerated(replaced)}.",
                "Give yours another name with `idc regenerate`, or replace those on the Hub: "
                + " ".join(f"--replace {name}" for name in sorted(replaced)),
            )
        if restored := set(plan.restored) - replace_versions:
            raise HubError(
                f"The HR versions {enumerated(restored)} were withdrawn from {self.repo_id}.",
                "Delete them here with `idc delete-version`, or publish them again: "
                + " ".join(f"--replace {name}" for name in sorted(restored)),
            )

    def title(self, plan: PushResult) -> str:
        """The first line of the commit message, which names every change."""
        parts = self.release.changes(self.published, self.head.facts, plan.replaced)
        before, after = _license(self.head.card), _license(self.card)
        if self.head.facts is not None and before != after:
            parts.append(f"Change the license from {_named(before)} to {_named(after)}")
        named = CARD, self.release.facts_file
        if not parts:
            others = [path for path in [*plan.uploads, *plan.deletions] if path not in named]
            parts = [f"Update {enumerated(others)}" if others else "Update the card"]
        return "; ".join(parts)

    def check_not_ignored(self, uploads: list[str]) -> None:
        """Ask the Hub which files it would ignore because of the .gitignore there: the client drops them silently.

        Raises:
            HubError: It would ignore some.
        """
        if not uploads or GITIGNORE not in self.head.files:
            return
        ignored = []
        for start in range(0, len(uploads), 256):  # the Hub's limit
            asked = [{"path": path, "size": 1, "sample": ""} for path in uploads[start : start + 256]]
            response = get_session().post(
                f"{self.api.endpoint}/api/{self.release.kind}s/{self.repo_id}/preupload/main",
                params={"create_pr": "1"} if self.create_pr else None,
                json={"files": asked},
                headers=build_hf_headers(token=self.api.token),
            )
            hf_raise_for_status(response)
            ignored += [file["path"] for file in response.json()["files"] if file.get("shouldIgnore")]
        if not ignored:
            return
        path = self.api.hf_hub_download(self.repo_id, GITIGNORE, repo_type=self.release.kind, revision=self.head.sha)
        lines = Path(path).read_bytes().decode(errors="replace").splitlines()
        blamed = [line for line in lines if any(_ignores(line, path) for path in ignored)]
        which = f"the lines {', '.join(blamed)}" if blamed else "the lines that ignore them"
        raise HubError(
            f"The {GITIGNORE} of {self.repo_id} makes the Hub ignore {first_few(ignored)}.",
            f"Remove {which} from {page_of(self.repo_id, self.release.kind)}/edit/main/{GITIGNORE}",
        )

    def read_back(self, plan: PushResult, info: CommitInfo) -> None:
        """List the commit that was made, and compare it with the plan.

        Raises:
            HubError: A file is missing or different, or was not deleted.
        """
        revision = info.pr_revision or info.oid
        files = list_files(self.api, self.repo_id, revision, kind=self.release.kind)
        sent = {addition.path_in_repo: addition for addition in self.additions}

        def arrived(path: str) -> bool:
            entry = files.get(path)
            if entry is None:
                return False
            if path not in sent:
                return entry.blob_id == self.head.files[path].blob_id
            digest = sent[path].upload_info.sha256.hex()
            return entry.lfs.sha256 == digest if entry.lfs else matches(self.contents[path], entry)

        wrong = [path for path in self.contents if not arrived(path)]
        wrong += [path for path in plan.deletions if path in files]
        if wrong:
            raise HubError(
                f"The commit {info.oid} of {self.repo_id} is not what was sent, so it has no tag. Missing or different "
                f"on the Hub: {enumerated(wrong)}.",
                AGAIN,
            )

    def write_local_card(self) -> bool:
        """Update the card in the folder: the published text, with the HR versions that the folder has.

        Returns:
            Whether the folder could be written to.
        """
        folder, license = self.release.folder, _license(self.card)
        assert license is not None, "merged_card has put it there"
        generated = self.release.render_card(self.repo_id, license, self.revision, self.release.facts, {})
        try:
            for card in dict.fromkeys((read_card(folder / CARD), self.head.card or "")):
                keep_edited_section(folder, card)
            write_text_atomically(folder / CARD, merge_card(self.card, generated))
        except OSError:
            return False
        return True

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
            try:
                self.api.auth_check(self.repo_id, repo_type=self.release.kind, write=True)
            except HfHubHTTPError as error:  # some mirrors do not have it
                if error.response.status_code != 404:
                    raise
        self.private = bool(info.private)
        self.repo_id = info.id  # another one if it was renamed
        return self.revision_of(commit_of(info))

    def revision_of(self, sha: str) -> Revision:
        """Read a commit of the repository, unless it is the head."""
        if sha == self.head.sha:
            return self.head
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
        published = _license(remote_card)
        if self.create_pr and published and license and published.identifier != license.identifier:
            raise RecipeError(
                f"{self.repo_id} has the license {_named(published)}; a pull request does not change it.",
                "Leave --license out.",
            )
        if license is None:
            raise RecipeError(
                f"A {self.release.kind} needs a license to be pushed.",
                "Name one with --license, such as cc-by-4.0; it must agree with the license of the photographs.",
            )
        license.check()
        if license.link in LICENSE_FILES and license.link not in self.contents.keys() | self.head.files.keys():
            raise RecipeError(
                f"The license links to {license.link}, but {self.release.folder} has no such file.",
                "Write the license's text there, or give an https:// address.",
            )
        generated = self.release.render_card(self.repo_id, license, self.revision, self.published, self.footers)
        local = merge_card(local_card, generated)
        if remote_card is None:
            return local
        remote = merge_card(remote_card, generated)
        if _same(local, remote) or _same(local, generated):
            return remote
        tags = read_tags(self.api, self.repo_id, self.release.kind)
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
            self.api.preupload_lfs_files(self.repo_id, [addition], repo_type=self.release.kind, **self.destination())

    def commit(self, plan: PushResult, message: str) -> CommitInfo:
        """Commit all changes at once; fails if the head has moved since it was planned."""
        deletions = [CommitOperationDelete(path, is_folder=False) for path in plan.deletions]
        return self.api.create_commit(
            self.repo_id,
            [*self.additions, *deletions],
            commit_message=message,
            repo_type=self.release.kind,
            parent_commit=self.head.sha,
            **self.destination(),
        )

    def destination(self) -> dict[str, Any]:
        """Where the client commits: an open pull request, a new one, or the main branch."""
        if self.pull_request is not None:
            return {"revision": self.pull_request.git_reference}
        return {"create_pr": self.create_pr}

    def may_pass(self, error: Exception) -> bool:
        """Whether a retry may succeed. It finds what a commit whose answer was lost has done."""
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (409, 412) or error.response.status_code >= 500
        return not isinstance(error, httpx.ConnectError)

    def described_revision(self) -> str | None:
        """The tag that the card names: the next one, or the first with the same files.

        Changes of the card alone do not change it. None for a pull request, which gets no tag.
        """
        if self.create_pr:
            return None
        tags = read_tags(self.api, self.repo_id, self.release.kind) if self.head.sha else {}
        if not tags:
            return tag_name((1, 0, 0))
        newest = max(tags)
        change = self.change_since(self.revision_of(tags[newest]))
        if change < 2:
            return tag_name(raised_version(newest, change))
        first = (newest[0], newest[1], 0)
        return tag_name(first if first in tags else newest)

    def change_since(self, released: Revision) -> int:
        """Which number of the version this push raises after a release: major (0), minor (1) or patch (2)."""

        def is_kept(path: str) -> bool:
            if path in self.uploads:
                return matches(self.contents[path], released.files[path])
            present = None if path in self.deletions else self.head.files.get(path)
            return present is not None and present.blob_id == released.files[path].blob_id

        return self.release.change(self.published, released, [path for path in released.files if not is_kept(path)])

    def tag(self, commit: str | None) -> str:
        """Tag a new commit, or an untagged head that an interrupted push left. Never moves a tag.

        Args:
            commit: The new commit; None: the head.

        Returns:
            The tag of the release.
        """
        target = commit or self.head.sha
        problem: Exception | None = None
        for attempt in range(ATTEMPTS):
            tags = read_tags(self.api, self.repo_id, self.release.kind)
            tagged = [version for version, sha in tags.items() if sha == target]
            released = self.revision_of(tags[max(tags)]) if tags and not tagged else Revision()
            if tagged or (commit is None and released.facts == self.published):
                return tag_name(max(tagged or tags))
            name = tag_name(raised_version(max(tags), self.change_since(released)) if tags else (1, 0, 0))
            try:
                self.api.create_tag(self.repo_id, tag=name, revision=target, repo_type=self.release.kind)
                return name
            except (HfHubHTTPError, httpx.TransportError) as error:
                problem = error
                if not self.may_pass(error):
                    break
                time.sleep(0.25 * 2**attempt)
        raise HubError(f"{self.repo_id} has the commit {target}, but it could not be tagged.", AGAIN) from problem


def _license(card: str | None) -> License | None:
    """The license on a card."""
    return License.of(read_metadata(card)) if card else None


def _named(license: License | None) -> str:
    """A license in a sentence."""
    if license is None:
        return "none"
    return license.identifier if isinstance(license.identifier, str) else enumerated(license.identifier)


def _ignores(line: str, path: str) -> bool:
    """Whether a line of .gitignore by itself ignores a path; only to name the line, since the Hub has decided."""
    pattern = line.strip()
    if not pattern or pattern[0] in "#!":
        return False
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    if pattern.endswith("/"):
        above.pop()
    pattern = pattern.rstrip("/")
    if "/" in pattern:
        return any(fnmatch(folder, pattern.lstrip("/")) for folder in above)
    return any(fnmatch(part, pattern) for part in parts[: len(above)])


def _same(card: str, other: str) -> bool:
    """Whether two cards are equal except for the order of their keys."""
    one, two = RepoCard(card), RepoCard(other)
    return (one.data.to_dict(), one.text) == (two.data.to_dict(), two.text)
