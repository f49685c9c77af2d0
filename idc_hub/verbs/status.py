"""status and watch: report how far a Run is, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.runs.follow import Follower
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
        workers: Number of processes that are working.
        eta_seconds: Expected seconds until nothing is left, at the present speed; None while it is not known.
        instances: For each photograph `id`, `state`, `patches`, `step`, `steps`, `resumed_from` (the step of its latest
            start; None before the first), `host` and `pid` (the process that is working on it, or started it last),
            `steps_per_second`, `eta_seconds`, and `silent_seconds` (since its last line of metrics, if that is
            unusually long: it may hang), `error` (why it failed last), and `last` (the values logged last).
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
    workers: int
    eta_seconds: float | None
    instances: list[dict[str, Any]]


def status(run_dir: str | Path) -> StatusResult:
    """Report the state of every photograph of a Run. Can be called while workers run, on any machine; writes nothing.

    Every finished file is read and checked against its digest.

    Args:
        run_dir: The Run directory.

    Returns:
        Counts by state, and the state of each photograph.

    Raises:
        RunError: There is no Run, or it is damaged.
    """
    return StatusResult(**Follower(Run.open(Path(run_dir))).status())


def watch(run_dir: str | Path, *, every: float = 5.0) -> Iterator[StatusResult]:
    """Report the state of every photograph again and again, until all are finished or failed.

    Args:
        run_dir: The Run directory.
        every: Seconds between reports; longer if a look takes longer than a tenth of it.

    Yields:
        What `status` returns. Finished files are checked once.

    Raises:
        RunError: There is no Run, or it is damaged.
    """
    follower = Follower(Run.open(Path(run_dir)))
    while True:
        begun = time.monotonic()
        found = StatusResult(**follower.status())
        took = time.monotonic() - begun
        yield found
        if found.finished + found.failed == found.photographs:
            return
        time.sleep(max(every, 10 * took))
