"""Several photographs in one step: the same results as one at a time, whoever the neighbors are."""

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idc_hub.condensation.condense import Condensed, Photograph, Stopped, condense_batch, learning_rate
from idc_hub.condensation.objective import Objective
from idc_hub.condensation.parametrization import Spectrum
from idc_hub.condensation.real_side import RealSide
from idc_hub.condensation.state import State, Watch
from idc_hub.condensation.step import Step
from idc_hub.errors import DivergedError, NetworkError
from idc_hub.networks import create, load
from idc_hub.networks.swinir import SwinIR
from idc_hub.recipe import Recipe
from idc_hub.recipe_reader import bundled_recipes
from tests.unit import test_condense

SIZE = 16


class SmallNetwork(test_condense.SmallNetwork):
    """Remembers how many patches it was given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        self.given.append(len(lr))
        return super().features(lr, layer)


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "batch",
        "source": {"path": "photographs"},
        "patches": {"size": SIZE, "stride": SIZE, "complexity": "all"},
        "transform": {"kernel_size": 3, "channels": 12},
        "loss": {"frequencies": 16, "bank_size": 3},
        "assignment": {"groups": 3, "events": 4, "warmup": 0.1, "interval": 0.1},
        "optimizer": {"steps": 20},
        "workers": {"checkpoint_every": 7, "log_every": 5},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
    return Recipe.from_dict(values)


def photograph(number: int, size: int = SIZE) -> Tensor:
    """Nine patches of a picture with edges and texture, another one for each number."""
    y, x = np.mgrid[0 : 3 * size, 0 : 3 * size] / 32
    rng = np.random.default_rng(number)
    waves = [np.sin(a * x + b * y) * (x > c) + np.cos(b * y) for a, b, c in rng.uniform(0.2, 9, (3, 3))]
    pixels = np.stack(waves) * 60 + 120 + rng.normal(0, 6, (3, *x.shape))
    picture = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return torch.stack([picture[:, i : i + size, j : j + size] for i, j in size * np.array(list(np.ndindex(3, 3)))])


def named(number: int, size: int = SIZE, **options: Any) -> Photograph:
    """Photograph `number`, with one to three synthetic patches."""
    return Photograph(photograph(number, size), 1 + number % 3, f"photo-{number}", **options)


def together(
    photographs: Sequence[Photograph], spec: Recipe, network: nn.Module | None = None, **options: Any
) -> dict[str, Any]:
    found = condense_batch(photographs, network or SmallNetwork(), spec, **options)
    return {photograph.instance_id: outcome for photograph, outcome in found}


def agree(found: Condensed, alone: Condensed, share: float = 1.0) -> None:
    """At least a share of the pixels within a gray level, and the distances within 1e-3."""
    assert found.patches.shape == alone.patches.shape
    near = (found.patches.int() - alone.patches.int()).abs() <= 1
    assert float(near.float().mean()) >= share
    assert found.held_out == pytest.approx(alone.held_out, abs=1e-3)
    assert found.losses == pytest.approx(alone.losses, abs=1e-3)
    assert found.gradient_norms.keys() == alone.gradient_norms.keys()
    for term, norms in found.gradient_norms.items():
        assert norms[-1:] == pytest.approx(alone.gradient_norms[term][-1:], rel=0.02)


@pytest.mark.parametrize(
    "spec",
    [
        recipe(optimizer={"steps": 60}),
        recipe(preset="paper", optimizer={"steps": 50}),
        recipe(features={"statistics": "own"}),
        recipe(features={"statistics": "joint"}),
        recipe(transform={"unfold": "tiles", "padding": "valid"}),
        recipe(loss={"group_weight": 0, "pair_weight": 0, "distance": "mse"}),
        recipe(optimizer={"parametrization": "fourier"}, loss={"phase_penalty": 0.3, "frequency_scale": [0.02, 1]}),
        recipe(optimizer={"parametrization": "maco"}),
    ],
    ids=["default", "paper", "own", "joint", "tiles", "mse", "fourier", "maco"],
)
def test_batches_of_one_three_and_eight_give_the_same_patches(spec: Recipe) -> None:
    photographs = [named(number) for number in range(8)]
    network = SmallNetwork()
    eight = together(photographs, spec, network)
    assert sum(each.count for each in photographs) in network.given
    chosen = [photographs[number] for number in (6, 0, 2)]
    three = together(chosen, spec)
    for each in chosen:
        alone = together([each], spec)[each.instance_id]
        agree(eight[each.instance_id], alone)
        agree(three[each.instance_id], alone)
    assert not torch.equal(eight["photo-0"].patches, eight["photo-3"].patches)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_batch_through_a_trained_network_gives_the_same_patches(preset: str) -> None:
    network = load("edsr-small").eval().requires_grad_(False)
    spec = recipe(preset=preset, patches={"size": 32, "stride": 32}, optimizer={"steps": 50})
    photographs = [named(number, 32) for number in range(3)]
    found = together(photographs, spec, network)
    for each in photographs:
        # A step of `paper` is 2.55 gray levels, in the direction of a gradient that may be 0 but for rounding.
        share = 0.99 if preset == "paper" else 1.0
        agree(found[each.instance_id], together([each], spec, network)[each.instance_id], share)


def test_photographs_stop_together_and_continue_with_others() -> None:
    spec = recipe(loss={"draws": "fresh"})
    saved: dict[str, State] = {}

    def keeps(number: int, resume: State | None = None) -> Photograph:
        def keep(state: State) -> None:
            tensors = {name: tensor.clone() for name, tensor in state.to_tensors().items()}
            saved[f"photo-{number}"] = State.from_tensors(tensors)

        return named(number, resume=resume, checkpoint=keep)

    for batch in ((0, 1), (2,)):
        asked = iter([False] * 11 + [True])
        with pytest.raises(Stopped):
            together([keeps(number) for number in batch], spec, should_stop=lambda asked=asked: next(asked))
    assert [state.step for state in saved.values()] == [11, 11, 11]
    found = together([keeps(2, saved["photo-2"]), keeps(0, saved["photo-0"])], spec)
    for number in (0, 2):
        agree(found[f"photo-{number}"], together([named(number)], spec)[f"photo-{number}"])
    with pytest.raises(ValueError, match="at the same step"):
        together([named(0), keeps(1, saved["photo-1"])], spec)


class Spoiled(SmallNetwork):
    """Gives NaN from some step on, for the patch that is brighter than all others."""

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        found = super().features(lr, layer)
        if not lr.requires_grad:
            return found
        bright = lr.detach().mean((1, 2, 3))[:, None, None, None] > 0.9
        return found * torch.where(bright, math.nan, 1.0)


def test_a_photograph_that_diverges_leaves_and_spoils_no_neighbor() -> None:
    spec = recipe(loss={"row_norm": "row"})
    bright = Photograph((photograph(7) // 16 + 235), 2, "bright")
    found = together([named(1), bright, named(2)], spec, Spoiled())
    assert isinstance(found["bright"], DivergedError)
    assert "bright has NaN or Inf from step 1 of 20 on" in str(found["bright"])
    for number in (1, 2):
        agree(found[f"photo-{number}"], together([named(number)], spec)[f"photo-{number}"])


def test_a_photograph_that_cannot_begin_or_be_saved_fails_alone() -> None:
    class Refuses(SmallNetwork):
        def features(self, lr: Tensor, layer: int | str) -> Tensor:
            return super().features(lr, layer) * (math.nan if bool((lr == 1).all((1, 2, 3)).any()) else 1)

    def full(state: State) -> None:
        raise OSError("No space left on device")

    white = Photograph(torch.full_like(photograph(0), 255), 1, "white")
    found = together([white, named(1), replace(named(2), checkpoint=full)], recipe(), Refuses())
    assert isinstance(found["white"], NetworkError)
    assert isinstance(found["photo-2"], OSError)
    agree(found["photo-1"], together([named(1)], recipe())["photo-1"])


class Small(SmallNetwork):
    """Has memory for two patches in a step, from a number of steps on; remembers how many patches were refused."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.refused: list[int] = []

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        found = super().features(lr, layer)
        if lr.requires_grad and torch.is_grad_enabled():
            self.steps -= 1
            if len(lr) > 2 and self.steps < 0:
                self.refused.append(len(lr))
                raise torch.OutOfMemoryError("CUDA out of memory")
        return found


