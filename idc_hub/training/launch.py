"""Train a network in one process or, through Accelerate's launcher, in several.

All pixels are decoded once, into a file that every process maps into its memory. Several processes are started as
`python -m idc_hub.training.launch FOLDER`, and read their task from that folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from idc_hub import errors
from idc_hub.atomic import write_text_atomically
from idc_hub.background import in_background
from idc_hub.errors import IDCError, IncompleteError, Interrupted, RecipeError
from idc_hub.networks import NETWORKS, create, load
from idc_hub.runs.launch import run_processes
from idc_hub.runs.progress import Progress, Reporting, counting
from idc_hub.runs.run import whole_lines
from idc_hub.runs.tracking import check_trackers
from idc_hub.runs.worker import end_with_parent
from idc_hub.training.loop import METRICS, check, check_settings, train
from idc_hub.training.pairs import Pairs
from idc_hub.training.pixels import WORK, PixelFile, work_folder, write_pixels
from idc_hub.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from idc_hub.networks.registry import Network

LOG_NAME = "training.log"
POLL_SECONDS = 0.5

Tell = Callable[[int, float], None]


def train_network(
    spec: str,
    pairs: Pairs,
    folder: Path,
    recipe: TrainingRecipe,
    *,
    arguments: Mapping[str, Any] | None = None,
    num_processes: int | None = None,
    trackers: Sequence[str] = (),
    progress: Reporting = False,
) -> None:
    """Train a network on this machine; see `training.loop.train`.

    Inside a launcher's process (`accelerate launch`, `torchrun`) it takes part in the launcher's training instead.

    The decoded pixels are in `folder/.training` until the training ends or is interrupted; a training that continues
    decodes again.

    Args:
        spec: The name of a network to start from scratch; a folder or a Hub id of one to train further.
        pairs: What to train on; its scale is the network's.
        folder: Gets the trained network.
        recipe: How to train.
        arguments: Of a network to start from scratch; see `networks.create`.
        num_processes: None: one for each visible GPU, or a single one on the CPU.
        trackers: Where to report to in addition to `metrics.jsonl`.
        progress: True prints progress on stderr, False nothing; a function gets every `Progress` event.

    Raises:
        Interrupted: A signal stopped the training after a checkpoint.
        IncompleteError: One of several processes died, or the disk is too full for the pixels.
        IDCError: What `train` raises.
    """
    report = _report(recipe.steps, progress)
    network = _start(spec, pairs.scale, recipe, arguments)
    launched = "WORLD_SIZE" in os.environ
    processes = num_processes or max(1, torch.cuda.device_count())
    if not launched and processes > 1 and torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise RecipeError(f"{processes} processes need as many GPUs, and {torch.cuda.device_count()} can be seen.")
    check_trackers(trackers)
    check_settings(folder, recipe, num_processes=int(os.environ["WORLD_SIZE"]) if launched else processes)
    fit = functools.partial(
        train, network, folder=folder, recipe=recipe, data=pairs.facts, trackers=trackers, progress=report
    )
    if launched:
        _train_launched(fit, pairs, folder, progress)
        return
    with work_folder(folder) as work:
        pixels = _write(pairs, work, progress)
        if processes == 1:
            fit(pairs=pixels.map(), sha256=pixels.sha256)
            return
        check(folder, pixels.map(), pairs.scale, recipe, num_processes=processes)
        task = {"spec": spec, "folder": str(folder.resolve()), "trackers": list(trackers), "data": pairs.facts}
        task["arguments"] = dict(arguments or {})
        task |= {"recipe": recipe.model_dump(mode="json"), "pixels": pixels.facts()}
        write_text_atomically(work / "task.json", json.dumps(task))
        log, threads = folder / LOG_NAME, max(1, (os.cpu_count() or 1) // processes)
        with _reporting_metrics(folder / METRICS, report):
            status = run_processes("idc_hub.training.launch", [str(work)], processes, log=log, threads=threads)
        if (work / "error.json").exists():
            error = json.loads((work / "error.json").read_text(encoding="utf-8"))
            raise getattr(errors, error["kind"])(error["message"], error["hint"])
    if status != 0:
        raise IncompleteError(
            f"The training ended with status {status}; the end of its log, {log}, may say why.",
            "Run the same command again: it continues from the last checkpoint.",
        )
    log.unlink()


def _train_launched(fit: Callable[..., Network], pairs: Pairs, folder: Path, progress: Reporting) -> None:
    """Train inside a launcher's process: the first process of each machine writes the pixels, the others map them."""
    state = PartialState(cpu=not torch.cuda.is_available())
    facts = folder / WORK / platform.node() / "pixels.json"
    with contextlib.ExitStack() as stack:
        with state.local_main_process_first():
            if state.is_local_main_process:
                work = stack.enter_context(work_folder(folder, platform.node()))
                pixels = _write(pairs, work, progress)
                write_text_atomically(facts, json.dumps(pixels.facts()))
        pixels = PixelFile(**json.loads(facts.read_text(encoding="utf-8")))
        fit(pairs=pixels.map(), sha256=pixels.sha256)


