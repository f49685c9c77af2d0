"""pull: download a condensed set from the Hub."""

from __future__ import annotations

from pathlib import Path

from idc_hub.hub import pull as hub
from idc_hub.hub.pull import PullResult


def pull(repo_id: str, *, run_dir: str | Path, revision: str | None = None, token: str | None = None) -> PullResult:
    """Download a condensed set into a Run directory, to verify it, add HR versions, or push it again.

    Afterwards `run_dir/repo` equals the repository on the Hub byte for byte. It appears only when it is complete. If
    interrupted, call it again to continue.

    Args:
        repo_id: `owner/name` on the Hub.
        run_dir: A missing or empty folder, or one left by an interrupted or identical pull.
        revision: Tag, branch or commit; None: the head of the main branch.
        token: Access token; None: HF_TOKEN, or the login of `hf auth login`.

    Returns:
        The commit, the HR versions, and the number and size of the files.

    Raises:
        RunError: `run_dir` holds other files.
        HubError: The Hub refused or could not be reached, the repository is not a condensed set or contradicts its
            idc.json, or a file arrived damaged.
    """
    return hub.pull(repo_id, Path(run_dir), revision=revision, token=token)