@pytest.mark.filterwarnings("ignore:.*photographs failed together .OutOfMemoryError")
@pytest.mark.parametrize("steps", [0, 4, 5])
def test_a_batch_that_runs_out_of_memory_continues_in_halves_and_one_photograph_fails_alone(steps: int) -> None:
    # Tiles are grouped and paired before step 4, not before step 5: an event must not be made twice.
    network = Small(steps)
    found = together([named(number) for number in (0, 3, 2, 6, 1)], recipe(), network)
    assert network.refused == [1 + 1 + 3 + 1 + 2, 3 + 1 + 2, 3, 1 + 2]
    assert isinstance(found["photo-2"], torch.OutOfMemoryError)
    for number, batch in ((0, 2), (3, 2), (6, 1), (1, 1)):
        agree(found[f"photo-{number}"], together([named(number)], recipe())[f"photo-{number}"])
        assert found[f"photo-{number}"].batch == batch


@pytest.mark.filterwarnings("ignore:.*photographs failed together .OutOfMemoryError")
def test_real_sides_that_do_not_fit_together_are_made_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[RealSide] = weakref.WeakSet()
    make = RealSide.__init__

    def counted(self: RealSide, *arguments: Any, **options: Any) -> None:
        alive.add(self)
        make(self, *arguments, **options)

    class Crowded(SmallNetwork):
        """Has memory for the real sides of two photographs, but not of three."""

        def features(self, lr: Tensor, layer: int | str) -> Tensor:
            if len(alive) > 2:
                gc.collect()
            if len(alive) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().features(lr, layer)

    monkeypatch.setattr(RealSide, "__init__", counted)

    found = together([named(number) for number in range(4)], recipe(), Crowded())
    assert [each.batch for each in found.values()] == [2, 2, 2, 2]


