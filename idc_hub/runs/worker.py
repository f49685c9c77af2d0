"""A worker: a process that condenses unfinished photographs of a Run until none is left.

Workers share only the Run directory: finished photographs have a file there, those in work a claim (see `claims`).
Workers may start, stop or be killed at any time, and open no process group.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from idc_hub.condensation.condense import Condensed, Photograph, Stopped, condense_batch
from idc_hub.condensation.state import State
from idc_hub.errors import IDCError, IncompleteError, Interrupted, RunError, one_line
from idc_hub.images.sources import Instance
from idc_hub.runs.claims import process_exists, this_process
from idc_hub.runs.memory import batch_size
from idc_hub.runs.progress import Reporting, counting
from idc_hub.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    import torch

    from idc_hub.images.patches import Place
    from idc_hub.images.sources import Source
    from idc_hub.recipe import Recipe

PARENT = "IDC_PARENT"
"""Environment variable of a started process: the process that it ends with."""

POLL_SECONDS = 1.0
POLLED_A_SECOND = 50
"""Most photographs that an idle worker looks at in a second."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals that stop the work after a checkpoint."""


def work(run: Run, device: torch.device, *, rank: int = 0, world_size: int = 1) -> None:
    """Condense all photographs of a Run that no other worker has, then wait for those that others have.

    A photograph that fails, or whose process dies, is tried once more when nothing else is left, by another worker if
    there is one. Then its failure is final.

    Args:
        run: The Run.
        device: Where to compute.
        rank: This worker's number among those started together: it only decides where in the list to begin.
        world_size: How many workers were started together.

    Raises:
        Interrupted: On SIGINT, SIGTERM, SIGHUP or SIGUSR1, after writing a checkpoint of each photograph under way.
        NetworkError: The extractor cannot be loaded.
        ImageError: The source is gone.
        IncompleteError: The Run cannot be written, for example since the disk is full.
    """
    from idc_hub.images.sources import open_source
    from idc_hub.networks.extractors import load_extractor

    set_up_torch(run.recipe)
    recipe = run.recipe
    features = recipe.features
    with stop_on_signal() as stopping:
        stopping.at_once = True
        network = load_extractor(
            features.network, features.layer, scale=recipe.scale, size=recipe.patches.size, device=device
        ).network
        source = open_source(**recipe.source.model_dump())
        left = run.unsettled(run.instances)
        begin = rank * len(left) // world_size
        left = left[begin:] + left[:begin]
        size = batch_size(recipe, left, network, world_size)
        # Other workers get the time of two polls to take over what failed here.
        patience = 2 if world_size > 1 else 0
        idle = 0
        stopping.at_once = False
        while left := run.unsettled(left):
            took_any = False
            untried = deque(left)
            while untried:
                took_any |= _take(run, untried, size, source, network, stopping)
            alone = not took_any and idle >= patience and not any(map(run.is_claimed, left))
            for instance in [] if took_any else left:
                if alone or not _failed_here(run, instance):
                    # Alone: if its process dies again, no other photograph is blamed for it.
                    took_any |= _take(run, deque([instance]), 1, source, network, stopping, again=True)
            idle = 0 if took_any else idle + 1
            if not took_any:
                # Many idle workers must not keep a file system busy with many photographs that others have.
                stopping.at_once = True
                stopping.raise_if_any()
                time.sleep(POLL_SECONDS * max(1, len(left) / POLLED_A_SECOND))
                stopping.at_once = False
        stopping.raise_if_any()


