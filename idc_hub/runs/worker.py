"""A worker: a process that condenses unfinished photographs of a Run until none is left.

Workers share only the Run directory: finished photographs have a file there, those in work a lock, which the system
frees when its process dies. Workers may start, stop or be killed at any time, and open no process group.
Accelerate's launcher starts them as `python -m idc_hub.runs.worker RUN_DIR`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from idc_hub.condensation.condense import Condensed, State, Stopped, condense_instance
from idc_hub.errors import IDCError, Interrupted
from idc_hub.images.sources import Instance
from idc_hub.runs.progress import Reporting, counting
from idc_hub.runs.run import Run

if TYPE_CHECKING:
    import torch

    from idc_hub.images.sources import Source
    from idc_hub.recipe import Recipe

POLL_SECONDS = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


def work(run: Run, device: torch.device) -> None:
    """Condense all photographs of a Run that no other worker holds, then wait for those that others hold.

    A photograph that fails is recorded, and the work continues with the others.

    Args:
        run: The Run.
        device: Where to compute.

    Raises:
        Interrupted: On SIGINT, SIGTERM or SIGUSR1, after writing a checkpoint of the current photograph.
        NetworkError: The extractor cannot be loaded.
        ImageError: The source is gone.
        RunError: An instance file is damaged or belongs to another recipe or photograph.
    """
    import torch

    from idc_hub.images.sources import open_source
    from idc_hub.networks.extractors import load_extractor

    torch.set_num_threads(run.recipe.workers.threads)
    torch.backends.cudnn.benchmark = False
    recipe = run.recipe
    features = recipe.features
    network = load_extractor(
        features.network, features.layer, scale=recipe.scale, size=recipe.patches.size, device=device
    ).network
    source = open_source(**recipe.source.model_dump())
    with _stop_on_signal() as stopping:
        left = run.instances
        # A settled photograph stays settled: a waiting worker must not read all headers again every second.
        while left := [instance for instance in left if not run.is_settled(instance)]:
            took_any = False
            for instance in left:
                took_any |= _take(run, instance, source, network, stopping)
            if not took_any:
                time.sleep(POLL_SECONDS)
            if stopping:
                raise Interrupted(stopping[0])


def _take(run: Run, instance: Instance, source: Source, network: torch.nn.Module, stopping: list[int]) -> bool:
    """Condense one photograph if its lock is free; returns whether it was."""
    if stopping:
        return False
    try:
        with run.lock(instance.id):
            if not run.is_settled(instance):
                _condense(run, instance, source, network, stopping)
            return True
    except Timeout:
        return False


def _condense(run: Run, instance: Instance, source: Source, network: torch.nn.Module, stopping: list[int]) -> None:
    """Condense one photograph under its lock; write its patches, or the reason why it failed."""
    import torch

    recipe = run.recipe
    try:
        if instance.count == 0:
            side = recipe.patches.size
            run.write_patches(instance, torch.zeros(0, 3, side, side, dtype=torch.uint8), {"steps": 0})
            return
        lr, _ = real_patches(instance, source, recipe)
        if instance.id in run.sample:
            run.write_real(instance, lr)
        partial = run.read_partial(instance)
        device = next(network.parameters()).device
        resume = State.from_tensors(partial, device) if partial is not None else None
        started = resume.step if resume else 0
        run.append_metrics(instance.id, {"event": "start", "step": started, "pid": os.getpid(), "time": time.time()})
        condensed = condense_instance(
            lr,
            instance.count,
            network,
            recipe,
            instance.id,
            resume=resume,
            checkpoint=lambda state: run.write_partial(instance, state.to_tensors()),
            log=lambda line: run.append_metrics(instance.id, {"event": "log", **line}),
            should_stop=lambda: bool(stopping),
        )
    except Stopped:
        run.append_metrics(instance.id, {"event": "stop", "time": time.time()})
    except (IDCError, RuntimeError, ValueError, MemoryError) as error:
        # A photograph that fails (out of memory, changed file) must not stop the others.
        run.record_failure(instance, f"{type(error).__name__}: {error}")
    else:
        run.write_patches(instance, condensed.patches, _facts(run, condensed))
        run.append_metrics(instance.id, {"event": "end", "seconds": condensed.seconds, "time": time.time()})


def real_patches(instance: Instance, source: Source, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """All real LR patches of a photograph and where they were cut out.

    Args:
        instance: The photograph.
        source: Its source.
        recipe: The recipe, which has scale, size and stride.

    Returns:
        Patches, uint8 `[N, 3, h, w]`, and their places in LR pixels, int64 `[N, 2]`: (top, left).

    Raises:
        ImageError: The photograph is gone or has changed since the survey.
    """
    import torch

    from idc_hub.images.patches import windows
    from idc_hub.images.sources import load_lr_patches

    size, stride, scale = recipe.patches.size, recipe.patches.stride, recipe.scale
    lr = load_lr_patches(source, instance, scale=scale, size=size, stride=stride)
    places = windows(instance.height // scale, instance.width // scale, size, stride)
    return torch.from_numpy(lr), torch.tensor(places)


def _facts(run: Run, condensed: Condensed) -> dict[str, Any]:
    """The metadata of an instance file; equal Runs have equal metadata."""
    return {
        "held_out": condensed.held_out,
        "held_out_random": condensed.held_out_random,
        "losses": condensed.losses,
        "seed": run.recipe.seed,
        "steps": run.recipe.optimizer.steps,
    }


def find_photographs(recipe: Recipe, progress: Reporting = True) -> tuple[list[Instance], list[str]]:
    """Check every photograph of a recipe's source and assign each its number of synthetic patches.

    Args:
        recipe: The recipe.
        progress: True shows a bar on stderr, False nothing; a function gets every event.

    Returns:
        The instances, ordered by id, and the names of the files that are left out; a LeftOutWarning reports these.

    Raises:
        ImageError: Some photographs cannot be used; one error names all of them.
        HubError: The source is on the Hub and cannot be loaded.
    """
    from idc_hub.images.patches import synthetic_counts
    from idc_hub.images.sources import open_source, survey

    patches = recipe.patches
    source = open_source(**recipe.source.model_dump())
    source.warn_of_left_out()
    with counting("reading photographs", progress) as count:
        instances = survey(source, scale=recipe.scale, size=patches.size, stride=patches.stride, progress=count)
    counts = synthetic_counts([instance.patches for instance in instances], patches.ratio, patches.min_per_image)
    counted = [replace(instance, count=count) for instance, count in zip(instances, counts, strict=True)]
    return counted, list(source.left_out)


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGUSR1 instead of ending the process; yields the list of received signals."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """End this process as soon as its parent is gone.

    A killed launcher cannot stop its workers, and an orphaned worker would keep its locks. Its checkpoints stay.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS / 2)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    """Run a worker process; returns its exit code. The launcher sets its rank in the environment."""
    end_with_parent()
    import torch

    run_dir = Path((argv or sys.argv[1:])[0])
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")
    try:
        work(Run.open(run_dir), device)
    except Interrupted as interrupted:
        return 128 + interrupted.signal
    except IDCError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
