"""Train a network on LR/HR pairs: random aligned crops, L1 loss, Adam, a moving average of the weights.

The settings are the field's (BasicSR's EDSR options: crops, flips and rotations, L1, Adam(0.9, 0.99), an exponential
moving average of 0.999). The crops of a step depend on the seed and the step alone, so an interrupted training
continues exactly.
"""

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torch.optim import Adam

from idc_hub.atomic import append_line, write_bytes_atomically, write_text_atomically, writing
from idc_hub.errors import DivergedError, ImageError, Interrupted, NetworkError, RecipeError, one_line
from idc_hub.networks import load, save
from idc_hub.networks.registry import WEIGHTS, Network
from idc_hub.runs.run import tensors_sha256, whole_lines
from idc_hub.runs.tracking import end_trackers, start_trackers, tracking_accelerator
from idc_hub.runs.worker import Signals, stop_on_signal
from idc_hub.training.crops import Batch, draw_batch, turned
from idc_hub.training.pairs import Pair
from idc_hub.training.pixels import pixels_sha256
from idc_hub.training.prefetch import prefetch
from idc_hub.training.recipe import TrainingRecipe

CHECKPOINT, METRICS, FACTS = "checkpoint.safetensors", "metrics.jsonl", "training.yaml"
AGREEMENT_STEPS = 10


def train(
    network: Network,
    pairs: Mapping[str, Pair],
    folder: str | Path,
    recipe: TrainingRecipe,
    *,
    sha256: str | None = None,
    data: Mapping[str, Any] | None = None,
    trackers: Sequence[str] = (),
    progress: Callable[[int, float], None] | None = None,
) -> Network:
    """Train `network`, save the averaged weights in `folder`, and return the network that has them.

    If the folder has a checkpoint, training continues from it: on a CPU with the same number of threads the result is
    byte-identical. The learning rate may be lowered in between. A damaged checkpoint is dropped with a warning. If the
    folder has the network that this training makes, nothing is trained. Under Accelerate's launcher the processes share
    each batch. `metrics.jsonl` gets a line every `log_every` steps: step, mean loss since the previous line, learning
    rate, seconds so far; the trackers get the same. At the end `training.yaml` records how the weights were made. Every
    step seeds torch's global generator.

    Args:
        network: The network to start from, fresh or trained. It is changed.
        pairs: uint8 images of the network's scale, by name; each is drawn with equal probability.
        folder: Gets the network, `training.yaml`, `metrics.jsonl` and, until the end, the checkpoint.
        recipe: How to train.
        sha256: Digest of the pairs, `pixels_sha256`, if it is known already.
        data: What the pairs are, for `training.yaml`.
        trackers: Which of `tracking.TRACKERS` to report to as well; tensorboard's files are written to `folder`.
        progress: Called with the step and the loss whenever a line of metrics is written.

    Raises:
        NetworkError: The folder has the network or the checkpoint of another training.
        DivergedError: The loss, a gradient or a weight is NaN or Inf; the last checkpoint is kept.
        ImageError: A pair does not fit the scale or is smaller than the crop.
        RecipeError: There is no such tracker, or it is not installed, or the batch cannot be shared equally.
        IncompleteError: The folder cannot be written, for example since the disk is full.
        Interrupted: A signal stopped the training after a checkpoint.
    """
    folder, accelerator = Path(folder), _accelerator(folder, trackers)
    check(folder, pairs, network.scale, recipe, num_processes=accelerator.num_processes)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        for abandoned in folder.glob(".*.partial"):  # of a training that was killed while it wrote
            abandoned.unlink()
    device = accelerator.device
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    state = _State(network, sha256 or pixels_sha256(pairs), recipe)
    if (folder / WEIGHTS).exists():
        return state.finished(folder, accelerator)
    start, seconds = state.resume(folder)
    reports = _Reports(folder, recipe, accelerator, trackers, start, progress)
    finiteness = _Finiteness(state, start, accelerator)
    model = accelerator.prepare(network)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    names = tuple(pairs)
    draw = partial(draw_batch, pairs, names, recipe, network.scale, share=share, pinned=device.type == "cuda")
    began = time.monotonic() - seconds
    steps = range(start + 1, recipe.steps + 1)
    with stop_on_signal() as signals:
        for step, batch in zip(steps, prefetch(draw, steps), strict=True):
            torch.manual_seed(_step_seed(recipe.seed, step, accelerator.process_index))
            state.optimizer.param_groups[0]["lr"] = rate = learning_rate(recipe, step - 1)
            state.optimizer.zero_grad()
            loss = _backward(model, batch, recipe, accelerator)
            finiteness.note(loss)
            state.optimizer.step()
            state.update_average(step)
            seconds = time.monotonic() - began
            stopped_by = _received(signals, step, accelerator)
            saving = (bool(stopped_by) or step % recipe.checkpoint_every == 0) and step < recipe.steps
            if saving or step % recipe.log_every == 0 or step == recipe.steps:
                finiteness.check(folder, step)
            reports.add(step, loss, rate, seconds)
            if saving and accelerator.is_main_process:
                state.write(folder, step, seconds)
            if saving and stopped_by:
                raise Interrupted(stopped_by)

    if accelerator.is_main_process:
        state.finish(folder, {**(data or {}), "pairs": len(pairs)}, seconds, accelerator)
    accelerator.wait_for_everyone()
    end_trackers(accelerator)
    return state.average


