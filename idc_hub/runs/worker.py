"""A worker: a process that takes unfinished photographs from a Run until none is left.

Workers never talk to each other. What is finished stands in the Run directory, what is taken is locked there, and
the system frees a lock when its process dies. So workers may come, go and be killed at any time, and they open no
process group. Started by Accelerate's launcher as `python -m idc_hub.runs.worker RUN_DIR`.
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
    """Condense every photograph of a Run that nobody else condenses; wait for those that others hold.

    A photograph that fails is recorded and left; the others go on.

    Args:
        run: The Run.
        device: Where to compute.

    Raises:
        Interrupted: On SIGINT, SIGTERM or SIGUSR1, after the photograph at hand has been saved.
        NetworkError: If the extractor cannot be loaded.
        ImageError: If the source has gone.
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
        while left := [instance for instance in run.instances if not run.is_settled(instance)]:
            took_any = False
            for instance in left:
                took_any |= _take(run, instance, source, network, stopping)
            if not took_any:
                time.sleep(POLL_SECONDS)
            if stopping:
                raise Interrupted(stopping[0])


def _take(run: Run, instance: Instance, source: Source, network: torch.nn.Module, stopping: list[int]) -> bool:
    """Condense one photograph if its lock is free; says whether it was."""
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
    """Condense one photograph under its lock and write what came of it, or why nothing did."""
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
        # One photograph that fails (out of memory, changed file) must not cost the others.
        run.record_failure(instance, f"{type(error).__name__}: {error}")
    else:
        run.write_patches(instance, condensed.patches, _facts(run, condensed))
        run.append_metrics(instance.id, {"event": "end", "seconds": condensed.seconds, "time": time.time()})


def real_patches(instance: Instance, source: Source, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """All real LR patches of a photograph, uint8 `[N, 3, h, w]`, and their (top, left) `[N, 2]`."""
    import torch

    from idc_hub.images.patches import windows
    from idc_hub.images.sources import load_lr_patches

    size, stride = recipe.patches.size, recipe.patches.stride
    instance, scale = instance, recipe.scale
    lr = load_lr_patches(source, instance, scale=scale, size=size, stride=stride)
    places = windows(instance.height // scale, instance.width // scale, size, stride)
    return torch.from_numpy(lr), torch.tensor(places)


def _facts(run: Run, condensed: Condensed) -> dict[str, Any]:
    """What a finished file says of its making; the same on every equal run."""
    return {
        "held_out": condensed.held_out,
        "held_out_random": condensed.held_out_random,
        "losses": condensed.losses,
        "seed": run.recipe.seed,
        "steps": run.recipe.optimizer.steps,
    }


def find_photographs(recipe: Recipe, progress: Reporting = True) -> list[Instance]:
    """Look at every photograph of a recipe's source once, and share the synthetic patches out among them.

    Raises:
        ImageError: Some cannot be used; one error that names all of them.
        HubError: The source is on the Hub, which does not answer.
    """
    from idc_hub.images.patches import synthetic_counts
    from idc_hub.images.sources import open_source, survey

    patches = recipe.patches
    source = open_source(**recipe.source.model_dump())
    with counting("reading photographs", progress) as count:
        found = survey(source, scale=recipe.scale, size=patches.size, stride=patches.stride, progress=count)
    counts = synthetic_counts([one.patches for one in found], patches.ratio, patches.min_per_image)
    return [replace(instance, count=count) for instance, count in zip(found, counts, strict=True)]


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGUSR1 instead of dying of them; yields the list that they land in."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """End this process, whatever it does, as soon as the process that started it is gone.

    A killed launcher cannot tell its workers; a worker left behind would hold its locks. What it had saved stays.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS / 2)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    """Entry point of a worker process; its rank comes from the environment that the launcher sets."""
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
