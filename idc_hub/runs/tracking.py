"""Trackers (tensorboard, trackio, wandb): where a training reports its steps, and a condensation its photographs."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idc_hub.background import in_background
from idc_hub.errors import RecipeError, one_line
from idc_hub.runs.run import Run, stems

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = ("tensorboard", "trackio", "wandb")
REFRESH_SECONDS = 2.0
"""Seconds between two looks for finished photographs."""


def check_trackers(trackers: Iterable[str]) -> None:
    """Refuse trackers that are not installed; Accelerate would only warn, and track nothing.

    Raises:
        RecipeError: There is no such tracker, or it is not installed.
    """
    for name in trackers:
        if name not in TRACKERS:
            raise RecipeError(f"There is no tracker {name}.", hint=f"The trackers are {', '.join(TRACKERS)}.")
        try:
            version(name)
        except PackageNotFoundError as error:
            raise RecipeError(f"The tracker {name} is not installed: `pip install {name}`.") from error


def tracking_accelerator(folder: Path, trackers: Sequence[str]) -> Accelerator:
    """An Accelerator that reports to trackers; tensorboard's files are written to `folder`.

    Raises:
        RecipeError: There is no such tracker, or it is not installed.
    """
    import torch
    from accelerate import Accelerator

    check_trackers(trackers)
    cpu = not torch.cuda.is_available()  # otherwise CPU processes do not find each other
    return Accelerator(cpu=cpu, log_with=list(trackers) or None, project_dir=folder)


def start_trackers(accelerator: Accelerator, name: str, config: dict[str, Any]) -> None:
    """Begin a run called `name` in the project idc-hub; `config` is recorded with it."""
    texts = {key: str(value) for key, value in config.items()}
    with redirect_stdout(sys.stderr):  # trackio prints, and results alone belong on stdout
        accelerator.init_trackers("idc-hub", texts, init_kwargs={"trackio": {"name": name}, "wandb": {"name": name}})


def end_trackers(accelerator: Accelerator) -> None:
    """End what `start_trackers` began; does nothing without trackers."""
    with redirect_stdout(sys.stderr):
        accelerator.end_training()
        if accelerator.is_main_process and any(tracker.name == "trackio" for tracker in accelerator.trackers):
            sys.modules["trackio"].finish()  # Accelerate leaves it to trackio's exit handler, which prints, too


@contextmanager
def track(run: Run, trackers: Sequence[str]) -> Iterator[None]:
    """Report every photograph that is finished during the block, by whichever worker.

    The step of a report is the number of finished photographs. Its values are `held_out` and `held_out_random`
    (`CondenseResult`) and the last unweighted terms of the loss.

    Args:
        run: The Run; tensorboard's files are written to its folder `idc-hub`.
        trackers: Which of `TRACKERS` to report to; none: nothing happens.

    Raises:
        RecipeError: There is no such tracker, it is not installed, or this is one of several processes.
    """
    if not trackers:
        yield
        return
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise RecipeError(
            "Trackers need a single `idc condense`, and this is one of several processes.",
            "Leave the launcher out: `idc condense` starts a worker per GPU by itself.",
        )
    accelerator = tracking_accelerator(run.path, trackers)
    start_trackers(accelerator, run.path.name, run.recipe.lr_keys())
    finished = stems(run.path / "instances", ".safetensors")

    def report(over: threading.Event) -> None:
        try:
            _follow(run, accelerator, finished, over)
        except Exception as error:  # a tracker's server may fail in any way, and must not stop the work
            warnings.warn(f"The trackers get no more reports: {one_line(str(error))}", stacklevel=1)

    try:
        with in_background(report):
            yield
    finally:
        end_trackers(accelerator)


def _follow(run: Run, accelerator: Accelerator, finished: set[str], over: threading.Event) -> None:
    ending = False
    while not ending:
        ending = over.wait(REFRESH_SECONDS)
        new = stems(run.path / "instances", ".safetensors") - finished
        for instance in run.instances if new else ():
            if instance.id in new:
                finished.add(instance.id)
                facts = run.read_facts(instance)
                values: dict[str, float] = {key: facts[key] for key in ("held_out", "held_out_random") if key in facts}
                values |= {f"loss/{term}": value for term, value in facts.get("losses", {}).items()}
                accelerator.log(values, step=len(finished))
