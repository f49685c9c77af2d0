"""push: publish a set or a trained network on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from idc_hub.dataset.condensed_set import repository_folder, repository_lock
from idc_hub.dataset.licenses import License
from idc_hub.errors import IncompleteError, RecipeError
from idc_hub.hub.push import Push, PushResult
from idc_hub.hub.releases import DatasetRelease, NetworkRelease, Release, is_network
from idc_hub.hub.revisions import account_of, client
from idc_hub.hub_errors import hub_sentences


def push(
    path: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    replace: Collection[str] = (),
    replace_set: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    on_start: Callable[[PushResult], None] | None = None,
) -> PushResult:
    """Publish a condensed set as a dataset, or a network as a model: one commit with the changed files, then a tag.

    The first tag is v1.0.0. New LR patches or weights and replaced HR versions raise MAJOR, new HR versions or another
    default raise MINOR, any other change raises PATCH. HR versions that only the Hub has stay there. Your own keys and
    prose in the card are kept, whether you wrote them on the Hub or in the folder. If nothing changed, no commit is
    made.

    Args:
        path: A Run, a repository folder, or a network's folder that `train` wrote.
        repo_id: `owner/name`, or a name under the token's account; created if it does not exist.
        license: License identifier of the Hub, such as cc-by-4.0; None: the license that the card names.
        license_name: Name of the license, for `other`; None: the name on the card.
        license_link: Its https:// address, or LICENSE for that file in the folder; None: the link on the card.
        public: Make a new repository public; an existing repository keeps its visibility.
        create_pr: Open a pull request instead of committing, or update the open one of an earlier call; it changes
            neither the default version nor the license.
        replace: Names of HR versions on the Hub that this push may replace, or add again after they were withdrawn.
        replace_set: Allow this push to replace a set that has other LR patches.
        dry_run: Check everything and report what would be pushed; change nothing.
        token: Access token; None: HF_TOKEN, or the login of `hf auth login`.
        commit_message: First line of the commit message; None: a summary of the changes.
        on_start: Called with the plan before anything is uploaded.

    Returns:
        The files, which of them are uploaded or deleted, the change of the card, and the commit and tag if any.

    Raises:
        RunError: The set is incomplete, or `datasets` cannot load it; nothing was uploaded.
        NetworkError: The network cannot be loaded; nothing was uploaded.
        RecipeError: Neither `license` nor the card names a license, the Hub has no such license, or an argument
            contradicts the set.
        HubError: The Hub refused or could not be reached, or this push would destroy something there.
    """
    given = License(license, license_name, license_link) if license else None
    if given is None and (license_name or license_link):
        raise RecipeError("--license-name and --license-link need --license other.", "Add it.")
    if given and given.identifier != "other":  # the name and the link of `other` can be on the card
        given.check()
    folder = Path(path) if is_network(Path(path)) else repository_folder(Path(path))
    with _locked(folder):
        release: Release = NetworkRelease(folder) if is_network(folder) else DatasetRelease(folder)
        with hub_sentences(repo_id, kind=release.kind):
            api = client(token)
            account = account_of(api)
            repo_id = repo_id if "/" in repo_id else f"{account}/{repo_id}"
            attempt = Push(api, account, release, repo_id, given, public=public, create_pr=create_pr)
            return attempt.plan() if dry_run else attempt.publish(commit_message, set(replace), replace_set, on_start)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a repository folder, so that its files do not change; a read-only place has no lock."""
    with ExitStack() as stack:
        with suppress(IncompleteError):
            stack.enter_context(repository_lock(folder))
        yield