def _received(signals: Signals, step: int, accelerator: Accelerator) -> int:
    """The number of a signal after which to stop, or 0; the same in all processes.

    Several processes exchange what they received at every `AGREEMENT_STEPS`th step: it makes them wait for the device.
    """
    received = signals.received[0] if signals.received else 0
    if accelerator.num_processes == 1:
        return received
    if step % AGREEMENT_STEPS:
        return 0
    return int(accelerator.gather(torch.tensor([received], device=accelerator.device)).max())


def learning_rate(recipe: TrainingRecipe, done: int) -> float:
    """The learning rate after `done` steps: half a cosine down to 0, or multiplied by gamma at each milestone."""
    fraction = done / recipe.steps
    if recipe.decay == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * fraction)) / 2
    passed = sum(fraction >= milestone for milestone in recipe.milestones)
    return recipe.learning_rate * recipe.gamma**passed


def check(folder: Path, pairs: Mapping[str, Pair], scale: int, recipe: TrainingRecipe, *, num_processes: int) -> None:
    """Find what is wrong before a training begins; raises what `train` raises."""
    check_settings(folder, recipe, num_processes=num_processes)
    if not pairs:
        raise ImageError("There is no image to train on.")
    for name, (lr, hr) in pairs.items():
        if hr.shape != (lr.shape[0] * scale, lr.shape[1] * scale, 3):
            raise ImageError(
                f"{name} has {hr.shape[1]}x{hr.shape[0]} HR and {lr.shape[1]}x{lr.shape[0]} LR pixels: "
                f"not a pair for x{scale}."
            )
    small = {name: lr.shape for name, (lr, _) in pairs.items() if min(lr.shape[:2]) < recipe.crop}
    if small:
        name, (height, width, _) = next(iter(small.items()))
        more = f" (and {len(small) - 1} other images are too small)" if len(small) > 1 else ""
        raise ImageError(
            f"{name} has {width}x{height} LR pixels, less than a crop ({recipe.crop}x{recipe.crop}){more}.",
            hint=f"Train with crop={min(min(shape[:2]) for shape in small.values())}, or leave small images out.",
        )


def check_settings(folder: Path, recipe: TrainingRecipe, *, num_processes: int) -> None:
    """The part of `check` that needs no pairs."""
    if (folder / WEIGHTS).exists() and _recorded(folder).get("recipe") != recipe.model_dump(mode="json"):
        raise _occupied(folder)
    parts = num_processes * recipe.accumulate
    if recipe.batch_size % parts:
        raise RecipeError(
            f"A batch of {recipe.batch_size} cannot be shared equally by {num_processes} processes"
            f"{f' that compute it in {recipe.accumulate} parts' if recipe.accumulate > 1 else ''}.",
            hint=f"Make batch_size a multiple of {parts}, or change the number of processes.",
        )