@pytest.mark.filterwarnings("ignore:.*photographs failed together .OutOfMemoryError")
def test_a_signal_saves_the_half_that_waits_as_well() -> None:
    asked = iter([False] * 4 + [True])
    saved: dict[str, int] = {}

    def keep(number: int) -> Callable[[State], None]:
        return lambda state: saved.update({f"photo-{number}": state.step})

    batch = [named(number, checkpoint=keep(number)) for number in (0, 1, 3)]
    with pytest.raises(Stopped):
        together(batch, recipe(), Small(3), should_stop=lambda: next(asked))
    assert saved == {"photo-0": 3, "photo-1": 3, "photo-3": 3}


def members(numbers: Sequence[int], network: nn.Module, spec: Recipe) -> list[tuple[State, Objective, Watch]]:
    """Photographs with every second tile grouped, and every fourth one paired."""
    found = []
    device = next(network.parameters()).device
    for number in numbers:
        each = named(number, spec.patches.size)
        real = RealSide(each.lr.to(device), network, spec, each.instance_id)
        grid = replace(real.grid, patches=each.count)
        noise = torch.rand(each.count, *each.lr.shape[1:], generator=torch.Generator().manual_seed(number))
        spectrum = Spectrum.of(real.lr, spec.optimizer.parametrization)
        state = State.start(noise.to(device), len(grid), spectrum)
        if spec.loss.group_weight or spec.loss.pair_weight:
            state.assignment.group[::2] = torch.arange(len(state.assignment.group[::2])) % len(real.centroids)
            state.assignment.partner[::4] = torch.arange(len(state.assignment.partner[::4])) % len(real.grid)
        objective = Objective(real, grid, spec)
        objective.take_partners(state.assignment)
        found.append((state, objective, Watch(state, spec, each.instance_id)))
    return found


