"""push: publish a set or a trained network on the Hub."""

from __future__ import annotations

from pathlib import Path

from idc_hub.dataset.condensed_set import repository_folder
from idc_hub.hub import push as hub
from idc_hub.hub.push import PushResult
from idc_hub.hub.releases import is_network


def push(
    path: str | Path,
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
    """Publish a condensed set as a dataset, or a network as a model: one commit with the changed files, then a tag.

    The first tag is v1.0.0. New LR patches or weights raise MAJOR, new HR versions or another default raise MINOR, any
    other change raises PATCH. Your own keys and prose in the card are kept, whether you wrote them on the Hub or in the
    folder. If nothing changed, no commit is made.

    Args:
        path: A Run, a repository folder, or a network's folder that `train` wrote.
        repo_id: `owner/name`, or a name under the token's account; created if it does not exist.
        license: License identifier of the Hub, such as cc-by-4.0; None: the license that the card names.
        license_name: Name of the license, for `other`; None: the name on the card.
        license_link: Its https:// address, or LICENSE for that file in the folder; None: the link on the card.
        public: Make a new repository public; an existing repository keeps its visibility.
        create_pr: Open a pull request instead of committing.
        dry_run: Check everything and report what would be pushed; change nothing.
        token: Access token; None: HF_TOKEN, or the login of `hf auth login`.
        commit_message: First line of the commit message; None: a summary of the changes.

    Returns:
        The files, which of them are uploaded or deleted, the change of the card, and the commit and tag if any.

    Raises:
        RunError: The set is incomplete, or `datasets` cannot load it; nothing was uploaded.
        NetworkError: The network cannot be loaded; nothing was uploaded.
        RecipeError: Neither `license` nor the card names a license, or the Hub has no such license.
        HubError: The Hub refused or could not be reached, or this push would destroy something there.
    """
    folder = Path(path)
    return hub.push(
        folder if is_network(folder) else repository_folder(folder),
        repo_id,
        license=license,
        license_name=license_name,
        license_link=license_link,
        public=public,
        create_pr=create_pr,
        dry_run=dry_run,
        token=token,
        commit_message=commit_message,
    )
