"""What an optimization carries from step to step, and whether it still consists of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.assignment import Assignment
from idc_hub.errors import DivergedError

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe


@dataclass
class State:
    """Everything that the optimization carries from step to step, and what a checkpoint holds.

    Attributes:
        step: Steps done.
        patches: float32 `[n, 3, h, w]` in [0, 1], a leaf.
        adam: Adam's state of `patches` (`step`, `exp_avg`, `exp_avg_sq`); Adam updates it in place.
        assignment: Group and partner of every tile.
    """

    step: int
    patches: Tensor
    adam: dict[str, Tensor]
    assignment: Assignment

    @classmethod
    def start(cls, patches: Tensor, tiles: int) -> State:
        """The state before the first step."""
        moments = {name: torch.zeros_like(patches) for name in ("exp_avg", "exp_avg_sq")}
        return cls(0, patches, {"step": torch.zeros(()), **moments}, Assignment.empty(tiles, patches.device))

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a safetensors file."""
        return {
            "step": torch.tensor(self.step),
            "patches": self.patches.detach(),
            "group": self.assignment.group,
            "partner": self.assignment.partner,
            **{f"adam.{name}": tensor for name, tensor in self.adam.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> State:
        """The state that `to_tensors` returned, on a device."""
        # Adam keeps its step count on the CPU.
        own = {name: tensor.clone().to("cpu" if name == "adam.step" else device) for name, tensor in tensors.items()}
        adam = {name.removeprefix("adam."): tensor for name, tensor in own.items() if name.startswith("adam.")}
        return cls(int(own["step"]), own["patches"], adam, Assignment(own["group"], own["partner"]))


class Watch:
    """Whether an optimization still consists of numbers: noted at every step on the device, asked for now and then.

    Asking at every step would make the host wait for a GPU.

    Args:
        state: The state, before the next step.
        recipe: The recipe.
        instance_id: The photograph's id, for the sentence.
    """

    def __init__(self, state: State, recipe: Recipe, instance_id: str) -> None:
        self.state, self.recipe, self.instance_id = state, recipe, instance_id
        self.start = state.step
        self.sound = torch.ones((), dtype=torch.bool, device=state.patches.device)
        self.sound_steps = torch.zeros((), dtype=torch.int64, device=state.patches.device)

    def note(self, loss: Tensor) -> None:
        """Take in a step's loss and gradients, before the step is made of them."""
        assert self.state.patches.grad is not None
        for value in (loss.detach(), self.state.patches.grad):
            self.sound &= value.isfinite().all()
        self.sound_steps += self.sound

    def check(self) -> None:
        """Read what was noted, and look at the state itself: nothing that is not sound may be saved.

        Raises:
            DivergedError: Something is NaN or Inf.
        """
        state = self.state
        moments = [state.adam[name] for name in ("exp_avg", "exp_avg_sq")]
        sound = [tensor.detach().isfinite().all() for tensor in (state.patches, *moments)]
        if not bool(torch.stack([self.sound, *sound]).all()):
            # Adam's moments overflow without a gradient that does: then it is the last step that is known.
            raise self.diverged(min(self.start + int(self.sound_steps) + 1, max(state.step, 1)))

    def diverged(self, step: int) -> DivergedError:
        """The sentence for a step, counted from 1."""
        optimizer, every = self.recipe.optimizer, self.recipe.workers.checkpoint_every
        fp32 = {"features": self.recipe.features.precision, "transform": self.recipe.transform.precision}
        exact = [f"{section}.precision=fp32" for section, precision in fp32.items() if precision != "fp32"]
        saved = max((step - 1) // every * every, self.start)
        return DivergedError(
            f"The optimization of {self.instance_id} has NaN or Inf from step {step} of {optimizer.steps} on.",
            f"Nothing of it was saved after step {saved}; finished photographs stay. Condense into another --run-dir "
            f"with {' and '.join([*exact, 'a lower optimizer.learning_rate'])} (it is {optimizer.learning_rate:g}).",
        )
