"""push: a set or a trained network to the Hub."""

from __future__ import annotations

from pathlib import Path

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.hub import push as hub
from idc_hub.hub.push import PushResult
from idc_hub.hub.releases import is_network


def push(
    path: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> PushResult:
    """Publish a condensed set as a dataset, or a network as a model: one commit with what changed, then a tag.

    The first tag is v1.0.0; then other LR patches or other weights make a new MAJOR, other HR versions or another
    default a new MINOR, anything else a new PATCH. The card keeps its user's keys and prose, whether they were written
    on the Hub or in the folder. Where nothing has changed, no commit is made.

    Args:
        path: A Run, a repository folder, or the folder of a network that `train` wrote.
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
        RunError: The set is not complete, or `datasets` cannot load it; nothing was uploaded.
        NetworkError: The network cannot be loaded; nothing was uploaded.
        RecipeError: No license.
        HubError: The Hub refused or could not be reached, or holds something that this push would destroy.
    """
    folder = Path(path)
    return hub.push(
        folder if is_network(folder) else CondensedSet.open(folder).folder,
        repo_id,
        license=license,
        public=public,
        create_pr=create_pr,
        dry_run=dry_run,
        token=token,
        commit_message=commit_message,
    )
