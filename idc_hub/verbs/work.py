"""work: take part in the condensation of a Run, as one worker."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from idc_hub.errors import RecipeError
from idc_hub.runs.launch import worker_device
from idc_hub.runs.progress import Reporting, show_progress
from idc_hub.runs.run import Run
from idc_hub.runs.worker import PARENT, end_with_parent
from idc_hub.runs.worker import work as condense_all


@dataclass(frozen=True)
class WorkResult:
    """Result of `work`: all photographs of the Run are finished.

    Attributes:
        run: The Run directory.
        photographs: Number of photographs.
        seconds: Wall-clock seconds of this call.
    """

    run: str
    photographs: int
    seconds: float


def work(
    run_dir: str | Path, *, rank: int | None = None, world_size: int | None = None, progress: Reporting = True
) -> WorkResult:
    """Condense photographs of a Run in this process until none is left.

    Any number of workers may do this at once, on all machines that see the directory; each takes photographs that no
    other one has. `accelerate launch`, `torchrun`, SLURM or a plain shell may start them. When all photographs are
    finished, `condense` makes the HR patches and the repository.

    Args:
        run_dir: A Run directory that `condense` has begun.
        rank: This worker's number; it only decides which GPU it uses and where in the list it begins. None: from the
            environment (`RANK`), or 0.
        world_size: How many workers were started together. None: from the environment (`WORLD_SIZE`), or 1.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        The number of photographs, and the seconds this took.

    Raises:
        RunError: There is no Run, or it is damaged.
        RecipeError: The Run is a selection, or the rank is not below the number of workers.
        NetworkError: The extractor cannot be loaded.
        ImageError: The source is gone.
        IncompleteError: Photographs failed.
        Interrupted: A signal stopped the work, after a checkpoint; the same call continues.
    """
    if PARENT in os.environ:
        end_with_parent()
    begun = time.monotonic()
    local = int(os.environ.get("LOCAL_RANK") or 0) if rank is None else rank
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE") or 1) if rank is None else rank + 1
    rank = int(os.environ.get("RANK") or 0) if rank is None else rank
    if not 0 <= rank < world_size:
        raise RecipeError(f"The rank {rank} is not below the number of workers, {world_size}.", "Ranks begin with 0.")
    run = Run.open(Path(run_dir))
    if run.recipe.method != "idc":
        raise RecipeError(
            f"{run.path} is a selection ({run.recipe.method}); there is nothing to condense.", "Use `idc select`."
        )
    with show_progress(run, progress):
        condense_all(run, worker_device(local), rank=rank, world_size=world_size)
    run.require_finished()
    return WorkResult(str(run.path), len(run.instances), round(time.monotonic() - begun, 1))