def _recorded(folder: Path) -> dict[str, Any]:
    """The contents of `training.yaml`; empty if it is missing or damaged."""
    try:
        facts = yaml.safe_load((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _occupied(folder: Path) -> NetworkError:
    return NetworkError(f"{folder} already contains a trained network.", hint="Choose another folder.")


def _accelerator(folder: Path, trackers: Sequence[str]) -> Accelerator:
    accelerator = tracking_accelerator(folder, trackers)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} of {expected} processes met"
    return accelerator


def _step_seed(seed: int, step: int, process: int) -> int:
    """Seed for networks that draw random numbers in training; like the crops, it does not depend on earlier steps."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def _backward(model: nn.Module, batch: Batch, recipe: TrainingRecipe, accelerator: Accelerator) -> Tensor:
    """Compute the gradients of this process's share of a batch, part by part; returns its L1 loss."""
    lr, hr, turns = (tensor.to(accelerator.device, non_blocking=True) for tensor in batch)
    total = torch.zeros((), device=lr.device)
    for part in range(recipe.accumulate):
        last = part == recipe.accumulate - 1
        crops = slice(part, None, recipe.accumulate)
        # Processes exchange gradients once a step, with the last part.
        with nullcontext() if last else accelerator.no_sync(model):
            # Accelerate's own mixed precision is one setting for the whole life of a Python process.
            with torch.autocast(lr.device.type, torch.bfloat16, enabled=recipe.mixed_precision == "bf16"):
                sr = model(turned(lr[crops], turns[crops]))
            loss = l1_loss(sr.float(), turned(hr[crops], turns[crops])) / recipe.accumulate
            accelerator.backward(loss)
        total += loss.detach()
    return total


class _Reports:
    """Writes `metrics.jsonl`, the trackers and the caller's progress, from the main process alone."""

    def __init__(
        self,
        folder: Path,
        recipe: TrainingRecipe,
        accelerator: Accelerator,
        trackers: Sequence[str],
        start: int,
        progress: Callable[[int, float], None] | None,
    ) -> None:
        self.path, self.recipe, self.accelerator, self.progress = folder / METRICS, recipe, accelerator, progress
        self.losses: list[Tensor] = []
        if accelerator.is_main_process:
            lines = whole_lines(self.path.read_bytes()) if self.path.exists() else []
            # Steps after the checkpoint were lost; they are repeated.
            write_text_atomically(
                self.path, "".join(json.dumps(line) + "\n" for line in lines if line.get("step", 0) <= start)
            )
        if trackers:
            start_trackers(accelerator, folder.name, recipe.model_dump())

    def add(self, step: int, loss: Tensor, rate: float, seconds: float) -> None:
        """Record a step's loss; at every `log_every`th step, report the mean since the last report."""
        self.losses.append(loss)
        if step % self.recipe.log_every and step != self.recipe.steps:
            return
        mean = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        self.losses.clear()
        values = {"loss": mean, "learning_rate": rate, "seconds": round(seconds, 1)}
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            append_line(self.path, json.dumps({"step": step, **values}))
            if self.progress:
                self.progress(step, mean)


class _Finiteness:
    """Detects NaN and Inf: recorded at every step on the device, read only now and then.

    All processes read at the same steps and get the same answer, so they stop together.
    """

    def __init__(self, state: "_State", start: int, accelerator: Accelerator) -> None:
        self.state, self.start, self.accelerator = state, start, accelerator
        self.finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=accelerator.device)

    def note(self, loss: Tensor) -> None:
        """Record whether a step's loss and gradients are finite, before the optimizer uses them."""
        gradients = [weight.grad for weight in self.state.network.parameters() if weight.grad is not None]
        # A norm that overflows counts as Inf: Adam squares the same gradients.
        self.finite &= torch.stack([loss, *torch._foreach_norm(gradients)]).isfinite().all()
        self.finite_steps += self.finite

    def check(self, folder: Path, step: int) -> None:
        """Read the record, and check the weights, so that nothing with NaN or Inf is saved.

        Raises:
            DivergedError: Something is NaN or Inf in one of the processes.
        """
        finite = torch.stack([self.finite, *(tensor.isfinite().all() for tensor in self.state.floats())]).all()
        answers = self.accelerator.gather(torch.stack([finite.long(), self.finite_steps])).view(-1, 2)
        if bool(answers[:, 0].all()):
            return
        step = min(self.start + int(answers[:, 1].min()) + 1, step)
        every, rate = self.state.recipe.checkpoint_every, self.state.recipe.learning_rate
        saved = max((step - 1) // every * every, self.start)
        where = f"continues from the checkpoint of step {saved} (or remove that, to start again)"
        raise DivergedError(
            f"The training into {folder} diverged: NaN or Inf from step {step} on.",
            f"The same command with a lower learning_rate (it is {rate:g}) {where if saved else 'starts again'}.",
        )


class _State:
    """What a training needs to continue: the weights, their average, Adam's moments, and the step.

    Attributes:
        learning_rates: The recipe's learning rate, by the step from which it applies; several if it was lowered.
    """

    def __init__(self, network: Network, sha256: str, recipe: TrainingRecipe) -> None:
        self.network, self.recipe = network, recipe
        self.average = deepcopy(network).eval().requires_grad_(False)
        self.optimizer = Adam(network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
        self.learning_rates = {1: recipe.learning_rate}
        self.identity: dict[str, Any] = {  # a checkpoint of another identity is not continued
            "network": network.arguments | {"architecture": type(network).__name__, "scale": network.scale},
            "pairs": sha256,
            "recipe": recipe.model_dump(mode="json"),
        }

    def update_average(self, step: int) -> None:
        """Update the average after a step. It moves faster at first: with 0.999 alone a fifth of the untrained weights
        would remain after 1,500 steps.
        """
        count = step - 1
        weight = 1 - min(self.recipe.ema, (1 + count) / (10 + count)) if count else 1.0
        current = [parameter.detach() for parameter in self.network.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), current, weight)  # one kernel for hundreds of tensors

    def floats(self) -> list[Tensor]:
        """All tensors that must be finite: the weights, their average and Adam's moments."""
        moments = [value for entry in self.optimizer.state.values() for key, value in entry.items() if key != "step"]
        return [*(weight.detach() for weight in self.network.parameters()), *self.average.parameters(), *moments]

    def write(self, folder: Path, step: int, seconds: float) -> None:
        """Write the folder's checkpoint, atomically."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        facts = self.identity | {"step": step, "seconds": seconds, "learning_rates": self.learning_rates}
        content = json.dumps(facts, sort_keys=True)
        metadata = {"idc": json.dumps({"facts": content, "sha256": _checkpoint_sha256(content, tensors)})}
        write_bytes_atomically(folder / CHECKPOINT, serialize(tensors, metadata=metadata))

    def resume(self, folder: Path) -> tuple[int, float]:
        """Load the folder's checkpoint, if there is one; returns the steps done and their seconds."""
        path = folder / CHECKPOINT
        if not path.exists():
            return 0, 0.0
        try:
            facts, tensors = _read_checkpoint(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is damaged ({one_line(error)}). The training starts again.", stacklevel=1)
            return 0, 0.0
        before, now = (settings["recipe"].get("learning_rate") for settings in (facts, self.identity))
        lowered = before is not None and now < before
        if lowered:
            facts["recipe"]["learning_rate"] = now
        differing = [key for key in self.identity if facts[key] != self.identity[key]]
        if differing:
            raise NetworkError(
                f"{path} belongs to another training: another {', another '.join(differing)}.",
                hint="Choose another folder, or remove the checkpoint to start again. "
                "In the recipe, only the learning rate may change, to a lower one.",
            )
        rates = {int(step): rate for step, rate in facts.get("learning_rates", {"1": before}).items()}
        self.learning_rates = rates | ({facts["step"] + 1: now} if lowered else {})

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        moments = {index: part(f"adam.{index}.") for index in range(len(list(self.network.parameters())))}
        for index, parameter in enumerate(self.network.parameters()):
            for key in ("exp_avg", "exp_avg_sq"):  # in Adam's own memory order
                moments[index][key] = torch.empty_like(parameter).copy_(moments[index][key]).detach()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        return facts["step"], facts["seconds"]

    def finished(self, folder: Path, accelerator: Accelerator) -> Network:
        """The network that this training has already made in a folder; removes the checkpoint that a kill left.

        Raises:
            NetworkError: The network there is another training's.
        """
        recorded = _recorded(folder)
        mine = {"network": self.network.name, "scale": self.network.scale, "recipe": self.identity["recipe"]}
        same = all(recorded.get(key) == value for key, value in mine.items())
        if not same or recorded.get("data", {}).get("sha256") != self.identity["pairs"]:
            raise _occupied(folder)
        if accelerator.is_main_process:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return load(folder, scale=self.network.scale)

    def finish(self, folder: Path, data: dict[str, Any], seconds: float, accelerator: Accelerator) -> None:
        """Save the network and `training.yaml`, and remove the checkpoint."""
        device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU"
        facts = {
            "network": self.network.name,
            "scale": self.network.scale,
            "data": data | {"sha256": self.identity["pairs"]},
            "recipe": self.identity["recipe"],
            **({"learning_rates": self.learning_rates} if len(self.learning_rates) > 1 else {}),
            "seconds": round(seconds, 1),
            "device": f"{accelerator.num_processes} x {device}",
            "packages": {package: version(package) for package in ("idc-hub", "torch", "accelerate")},
        }
        write_text_atomically(folder / FACTS, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
        save(self.average, folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a checkpoint; raises a ValueError if they do not have the digest that it names."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["idc"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    if _checkpoint_sha256(metadata["facts"], tensors) != metadata["sha256"]:
        raise ValueError("it does not have the digest it names")
    return json.loads(metadata["facts"]), tensors


def _checkpoint_sha256(facts: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{facts}\0{tensors_sha256(tensors)}".encode()).hexdigest()
