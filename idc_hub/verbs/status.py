"""status: report how far a Run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.runs.run import Run


@dataclass(frozen=True)
class StatusResult:
    """Result of `status`. Each photograph is in one of six states.

    Attributes:
        run: The Run directory.
        recipe: Name of its recipe.
        lr_recipe_hash: Hash of the recipe keys that determine the LR patches.
        photographs: Number of photographs.
        patches: Number of patches, made or still to be made.
        finished: Photographs whose patches are made.
        running: Photographs that a process is working on.
        interrupted: Photographs with a checkpoint that no process is working on.
        failed: Photographs that could not be condensed.
        waiting: Photographs that have not been started.
        damaged: Photographs whose finished file is damaged; `condense` makes them again.
        instances: For each photograph `id`, `state`, `patches`, `step`, `steps`, `resumed_from` (the step of its latest
            start; None before the first), `error`, and `last` (the terms logged last).
    """

    run: str
    recipe: str
    lr_recipe_hash: str
    photographs: int
    patches: int
    finished: int
    running: int
    interrupted: int
    failed: int
    waiting: int
    damaged: int
    instances: list[dict[str, Any]]


def status(run_dir: str | Path) -> StatusResult:
    """Report the state of every photograph of a Run. Can be called while workers run; writes nothing.

    Args:
        run_dir: The Run directory.

    Returns:
        Counts by state, and the state of each photograph.

    Raises:
        RunError: There is no Run, or it is damaged.
    """
    return StatusResult(**Run.open(Path(run_dir)).status())
