"""Train a network in one process or, through Accelerate's launcher, in several.

The processes get a file that names everything, and map one copy of the pixels into their memory. Started as
`python -m idc_hub.training.launch FOLDER`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idc_hub import errors
from idc_hub.errors import IDCError, IncompleteError, RecipeError
from idc_hub.networks import NETWORKS, create, load
from idc_hub.runs.launch import run_processes
from idc_hub.runs.progress import Progress, Reporting
from idc_hub.runs.worker import end_with_parent
from idc_hub.training.loop import METRICS, check, check_trackers, train
from idc_hub.training.pairs import Pair, map_pixels, write_pixels
from idc_hub.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from idc_hub.networks.registry import Network

LOG_NAME = "training.log"
POLL_SECONDS = 0.5

Tell = Callable[[int, float], None]


def train_network(
    spec: str,
    pairs: Sequence[Pair],
    folder: Path,
    recipe: TrainingRecipe,
    *,
    scale: int,
    num_processes: int | None = None,
    data: Mapping[str, Any] | None = None,
    trackers: Sequence[str] = (),
    progress: Reporting = False,
) -> None:
    """Train a network on this machine; see `training.loop.train`.

    Inside a launcher's process (`accelerate launch`, `torchrun`) it takes part in the launcher's training instead.

    Args:
        spec: The name of a network to start from scratch; a folder or a Hub id of one to train further.
        pairs: uint8 images of this scale.
        folder: Gets the trained network.
        recipe: How to train.
        scale: The network's scale.
        num_processes: None: one for each visible GPU, or a single one on the CPU.
        data: What the pairs are, for `training.yaml`.
        trackers: Where to report to besides `metrics.jsonl`.
        progress: True prints a line whenever one of the metrics is written, False nothing; a function gets every
            `Progress` event.

    Raises:
        Interrupted: A signal stopped several processes; the last checkpoint stays.
        IncompleteError: One of several processes died.
        IDCError: What `train` raises.
    """
    tell = _teller(recipe.steps, progress)
    network = _start(spec, scale, recipe)
    processes = num_processes or max(1, torch.cuda.device_count())
    if processes == 1 or "WORLD_SIZE" in os.environ:
        train(network, pairs, folder, recipe, data=data, trackers=trackers, progress=tell)
        return
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise RecipeError(f"{processes} processes need as many GPUs, and {torch.cuda.device_count()} can be seen.")
    check_trackers(trackers)
    check(folder, pairs, scale, recipe, num_processes=processes)
    folder.mkdir(parents=True, exist_ok=True)
    job = {"spec": spec, "scale": scale, "folder": str(folder.resolve()), "trackers": list(trackers)}
    job |= {"recipe": recipe.model_dump(mode="json"), "data": dict(data or {})}
    with _desk(folder) as desk, _following(folder / METRICS, tell):
        shapes = write_pixels(pairs, desk / "pixels")
        (desk / "job.json").write_text(json.dumps(job | {"shapes": shapes}), encoding="utf-8")
        log, threads = folder / LOG_NAME, max(1, (os.cpu_count() or 1) // processes)
        status = run_processes("idc_hub.training.launch", [str(desk)], processes, log=log, threads=threads)
        if (desk / "error.json").exists():
            error = json.loads((desk / "error.json").read_text(encoding="utf-8"))
            raise getattr(errors, error["kind"])(error["message"], error["hint"])
    if status != 0:
        raise IncompleteError(
            f"The training ended with status {status}; the last words of its processes are in {log}.",
            "Run the same command again: it continues from the last checkpoint.",
        )
    log.unlink()


def _teller(steps: int, progress: Reporting) -> Tell | None:
    """What a training calls with the step and the loss."""
    if progress is False:
        return None
    if progress is True:
        return lambda step, loss: print(f"step {step}/{steps}  loss {loss:.5f}", file=sys.stderr, flush=True)
    report = progress
    return lambda step, loss: report(Progress("training", step, steps, {"loss": loss}))


def _start(spec: str, scale: int, recipe: TrainingRecipe) -> Network:
    """The network that a training begins with, the same in every process."""
    torch.manual_seed(recipe.seed)
    return create(spec, scale=scale) if spec in NETWORKS else load(spec, scale=scale)


@contextmanager
def _desk(folder: Path) -> Iterator[Path]:
    """A folder for what the processes need; one that a killed training left is cleared first."""
    desk = folder / ".processes"
    shutil.rmtree(desk, ignore_errors=True)
    desk.mkdir()
    try:
        yield desk
    finally:
        shutil.rmtree(desk)


@contextmanager
def _following(metrics: Path, progress: Tell | None) -> Iterator[None]:
    """Tell of each line that the main process adds to the metrics while the block runs."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def read() -> list[str]:
        written = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
        return written.rpartition("\n")[0].splitlines()  # the last line may be on its way

    told = len(read())

    def tell() -> None:
        nonlocal told
        lines = read()
        for line in map(json.loads, lines[told:]):
            progress(line["step"], line["loss"])
        told = len(lines)  # fewer than before where a training went back to its checkpoint

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell()


def main(argv: list[str] | None = None) -> int:
    """One of several processes; its rank comes from the environment that the launcher sets."""
    end_with_parent()
    desk = Path((argv or sys.argv[1:])[0])
    job = json.loads((desk / "job.json").read_text(encoding="utf-8"))
    recipe = TrainingRecipe.model_validate(job["recipe"])
    try:
        pairs = map_pixels(desk / "pixels", job["shapes"], job["scale"])
        network = _start(job["spec"], job["scale"], recipe)
        train(network, pairs, job["folder"], recipe, data=job["data"], trackers=job["trackers"])
    except IDCError as error:
        if os.environ.get("RANK", "0") == "0":
            facts = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            (desk / "error.json").write_text(json.dumps(facts), encoding="utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
