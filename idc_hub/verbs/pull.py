"""pull: a condensed set from the Hub."""

from __future__ import annotations

from pathlib import Path

from idc_hub.hub import pull as hub
from idc_hub.hub.pull import PullResult


def pull(repo_id: str, *, run_dir: str | Path, revision: str | None = None, token: str | None = None) -> PullResult:
    """Download a condensed set into a Run: enough to verify it, to add an HR version and to push it again.

    `run_dir/repo` is then what stands on the Hub, byte for byte. It appears at the end, complete; after an interruption
    the same call continues.

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
    return hub.pull(repo_id, Path(run_dir), revision=revision, token=token)