def set_up_torch(recipe: Recipe) -> None:
    """Set PyTorch's options for this process as the recipe says."""
    import torch

    torch.set_num_threads(recipe.workers.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.workers.tf32


def _failed_here(run: Run, instance: Instance) -> bool:
    failure = run.read_failure(instance)
    return failure is not None and {key: failure[key] for key in ("host", "pid")} == this_process()


def _take(
    run: Run,
    queue: deque[Instance],
    size: int,
    source: Source,
    network: torch.nn.Module,
    stopping: Signals,
    *,
    again: bool = False,
) -> bool:
    """Condense up to `size` photographs of a queue that no other process has, together.

    They begin and end together, since all take the same number of steps: a batch that runs down keeps a GPU full.

    Args:
        run: The Run.
        queue: The photographs; those that were looked at are removed.
        size: Photographs to claim.
        source: The photographs' source.
        network: The extractor.
        stopping: The signals received.
        again: Also take those that were tried before.

    Returns:
        Whether one was free.
    """
    free = False
    with ExitStack() as claims:
        claimed: list[Instance] = []
        while queue and sum(instance.count > 0 for instance in claimed) < size:
            stopping.raise_if_any()
            instance = queue.popleft()
            if not again and (run.is_settled(instance) or run.is_claimed(instance) or run.was_tried(instance)):
                continue
            with ExitStack() as claim:
                if claim.enter_context(run.claim(instance.id)):
                    free = True
                    if not run.is_settled(instance):
                        claims.push(claim.pop_all())
                        claimed.append(instance)
        if claimed:
            condense_claimed(run, claimed, source, network, stopping)
    return free


def condense_claimed(
    run: Run, instances: list[Instance], source: Source, network: torch.nn.Module, stopping: Signals
) -> None:
    """Condense claimed photographs together; write the patches of each, or the reason why it failed."""
    import torch

    def should_stop() -> bool:
        stopping.at_once = False  # from the first step on there is something to save
        return bool(stopping.received)

    def fail(instance: Instance, error: Exception) -> None:
        # A photograph that fails (out of memory, changed file, an error in a foreign network) must not stop the others.
        if isinstance(error, IncompleteError):
            raise error  # the Run cannot be written: every other photograph would fail too
        stopping.at_once = False
        sentence = f"{type(error).__name__}: {error}"
        run.record_failure(instance, sentence)
        warnings.warn(f"{instance.id} failed: {one_line(sentence)}", stacklevel=1)

    under_way = {instance.id: instance for instance in instances}
    batches: dict[int, list[Photograph]] = {}  # by step: checkpoints may have been written at different ones
    try:
        stopping.at_once = True
        stopping.raise_if_any()
        for instance in instances:
            try:
                if instance.count == 0:
                    side = run.recipe.patches.size
                    run.write_patches(instance, torch.zeros(0, 3, side, side, dtype=torch.uint8), {"steps": 0})
                    continue
                photograph = _photograph(run, instance, source, next(network.parameters()).device)
            except Exception as error:
                fail(instance, error)
            else:
                step = photograph.resume.step if photograph.resume else 0
                batches.setdefault(step, []).append(photograph)
        for step, batch in batches.items():
            for photograph in batch:
                start = {"event": "start", "step": step, "batch": len(batch), **this_process(), "time": time.time()}
                run.append_metrics(photograph.instance_id, start)
            for photograph, outcome in condense_batch(batch, network, run.recipe, should_stop=should_stop):
                instance = under_way.pop(photograph.instance_id)
                try:
                    if isinstance(outcome, Exception):
                        raise outcome
                    facts = _facts(run, outcome, photograph.lr)
                except Exception as error:
                    fail(instance, error)
                else:
                    run.write_patches(instance, outcome.patches, facts)
                    end = {"event": "end", "seconds": outcome.seconds, "batch": outcome.batch, "time": time.time()}
                    run.append_metrics(instance.id, end)
    except Stopped:
        for photograph in batch:
            if photograph.instance_id in under_way:
                run.append_metrics(photograph.instance_id, {"event": "stop", "time": time.time()})
    finally:
        stopping.at_once = False
        torch.cuda.empty_cache()  # what a photograph that ran out of memory had


def _photograph(run: Run, instance: Instance, source: Source, device: torch.device) -> Photograph:
    """A claimed photograph, with the state of its checkpoint."""
    real = real_patches(instance, source, run.recipe, measured=True)
    if instance.id in run.sample:
        run.write_real(instance, real.lr)
    return Photograph(
        real.lr,
        instance.count,
        instance.id,
        resume=_resume(run, instance, device),
        checkpoint=lambda state: run.write_partial(instance, state.to_tensors()),
        log=lambda line: run.append_metrics(instance.id, {"event": "log", **line}),
        hardness=real.hardness,
    )


def _resume(run: Run, instance: Instance, device: torch.device) -> State | None:
    """The state of the photograph's checkpoint; None if there is none that can be continued."""
    try:
        partial = run.read_partial(instance)
    except RunError as error:
        run.drop_partial(instance, error.message)
        warnings.warn(f"{error.message} {instance.id} starts again.", stacklevel=1)
        return None
    return State.from_tensors(partial, device) if partial is not None else None


class RealPatches(NamedTuple):
    """All real patches of a photograph.

    Attributes:
        lr: uint8 `[N, 3, h, w]`.
        places: Where they were cut out.
        hardness: float `[N]`, the error of bicubic upscaling of each; None if not asked for or not needed.
    """

    lr: torch.Tensor
    places: list[Place]
    hardness: np.ndarray | None


def real_patches(instance: Instance, source: Source, recipe: Recipe, *, measured: bool = False) -> RealPatches:
    """Cut all real LR patches out of a photograph.

    Args:
        instance: The photograph.
        source: Its source.
        recipe: The recipe, which has scale, size, stride and zooms.
        measured: Whether to measure the hardness if the recipe needs it.

    Raises:
        ImageError: The photograph is gone or has changed since the survey.
    """
    import torch

    from idc_hub.images.figures import bicubic_errors
    from idc_hub.images.patches import hr_patches, lr_patches, places
    from idc_hub.images.sources import load_hr

    hr = load_hr(source, instance, scale=recipe.scale)
    lr, where = lr_patches(hr, **recipe.grid), places(instance.height, instance.width, **recipe.grid)
    hard = (
        bicubic_errors(lr, hr_patches(hr, **recipe.grid))
        if measured and recipe.patches.complexity == "hardness"
        else None
    )
    return RealPatches(torch.from_numpy(lr), where, hard)


def nearest_real(patches: torch.Tensor, real: torch.Tensor) -> list[float]:
    """RMS difference of each patch to its nearest real one, in gray levels; uint8 `[n, 3, h, w]` and `[N, 3, h, w]`."""
    from idc_hub.images.figures import nearest_distances

    # Exact up to the root, so that equal patches have equal values on every machine.
    return [round(float(distance), 3) for distance in 255 * nearest_distances(patches.numpy(), real.numpy())]


def _facts(run: Run, condensed: Condensed, real: torch.Tensor) -> dict[str, Any]:
    """The metadata of an instance file; equal Runs have equal metadata."""
    return {
        "held_out": condensed.held_out,
        "held_out_random": condensed.held_out_random,
        "losses": condensed.losses,
        "nearest_real": nearest_real(condensed.patches, real),
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
        instances = survey(source, **recipe.grid, progress=count)
    counts = synthetic_counts(full_counts(recipe, instances), patches.ratio, patches.min_per_image)
    counted = [replace(instance, count=count) for instance, count in zip(instances, counts, strict=True)]
    return counted, list(source.left_out)


def full_counts(recipe: Recipe, instances: list[Instance]) -> list[int]:
    """The real patches of each photograph that the ratio counts: those at the largest of `patches.scales`."""
    from idc_hub.images.patches import places

    grid = {**recipe.grid, "zooms": (max(recipe.patches.scales),)}
    return [len(places(instance.height, instance.width, **grid)) for instance in instances]


class Signals:
    """The signals that `stop_on_signal` has received.

    Attributes:
        received: Their numbers.
        at_once: Whether a signal may raise `Interrupted` wherever it arrives, since there is nothing to save.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.at_once = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.received.append(number)
        if self.at_once:
            self.at_once = False
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raise `Interrupted` if a signal was received."""
        if self.received:
            raise Interrupted(self.received[0])


@contextmanager
def stop_on_signal() -> Iterator[Signals]:
    """Collect `SIGNALS` instead of ending the process.

    A second SIGINT (Ctrl-C) ends the process at once, even while a long operation of torch keeps Python from handling
    signals. A process that ignores SIGHUP (`nohup`) still does.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [n for n in SIGNALS if n == signal.SIGINT or before[n] != signal.SIG_IGN]
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    for number in caught:
        signal.signal(number, signals.receive)
    woken_before = signal.set_wakeup_fd(wake.fileno())  # the system writes each signal's number there as it arrives

    def watch() -> None:
        interrupts = 0
        while number := woken.recv(1):
            interrupts += number[0] == signal.SIGINT
            if interrupts > 1:
                os._exit(128 + signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield signals
    except Exception as error:
        if signals.received and not isinstance(error, IDCError | OSError):
            # Some packages, such as numpy, swallow an exception of a signal while they are imported, and fail for it.
            raise Interrupted(signals.received[0]) from error
        raise
    finally:
        for number in caught:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(woken_before)
        wake.close()
        thread.join()
        woken.close()


def end_with_parent() -> None:
    """End this process as soon as its parent, or the process that `PARENT` names, is gone.

    A killed parent cannot stop its workers, and an orphaned worker would keep its claims. Its checkpoints stay. A
    parent that died before this call is not noticed, but the process that `PARENT` names is.
    """
    parent, ancestor = os.getppid(), os.environ.get(PARENT)

    def watch() -> None:
        while os.getppid() == parent and (ancestor is None or process_exists(int(ancestor))):
            time.sleep(POLL_SECONDS / 2)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