def _write(pairs: Pairs, work: Path, progress: Reporting) -> PixelFile:
    """`write_pixels`, with progress on stderr."""
    say = (lambda sentence: print(sentence, file=sys.stderr, flush=True)) if progress is True else None
    with counting("decoding images", progress) as count:
        return write_pixels(pairs, work, say=say, progress=count)


def _report(steps: int, progress: Reporting) -> Tell | None:
    """What a training calls with the step and the loss."""
    if progress is False:
        return None
    if progress is True:
        return lambda step, loss: print(f"step {step}/{steps}  loss {loss:.5f}", file=sys.stderr, flush=True)
    report = progress
    return lambda step, loss: report(Progress("training", step, steps, {"loss": loss}))


def _start(spec: str, scale: int, recipe: TrainingRecipe, arguments: Mapping[str, Any] | None) -> Network:
    """The network that a training begins with, the same in every process."""
    torch.manual_seed(recipe.seed)
    return create(spec, scale=scale, arguments=arguments) if spec in NETWORKS else load(spec, scale=scale)


@contextlib.contextmanager
def _reporting_metrics(metrics: Path, report: Tell | None) -> Iterator[None]:
    """Report each line that the main process adds to the metrics while the block runs."""
    if report is None:
        yield
        return

    def read() -> list[dict[str, Any]]:
        return list(whole_lines(metrics.read_bytes())) if metrics.exists() else []

    reported = len(read())

    def report_new() -> None:
        nonlocal reported
        lines = read()
        for line in lines[reported:]:
            report(line["step"], line["loss"])
        reported = len(lines)  # fewer than before if a training went back to its checkpoint

    def poll(over: threading.Event) -> None:
        while not over.wait(POLL_SECONDS):
            report_new()

    try:
        with in_background(poll):
            yield
    finally:
        report_new()


def main(argv: list[str] | None = None) -> int:
    """Train as one of several processes; the launcher sets the rank in the environment."""
    end_with_parent()
    work = Path((argv or sys.argv[1:])[0])
    task = json.loads((work / "task.json").read_text(encoding="utf-8"))
    recipe, pixels = TrainingRecipe.model_validate(task["recipe"]), PixelFile(**task["pixels"])
    try:
        network = _start(task["spec"], pixels.scale, recipe, task["arguments"])
        train(
            network,
            pixels.map(),
            task["folder"],
            recipe,
            sha256=pixels.sha256,
            data=task["data"],
            trackers=task["trackers"],
        )
    except Interrupted as interrupted:
        return 128 + interrupted.signal
    except IDCError as error:
        if os.environ.get("RANK", "0") == "0":
            facts = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            write_text_atomically(work / "error.json", json.dumps(facts))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
