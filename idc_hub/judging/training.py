"""Train a network on (lr, hr) pairs: random aligned crops, L1 loss, Adam, an average of the weights.

The settings are those that the field trains with (BasicSR's EDSR options: crops, flips and rotations, L1,
Adam(0.9, 0.99), an exponential moving average of 0.999). What a step draws depends on the seed and the step
alone, never on what came before it, so a training that was stopped continues exactly.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel

from idc_hub.errors import ImageError, NetworkError
from idc_hub.judging.pairs import Pair
from idc_hub.networks import save
from idc_hub.networks.edsr import EDSR
from idc_hub.networks.registry import WEIGHTS

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


class TrainingRecipe(BaseModel):
    """How to train. The crop is in LR pixels; milestones are fractions of the steps.

    `checkpoint_every` and `log_every` are steps; `ema` is the decay of the averaged weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=20_000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    crop: int = Field(default=48, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    decay: Literal["cosine", "milestones"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    gamma: float = Field(default=0.5, gt=0, le=1)
    ema: float = Field(default=0.999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    mixed_precision: Literal["no", "bf16"] = "no"
    checkpoint_every: int = Field(default=1_000, ge=1)
    log_every: int = Field(default=100, ge=1)


def train(
    network: EDSR,
    pairs: Sequence[Pair],
    folder: str | Path,
    recipe: TrainingRecipe,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> EDSR:
    """Train `network`, save the averaged weights in `folder`, and return the network that has them.

    A folder that holds a checkpoint is continued, bit for bit on a CPU with the same number of threads. Under
    Accelerate's launcher the processes share each batch. `metrics.jsonl` gets a line every `log_every` steps:
    step, mean loss since the line before, learning rate, seconds so far.

    Args:
        network: The network to start from, fresh or trained. It is changed.
        pairs: uint8 images, all of the network's scale; each is drawn equally often.
        folder: Gets the network, `metrics.jsonl` and, until the end, the checkpoint.
        recipe: How to train.
        progress: Called with the step and the loss whenever a line of metrics is written.

    Raises:
        NetworkError: The folder holds a finished network or another training, or the loss is not finite.
        ImageError: A pair does not fit the scale or is smaller than the crop.
    """
    folder, accelerator = Path(folder), Accelerator()
    _check(folder, pairs, network.scale, recipe, accelerator.num_processes)
    folder.mkdir(parents=True, exist_ok=True)
    network = network.to(accelerator.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    state = _State(network, pairs, recipe)
    start, seconds = state.resume(folder)
    model = accelerator.prepare(network)
    began = time.monotonic() - seconds
    losses: list[Tensor] = []
    for step in range(start + 1, recipe.steps + 1):
        state.optimiser.param_groups[0]["lr"] = rate = learning_rate(recipe, step - 1)
        state.optimiser.zero_grad()
        loss = _loss(model, draw_batch(pairs, recipe, network.scale, step), recipe, accelerator)
        accelerator.backward(loss)
        state.optimiser.step()
        state.average.update_parameters(network)
        losses.append(loss.detach())
        seconds = time.monotonic() - began
        if step % recipe.log_every == 0 or step == recipe.steps:
            mean = _mean(losses, step, accelerator)
            losses.clear()
            if accelerator.is_main_process:
                _log(folder, step=step, loss=mean, learning_rate=rate, seconds=round(seconds, 1))
                if progress:
                    progress(step, mean)
        if accelerator.is_main_process and step % recipe.checkpoint_every == 0 and step < recipe.steps:
            state.write(folder, step, seconds)

    trained = cast(EDSR, state.average.module).eval()
    if accelerator.is_main_process:
        save(trained, folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return trained


def learning_rate(recipe: TrainingRecipe, done: int) -> float:
    """The learning rate after `done` steps: half a cosine down to 0, or times gamma at each milestone."""
    fraction = done / recipe.steps
    if recipe.decay == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * fraction)) / 2
    passed = sum(fraction >= milestone for milestone in recipe.milestones)
    return recipe.learning_rate * recipe.gamma**passed


def draw_batch(pairs: Sequence[Pair], recipe: TrainingRecipe, scale: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The crops of one step: uint8 `[B, crop, crop, 3]` and `[B, scale*crop, scale*crop, 3]`.

    The HR crop is the LR crop times the scale; both get the same one of the 8 flips and rotations.
    """
    rng = np.random.default_rng((recipe.seed, step))
    low: list[np.ndarray] = []
    high: list[np.ndarray] = []
    for _ in range(recipe.batch_size):
        lr, hr = pairs[int(rng.integers(len(pairs)))]
        top = rng.integers(lr.shape[0] - recipe.crop + 1)
        left = rng.integers(lr.shape[1] - recipe.crop + 1)
        turns, flip = int(rng.integers(4)), rng.integers(2)
        for image, crops, factor in ((lr, low, 1), (hr, high, scale)):
            y, x, size = top * factor, left * factor, recipe.crop * factor
            crop = np.rot90(image[y : y + size, x : x + size], turns)
            crops.append(crop[:, ::-1] if flip else crop)
    return np.stack(low), np.stack(high)


def _to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 `[B, h, w, 3]` to float `[B, 3, h, w]` in [0, 1], channels last in memory as it came."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255


def _loss(
    model: nn.Module, batch: tuple[np.ndarray, np.ndarray], recipe: TrainingRecipe, accelerator: Accelerator
) -> Tensor:
    """L1 over this process's share of the batch."""
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    lr, hr = (_to_float(images[mine], accelerator.device) for images in batch)
    # Not Accelerate's own mixed precision: that is one setting for the whole life of a Python process.
    with torch.autocast(lr.device.type, torch.bfloat16, enabled=recipe.mixed_precision == "bf16"):
        sr = model(lr)
    return l1_loss(sr.float(), hr)


def _mean(losses: list[Tensor], step: int, accelerator: Accelerator) -> float:
    """The mean of the losses of all processes."""
    mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
    if not math.isfinite(mean):
        raise NetworkError(
            f"The loss is {mean} at step {step}: the training diverged.",
            hint="Train again with a lower learning rate.",
        )
    return mean


def _check(folder: Path, pairs: Sequence[Pair], scale: int, recipe: TrainingRecipe, num_processes: int) -> None:
    if (folder / WEIGHTS).exists():
        raise NetworkError(f"{folder} already holds a trained network.", hint="Choose another folder.")
    if recipe.batch_size % num_processes:
        raise NetworkError(
            f"A batch of {recipe.batch_size} cannot be shared equally by {num_processes} processes.",
            hint="Change batch_size or the number of processes.",
        )
    if not pairs:
        raise ImageError("There is no image to train on.")
    for number, (lr, hr) in enumerate(pairs):
        if hr.shape != (lr.shape[0] * scale, lr.shape[1] * scale, 3):
            raise ImageError(
                f"Pair {number} is {lr.shape[:2]} LR and {hr.shape[:2]} HR pixels: not a pair for x{scale}."
            )
        if min(lr.shape[:2]) < recipe.crop:
            raise ImageError(
                f"Pair {number} has {lr.shape[0]}x{lr.shape[1]} LR pixels, less than a crop ({recipe.crop}).",
                hint="Train with a smaller crop, or leave small images out.",
            )


def _follow(ema: float, average: Tensor, current: Tensor, count: Tensor) -> Tensor:
    """The moving average one step on. It follows faster at first: 0.999 alone would keep a fifth of the
    untrained weights for 1,500 steps.
    """
    return torch.lerp(average, current, 1 - ((1 + count) / (10 + count)).clamp(max=ema))


class _State:
    """What a training needs to go on: the weights, their average, Adam's moments, and the step."""

    def __init__(self, network: EDSR, pairs: Sequence[Pair], recipe: TrainingRecipe) -> None:
        self.network = network
        self.average = AveragedModel(network, avg_fn=partial(_follow, recipe.ema))
        self.optimiser = Adam(network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
        digest = hashlib.sha256()
        for image in itertools.chain.from_iterable(pairs):
            digest.update(repr(image.shape).encode() + image.tobytes())
        self.identity = {  # what a checkpoint must agree with to be continued
            "network": network.arguments | {"architecture": type(network).__name__, "scale": network.scale},
            "pairs": digest.hexdigest(),
            "recipe": recipe.model_dump(mode="json"),
        }

    def write(self, folder: Path, step: int, seconds: float) -> None:
        """Write the folder's checkpoint; a reader sees the old one or the new one, never a part."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        facts = self.identity | {"step": step, "seconds": seconds}
        temporary = folder / (CHECKPOINT + ".tmp")
        save_file(tensors, temporary, metadata={"idc": json.dumps(facts, sort_keys=True)})
        temporary.replace(folder / CHECKPOINT)

    def resume(self, folder: Path) -> tuple[int, float]:
        """Take up the folder's checkpoint, if there is one; returns the steps done and their seconds."""
        path, metrics = folder / CHECKPOINT, folder / METRICS
        if not path.exists():
            metrics.unlink(missing_ok=True)
            return 0, 0.0
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["idc"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        differing = [key for key in self.identity if facts[key] != self.identity[key]]
        if differing:
            raise NetworkError(
                f"{path} belongs to another training: another {', another '.join(differing)}.",
                hint="Choose another folder, or remove the checkpoint to start again.",
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        moments = {index: part(f"adam.{index}.") for index in range(len(list(self.network.parameters())))}
        for index, parameter in enumerate(self.network.parameters()):
            for key in ("exp_avg", "exp_avg_sq"):  # in the memory order that Adam itself gives them
                moments[index][key] = torch.empty_like(parameter).copy_(moments[index][key]).detach()
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        metrics.touch()  # a checkpoint may come before the first line
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= facts["step"]))
        return facts["step"], facts["seconds"]


def _log(folder: Path, **facts: float) -> None:
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")
