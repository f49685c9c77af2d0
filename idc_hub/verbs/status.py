"""status: how far a Run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.runs.run import Run


@dataclass(frozen=True)
class StatusResult:
    """How far a Run is.

    Attributes:
        run: The Run directory.
        recipe: Name of its recipe.
        lr_recipe_hash: Hash of everything in the recipe that determines the LR patches.
        photographs: Number of photographs, which the five states below sum to.
        patches: Patches that stand, or will stand, for them.
        finished: Photographs whose patches are there.
        running: Photographs that a process works on.
        interrupted: Photographs with a checkpoint that nobody works on.
        failed: Photographs that could not be condensed.
        waiting: Photographs that nobody has begun.
        instances: For each photograph `id`, `state`, `patches`, `step`, `steps`, `resumed_from` (the step of its latest
            start; None before the first), `error`, and `last`, the last logged terms.
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
    instances: list[dict[str, Any]]


def status(run_dir: str | Path) -> StatusResult:
    """Say what of a Run is finished, running, interrupted, failed or waiting.

    Args:
        run_dir: The Run directory; whoever works on it, wherever, is not disturbed.

    Raises:
        RunError: There is no Run, or it is damaged.
    """
    return StatusResult(**Run.open(Path(run_dir)).status())