@pytest.mark.parametrize("draws", ["bank", "fresh"])
def test_a_step_with_fixed_inputs_is_the_step(draws: str) -> None:
    spec, network = recipe(loss={"draws": draws}), SmallNetwork()
    plain, fixed = (members((0, 1, 2), network, spec) for _ in range(2))
    steps = Step(plain, network, spec), Step(fixed, network, spec, fixed=True)
    addresses = set()
    for number in range(7):
        lines = [step(number, learning_rate(spec, number), measured=number % 3 == 2) for step in steps]
        for line, other in zip(*lines, strict=True):
            assert line == pytest.approx(other, rel=1e-5)
        assert steps[1].buffers is not None
        addresses.add(tuple(tensor.data_ptr() for inputs in steps[1].buffers for tensor in inputs.tensors))
    assert len(addresses) == 1
    assert len(lines[0]) == 0
    for (state, _, _), (other, _, _) in zip(plain, fixed, strict=True):
        assert torch.allclose(state.patches, other.patches, atol=1e-5)
        assert int(state.adam["step"]) == 7


def test_a_step_that_cannot_be_captured_runs_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(nullcontext[None]):
        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    for name in ("device", "stream", "Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *ignored: MagicMock())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: Refuses())
    spec, network = recipe(), SmallNetwork()
    plain, captured = (Step(members((0, 1), network, spec), network, spec, fixed=True) for _ in range(2))
    captured.device = torch.device("cuda")
    plain(0, 0.01)
    captured(0, 0.01)  # the first step sets up libraries
    with pytest.warns(UserWarning, match="cannot be a CUDA graph, and is slower: operation not permitted"):
        captured(1, 0.01)
    captured(2, 0.01)
    for number in (1, 2):
        plain(number, 0.01)
    for (state, _, _), (other, _, _) in zip(plain.members, captured.members, strict=True):
        assert torch.allclose(state.patches, other.patches, atol=1e-5)


class OneDevice(TorchDispatchMode):
    """Refuses what a CUDA graph cannot contain: tensors of another device, and numbers that the host reads.

    `shapes` has the shapes of all results, in order: they must be the same at every step.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.shapes: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        made = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, made)) if isinstance(each, Tensor)]
        others = {str(each.device) for each in tensors} - {self.device}
        assert not others, f"{name} uses {others} beside {self.device}"
        masks = [each for each in tree_leaves(args[1:]) if isinstance(each, Tensor) and each.dtype == torch.bool]
        assert not (masks and name.startswith("index")), f"{name} by a mask waits for the device"
        assert name not in READING, f"{name} waits for the device"
        self.shapes.append((name, [each.shape for each in tree_leaves(made) if isinstance(each, Tensor)]))
        return made


READING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")


def moved(found: Any, device: str, seen: dict[int, Any]) -> Any:
    """A copy of objects of this package, with all tensors and networks in them on another device."""
    if id(found) in seen:
        return seen[id(found)]
    if isinstance(found, Tensor):
        return seen.setdefault(id(found), found.detach().to(device))
    if isinstance(found, dict):
        return {key: moved(value, device, seen) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(moved(value, device, seen) for value in found)
    if type(found).__module__.startswith("idc_hub.condensation"):
        other = seen[id(found)] = copy(found)
        for key, value in vars(found).items():
            object.__setattr__(other, key, moved(value, device, seen))
        return other
    return found


class PlainAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, algorithm 1) whose step count is on the device: torch's own refuses the `meta` device."""

    def __init__(self, patches: list[Tensor]) -> None:
        super().__init__(patches, {"lr": 0.0})
        self.moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in patches]
        self.count = torch.zeros((), device=patches[0].device)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        self.count += 1
        for patches, (mean, square) in zip(self.param_groups[0]["params"], self.moments, strict=True):
            mean.lerp_(patches.grad, 0.1)
            square.lerp_(patches.grad.square(), 0.001)
            spread = (square / (1 - 0.999**self.count)).sqrt() + 1e-8
            patches.sub_(self.param_groups[0]["lr"] * mean / (1 - 0.9**self.count) / spread)


