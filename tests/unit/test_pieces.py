"""A step in pieces is the step that is not cut, to rounding; and no step asks the device for a number."""

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from idc_hub.condensation import pieces
from idc_hub.condensation import step as step_module
from idc_hub.condensation.condense import assignment_events, condense_instance
from idc_hub.condensation.objective import Objective, weighted
from idc_hub.condensation.pieces import piece_size
from idc_hub.condensation.real_side import RealSide, extract
from idc_hub.condensation.state import State
from idc_hub.recipe import Recipe

SIZE = 12
COUNT = 5


class Network(torch.nn.Module):
    """Two convolutions; remembers how many patches it was given at a time."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(6, 3, 3, 3, generator=rng) * 0.4, requires_grad=False)
        self.second = torch.nn.Parameter(torch.randn(4, 6, 3, 3, generator=rng) * 0.3, requires_grad=False)
        self.given: list[int] = []

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        self.given.append(len(lr))
        hidden = torch.tanh(torch.nn.functional.conv2d(lr, self.first, padding=1))
        return torch.nn.functional.conv2d(hidden, self.second, padding=1)


def recipe(**loss_and_features: Any) -> Recipe:
    statistics = loss_and_features.pop("statistics", "real")
    transform = loss_and_features.pop("transform", {})
    return Recipe.from_dict(
        {
            "name": "pieces",
            "source": {"path": "photographs"},
            "patches": {"size": SIZE, "stride": SIZE, "complexity": "all"},
            "features": {"statistics": statistics},
            "transform": {"kernel_size": 3, "channels": 8, **transform},
            "loss": {"frequencies": 8, "bank_size": 2, **loss_and_features},
            "assignment": {"groups": 3, "tile": 4, "events": 4, "warmup": 0.1, "interval": 0.1},
            "optimizer": {"steps": 12, "initial": "noise"},
            "workers": {"checkpoint_every": 7, "log_every": 5},
        }
    )


def photograph() -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (8, 3, SIZE, SIZE), generator=rng).byte()


@pytest.fixture
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "WHOLE_PIXELS", SIZE**2)
    monkeypatch.setattr(pieces, "PIECE_PIXELS", 2 * SIZE**2)


def step(spec: Recipe) -> tuple[dict[str, float], Tensor, list[int]]:
    """The terms of one step with some tiles paired, their gradient, and what the network was given."""
    patches = photograph()
    network = Network()
    real = RealSide(patches, network, spec, "photo")
    grid = replace(real.grid, patches=COUNT)
    state = State.start(torch.rand(COUNT, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), len(grid))
    tiles_of_patch = len(grid) // COUNT
    for tile in range(len(grid)):
        if not assignment_events(spec):
            break
        # All tiles of the first patch are paired, none of the third and the fourth, every other one of the rest.
        patch = tile // tiles_of_patch
        state.assignment.group[tile] = -1 if patch == 2 else tile % 3
        if patch == 0 or (patch in (1, 4) and tile % 2):
            state.assignment.partner[tile] = (7 * tile) % len(real.grid)
    objective = Objective(real, grid, spec)
    objective.take_partners(state.assignment)
    network.given.clear()
    state.patches.requires_grad_()
    terms = objective(extract(network, state.patches, spec), 0)
    loss = sum(weighted(terms, spec).values())
    assert isinstance(loss, Tensor)
    by_pixels = torch.autograd.grad(loss, state.patches, retain_graph=True)[0]  # as logged steps do
    loss.backward()
    assert state.patches.grad is not None
    assert torch.allclose(by_pixels, state.patches.grad, rtol=1e-5, atol=1e-7)
    return {term: float(value.detach()) for term, value in terms.items()}, state.patches.grad, network.given


def test_patches_are_cut_by_their_pixels() -> None:
    assert piece_size(16, 64 * 64) == 16
    assert piece_size(17, 64 * 64) == 4
    assert piece_size(200, 64 * 64) == 4
    assert piece_size(7, 96 * 96) == 7
    assert piece_size(200, 96 * 96) == 1
    assert piece_size(2, 256 * 256) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"statistics": "own"},
        {"statistics": "joint"},
        {"draws": "fresh"},
        {"row_norm": "row"},
        {"pair_reduction": "literal", "group_reduction": "sum"},
        {"distance": "mse"},
        {"distance": "mmd"},
        {"transform": {"kind": "dwt"}},
        {"transform": {"unfold": "tiles"}},
        {"transform": {"unfold": "tiles"}, "distance": "mse"},
        {"transform": {"unfold": "patches"}, "group_weight": 0, "pair_weight": 0},
    ],
    ids=str,
)
def test_a_step_in_pieces_is_the_whole_step_to_rounding(
    changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    whole_terms, whole_gradient, given = step(recipe(**changes))
    assert given == [COUNT]
    request.getfixturevalue("two_at_a_time")
    terms, gradient, given = step(recipe(**changes))
    assert set(given) == {2, 1}
    assert terms.keys() == ({"instance", "group", "pair"} if assignment_events(recipe(**changes)) else {"instance"})
    assert terms == pytest.approx(whole_terms, rel=1e-5)
    # Rounding grows where the phases of two functions are nearly equal.
    assert float((gradient - whole_gradient).norm() / whole_gradient.norm()) < 1e-4


@pytest.mark.usefixtures("two_at_a_time")
def test_a_run_in_pieces_ends_with_the_same_bytes_after_an_interruption() -> None:
    patches = photograph()
    saved: list[dict[str, Tensor]] = []

    def keep(state: State) -> None:
        saved.append({name: tensor.clone() for name, tensor in state.to_tensors().items()})

    network, spec = Network(), recipe()
    whole = condense_instance(patches, COUNT, network, spec, "photo", checkpoint=keep)
    resumed = condense_instance(patches, COUNT, network, spec, "photo", resume=State.from_tensors(saved[0]))
    assert torch.equal(whole.patches, resumed.patches)
    assert whole.held_out == resumed.held_out
    assert len(whole.gradient_norms["pair"]) == 3  # after steps 5, 10, and the last, 12
    assert max(network.given) == 2


@pytest.mark.usefixtures("two_at_a_time")
def test_a_logged_step_keeps_nothing_that_it_made_again() -> None:
    held: list[int] = []

    def count() -> None:
        gc.collect()
        held.append(sum(each.numel() for each in gc.get_objects() if type(each) is Tensor))

    measure = step_module._gradients_of_terms

    def counted(*arguments: Any) -> dict[str, Tensor]:
        count()
        gradients = measure(*arguments)
        count()
        held[-1] -= sum(gradient.numel() for gradient in gradients.values())
        return gradients

    patches = photograph()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "_gradients_of_terms", counted)
        condense_instance(patches, COUNT, Network(), recipe(), "photo")
    # The samples of a piece alone are 2 * 12 * 12 * 8 numbers.
    assert held[1] - held[0] < 1000
    assert held[3] - held[2] < 1000


class Asked(TorchDispatchMode):
    """Notes every operation that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for entry in args
            if isinstance(entry, list | tuple)
            for index in entry
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_no_step_asks_the_device_for_a_number() -> None:
    spec = recipe()
    patches = photograph()
    network = Network()
    real = RealSide(patches, network, spec, "photo")
    grid = replace(real.grid, patches=COUNT)
    state = State.start(torch.rand(COUNT, 3, SIZE, SIZE), len(grid))
    state.assignment.group[:] = torch.arange(len(grid)) % 3
    state.assignment.partner[:] = torch.arange(len(grid)) % len(real.grid)
    objective = Objective(real, grid, spec)
    objective.take_partners(state.assignment)
    state.patches.requires_grad_()
    for number in range(spec.loss.bank_size):
        objective(extract(network, state.patches, spec), number)  # the first use of each draw fills tables
    with Asked() as asked:
        terms = objective(extract(network, state.patches, spec), spec.loss.bank_size)
        sum(weighted(terms, spec).values()).backward()  # type: ignore[union-attr]
    assert asked.found == []
