"""One optimization step of several photographs, whose patches go through the network together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idc_hub.condensation.objective import Inputs, Objective, weighted
from idc_hub.condensation.real_side import extract
from idc_hub.condensation.state import State, Watch
from idc_hub.errors import one_line

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

TERMS = ("instance", "group", "pair")


class Step:
    """A step of Adam for photographs that are all at the same step.

    The network treats every patch alone, every photograph has its own loss, and Adam works on every parameter alone: a
    photograph's result does not depend on its neighbors, except for rounding. Shapes change only at assignment events
    and when photographs join or leave; make a new `Step` then.

    On a GPU the step is a CUDA graph: nothing in it may depend on a number that the host reads.

    Args:
        members: State, objective and watch of each photograph. The states are updated in place, except `State.step`.
        network: The extractor.
        recipe: The recipe.
        fixed: Copy each step's inputs to the same tensors, as a CUDA graph needs; None: on a GPU, if
            `workers.cuda_graph` is set.
    """

    def __init__(
        self,
        members: Sequence[tuple[State, Objective, Watch]],
        network: torch.nn.Module,
        recipe: Recipe,
        *,
        fixed: bool | None = None,
    ) -> None:
        self.members, self.network, self.recipe = members, network, recipe
        self.parameters = [state.parameters.requires_grad_() for state, _, _ in members]
        self.device = self.parameters[0].device
        on_gpu = self.device.type == "cuda"
        # Joint statistics make the real side depend on the features, so that nothing can be copied in advance.
        wanted = on_gpu and recipe.workers.cuda_graph if fixed is None else fixed
        self.fixed = wanted and recipe.features.statistics != "joint"
        self.optimizer = _adam([state for state, _, _ in members], capturable=on_gpu)
        self.buffers: list[Inputs] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.refused = False  # whether the network cannot be captured

    def __call__(self, step: int, learning_rate: float, *, measured: bool = False) -> list[dict[str, float]]:
        """Advance every photograph by one step.

        Args:
            step: The step's number, from 0, which selects the draw.
            learning_rate: Adam's step size.
            measured: Also measure the terms and the norms of their gradients; this waits for the device.

        Returns:
            For each photograph, if `measured`: the unweighted terms, and the gradient norms in the pixels of the
            weighted ones. Otherwise nothing.
        """
        rate = self.optimizer.param_groups[0]["lr"]
        if isinstance(rate, Tensor):
            rate.fill_(learning_rate)
        else:
            self.optimizer.param_groups[0]["lr"] = learning_rate
        if not self.fixed:
            return self._advance(step, [None] * len(self.members), measured)
        inputs = [objective.inputs(step, objective.real.statistics) for _, objective, _ in self.members]
        first = self.buffers is None
        if self.buffers is None:
            self.buffers = [given.copy() for given in inputs]
        for buffer, given in zip(self.buffers, inputs, strict=True):
            for own, new in zip(buffer.tensors, given.tensors, strict=True):
                own.copy_(new)
        if measured or self.device.type != "cuda" or self.refused:
            return self._advance(step, list(self.buffers), measured)
        with torch.cuda.device(self.device):
            self._replay(step, self.buffers, first)
        return []

    def _replay(self, step: int, buffers: list[Inputs], first: bool) -> None:
        """Run the step as a CUDA graph; the first one as it is, since capturing needs libraries that are set up."""
        if first:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._advance(step, list(buffers), measured=False)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad()
            try:
                with torch.cuda.graph(graph):
                    self._advance(step, list(buffers), measured=False)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                warnings.warn(f"A step cannot be a CUDA graph, and is slower: {one_line(error)}", stacklevel=1)
                self.refused = True
                self._advance(step, list(buffers), measured=False)
                return
            self.graph = graph
        self.graph.replay()

    def _advance(self, step: int, inputs: list[Inputs | None], measured: bool) -> list[dict[str, float]]:
        self.optimizer.zero_grad()
        patches = [state.patches for state, _, _ in self.members]
        raw = extract(self.network, torch.cat(patches), self.recipe, whole=len(self.members) > 1)
        losses, gradients, measurements = [], [], []
        pieces = raw.split([len(each) for each in patches])
        for (_, objective, _), piece, given in zip(self.members, pieces, inputs, strict=True):
            # Ending each photograph's graph at its features frees it before the next one's is made.
            maps = piece.detach().requires_grad_()
            terms = objective(maps, step, given)
            values = weighted(terms, self.recipe)
            if measured:
                measurements.append((terms, _gradients_of_terms(values, maps)))
            loss: Tensor = sum(values.values())  # type: ignore[assignment]
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss, maps)[0])
        lines = _measure(raw, patches, measurements) if measured else []
        raw.backward(_joined(gradients))
        for (_, _, watch), loss in zip(self.members, losses, strict=True):
            watch.note(loss)
        self.optimizer.step()
        for state, _, _ in self.members:
            state.clamp()
        return lines


def _measure(
    raw: Tensor, patches: list[Tensor], measurements: list[tuple[dict[str, Tensor], dict[str, Tensor]]]
) -> list[dict[str, float]]:
    """Values of the terms, and norms of the weighted terms' gradients in the pixels; one backward pass per term."""
    lines = [{term: float(value.detach()) for term, value in terms.items()} for terms, _ in measurements]
    for term in TERMS:
        found = [gradients.get(term) for _, gradients in measurements]
        if all(gradient is None for gradient in found):
            continue
        pieces = raw.detach().split([len(each) for each in patches])
        full = [torch.zeros_like(p) if g is None else g for p, g in zip(pieces, found, strict=True)]
        in_pixels = torch.autograd.grad(raw, patches, _joined(full), retain_graph=True)
        for line, gradient, known in zip(lines, in_pixels, found, strict=True):
            if known is not None:
                line[f"gradient_{term}"] = float(gradient.norm())
    return lines


def _gradients_of_terms(values: dict[str, Tensor], maps: Tensor) -> dict[str, Tensor]:
    """The gradient of each weighted term in the feature maps."""
    found = {}
    for term in values:
        # The other terms get weight 0, so that the whole graph is walked and recomputed tensors are freed.
        weights = [torch.full_like(value, float(name == term)) for name, value in values.items()]
        found[term] = torch.autograd.grad(list(values.values()), maps, weights, retain_graph=True)[0]
    return found


def _joined(gradients: list[Tensor]) -> Tensor:
    # One alone keeps its memory layout, on which the rounding of some kernels depends.
    return gradients[0] if len(gradients) == 1 else torch.cat(gradients)


def _adam(states: list[State], *, capturable: bool) -> torch.optim.Adam:
    """Adam on the parameters of all photographs, with the moments of their states."""
    rate = torch.zeros((), device=states[0].parameters.device) if capturable else 0.0
    parameters = [state.parameters for state in states]
    optimizer = torch.optim.Adam(parameters, lr=rate, foreach=False, capturable=capturable, fused=capturable)
    for state in states:
        if capturable:
            state.adam["step"] = state.adam["step"].to(state.parameters.device)
        optimizer.state[state.parameters] = state.adam
    return optimizer