def refuse_surprises(network: nn.Module, spec: Recipe, *, fixed: bool) -> None:
    """Three steps of two photographs on PyTorch's `meta` device, which computes shapes alone."""
    network = network.eval().requires_grad_(False)
    prepared = members((0, 1), network, spec)
    # The real side depends on the photographs; a step finds it in tables, or gets it as inputs.
    inputs = [[objective.inputs(n, objective.real.statistics) for _, objective, _ in prepared] for n in range(3)]
    seen: dict[int, Any] = {}
    step = Step(moved(prepared, "meta", seen), deepcopy(network).to("meta"), spec, fixed=fixed)
    step.optimizer = PlainAdam(step.parameters)  # type: ignore[assignment]
    shapes = []
    for number, given in enumerate(inputs):
        for (_, objective, _), own in zip(step.members, moved(given, "meta", seen), strict=True):
            objective.inputs = lambda step, statistics, own=own: own  # type: ignore[method-assign,misc]
        with OneDevice("meta") as watched:
            step(number, 0.01)
        shapes.append(watched.shapes)
    assert len(shapes[2]) > 100
    assert shapes[1] == shapes[2]


EXTRACTORS: dict[str, Callable[[], nn.Module]] = {
    "edsr": lambda: create("edsr-small"),
    "swinir": lambda: SwinIR(depths=[2], dim=12, heads=2, window=8, upsampler="pixelshuffledirect"),
    "mambairv2": lambda: create("mambairv2-light"),
}


@pytest.mark.parametrize(("name", "fixed"), [("edsr", False), *((name, True) for name in EXTRACTORS)])
def test_a_step_through_every_extractor_stays_on_its_device(name: str, fixed: bool) -> None:
    refuse_surprises(EXTRACTORS[name](), recipe(), fixed=fixed)


@pytest.mark.parametrize(
    "spec",
    [
        recipe(transform={"precision": "bf16"}),
        recipe(features={"statistics": "own"}, loss={"frequency_kind": "orthogonal"}),
        recipe(transform={"unfold": "tiles", "padding": "valid"}),
        recipe(transform={"kind": "dwt"}, loss={"distance": "mmd", "draws": "fresh"}),
        recipe(optimizer={"parametrization": "fourier"}, loss={"phase_penalty": 0.3, "frequency_scale": [0.02, 1]}),
        recipe(optimizer={"parametrization": "maco"}),
    ],
    ids=["bf16", "orthogonal", "tiles", "dwt", "fourier", "maco"],
)
def test_a_step_of_every_kind_stays_on_its_device(spec: Recipe) -> None:
    refuse_surprises(SmallNetwork(), spec, fixed=True)


def test_a_step_through_several_layers_stays_on_its_device() -> None:
    refuse_surprises(create("edsr-small"), recipe(features={"layer": ["pixels", "first", "residual"]}), fixed=True)


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_step_of_every_recipe_stays_on_its_device(name: str) -> None:
    values = Recipe.load(name, ["source.path=photographs"]).model_dump(mode="json")
    values["patches"] |= {"size": SIZE, "stride": SIZE, "complexity": "all"}
    values["transform"] |= {"channels": 12}
    values["loss"] |= {"frequencies": 8, "bank_size": 2}
    refuse_surprises(SmallNetwork(), Recipe.from_dict(values), fixed=True)


def test_a_step_that_surprises_a_device_is_refused() -> None:
    class Asks(SmallNetwork):
        def features(self, lr: Tensor, layer: int | str) -> Tensor:
            return super().features(lr, layer) * torch.ones(1)

    with pytest.raises(AssertionError, match=r"uses \{'cpu'\} beside meta"):
        refuse_surprises(Asks(), recipe(), fixed=True)
