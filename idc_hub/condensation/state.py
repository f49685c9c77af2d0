"""What an optimization carries from step to step, and whether it still consists of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.assignment import Assignment
from idc_hub.condensation.parametrization import Spectrum
from idc_hub.errors import DivergedError

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe


@dataclass
class State:
    """Everything that the optimization carries from step to step, and what a checkpoint holds.

    Attributes:
        step: Steps done.
        parameters: float32, a leaf: the patches themselves, or what `spectrum` makes them from.
        adam: Adam's state of `parameters` (`step`, `exp_avg`, `exp_avg_sq`); Adam updates it in place.
        assignment: Group and partner of every tile.
        spectrum: Makes the patches (`optimizer.parametrization`); None: they are the parameters.
    """

    step: int
    parameters: Tensor
    adam: dict[str, Tensor]
    assignment: Assignment
    spectrum: Spectrum | None = None

    @classmethod
    def start(cls, patches: Tensor, tiles: int, spectrum: Spectrum | None = None) -> State:
        """The state before the first step, from patches float32 `[n, 3, h, w]` in [0, 1]."""
        parameters = spectrum.to_parameters(patches) if spectrum else patches
        moments = {name: torch.zeros_like(parameters) for name in ("exp_avg", "exp_avg_sq")}
        adam = {"step": torch.zeros(()), **moments}
        return cls(0, parameters, adam, Assignment.empty(tiles, patches.device), spectrum)

    @property
    def patches(self) -> Tensor:
        """float32 `[n, 3, h, w]` in [0, 1], up to rounding; differentiable in `parameters`."""
        return self.spectrum.to_patches(self.parameters) if self.spectrum else self.parameters

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamp the patches to [0, 1], in place."""
        if self.spectrum:
            self.spectrum.clamp(self.parameters)
        else:
            self.parameters.clamp_(0, 1)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a safetensors file."""
        return {
            "step": torch.tensor(self.step),
            "patches": self.parameters.detach(),  # which they are by default, and were in earlier checkpoints
            "group": self.assignment.group,
            "partner": self.assignment.partner,
            **{f"adam.{name}": tensor for name, tensor in self.adam.items()},
            **{f"spectrum.{name}": tensor for name, tensor in (vars(self.spectrum) if self.spectrum else {}).items()},
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> State:
        """The state that `to_tensors` returned, on a device."""
        # Adam keeps its step count on the CPU.
        own = {name: tensor.clone().to("cpu" if name == "adam.step" else device) for name, tensor in tensors.items()}

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in own.items() if name.startswith(prefix)}

        assignment, spectrum = Assignment(own["group"], own["partner"]), part("spectrum.")
        return cls(
            int(own["step"]), own["patches"], part("adam."), assignment, Spectrum(**spectrum) if spectrum else None
        )


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
        self.sound = torch.ones((), dtype=torch.bool, device=state.parameters.device)
        self.sound_steps = torch.zeros((), dtype=torch.int64, device=state.parameters.device)

    def note(self, loss: Tensor) -> None:
        """Take in a step's loss and gradients, before the step is made of them."""
        assert self.state.parameters.grad is not None
        for value in (loss.detach(), self.state.parameters.grad):
            self.sound &= value.isfinite().all()
        self.sound_steps += self.sound

    def check(self) -> None:
        """Read what was noted, and look at the state itself: nothing that is not sound may be saved.

        Raises:
            DivergedError: Something is NaN or Inf.
        """
        state = self.state
        moments = [state.adam[name] for name in ("exp_avg", "exp_avg_sq")]
        sound = [tensor.detach().isfinite().all() for tensor in (state.parameters, *moments)]
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
