"""The optimization of one photograph, against a slow reference, for every switch, and through interruptions."""

import cmath
import math
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from idc_hub.condensation.assignment import Assignment, TileGrid
from idc_hub.condensation.condense import (
    Stopped,
    condense_instance,
    initial_patches,
    learning_rate,
    random_subset,
)
from idc_hub.condensation.objective import Objective, weighted
from idc_hub.condensation.real_side import Draw, RealSide, Statistics, extract
from idc_hub.condensation.state import State
from idc_hub.errors import DivergedError
from idc_hub.recipe import Recipe

SIZE, STRIDE = 16, 8


class SmallNetwork(nn.Module):
    """Two fixed convolutions: enough structure for features, quick enough for loops."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(6, 3, 3, 3, generator=rng) * 0.4, requires_grad=False)
        self.second = nn.Parameter(torch.randn(4, 6, 3, 3, generator=rng) * 0.3, requires_grad=False)

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        hidden = torch.tanh(nn.functional.conv2d(lr, self.first, padding=1))
        return nn.functional.conv2d(hidden, self.second, padding=1)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "test",
        "source": {"path": "photographs"},
        "patches": {"size": SIZE, "stride": STRIDE, "complexity": "all"},
        "transform": {"kernel_size": 3, "channels": 12},
        "loss": {"frequencies": 16, "bank_size": 3, "row_norm": "row", "group_reduction": "sum"},
        "assignment": {"groups": 3, "tile": 4, "events": 4, "warmup": 0.1, "interval": 0.1},
        "optimizer": {"steps": 20, "initial": "noise", "learning_rate": 1e-2},
        "workers": {"checkpoint_every": 7, "log_every": 5},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return Recipe.model_validate(values)


def photograph() -> Tensor:
    """Nine overlapping patches of a smooth picture with edges."""
    y, x = np.mgrid[0:32, 0:32] / 32
    picture = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y) * x, (x > 0.5) * (y > 0.3)])
    pixels = torch.from_numpy((picture * 100 + 120).clip(0, 255).astype(np.uint8))
    places = [(top, left) for top in (0, 8, 16) for left in (0, 8, 16)]
    return torch.stack([pixels[:, top : top + SIZE, left : left + SIZE] for top, left in places])


def condense(spec: Recipe, **options: Any) -> Any:
    return condense_instance(photograph(), 2, SmallNetwork(), spec, "photo", **options)


def slow_distance(real: np.ndarray, syn: np.ndarray, freqs: np.ndarray) -> float:
    total = 0.0
    for t in freqs:
        a, b = (sum(cmath.exp(1j * float(t @ row)) for row in rows) / len(rows) for rows in (real, syn))
        phase = 2 * abs(a) * abs(b) * (1 - math.cos(cmath.phase(a) - cmath.phase(b)))
        total += math.sqrt(0.2 * (abs(a) - abs(b)) ** 2 + 0.8 * phase)
    return total / len(freqs)


def slow_local_features(maps: np.ndarray, filters: np.ndarray, padding: str, *, unit: bool = True) -> np.ndarray:
    """Local features `[B, h, w, C_out]` of normalized maps, by loops over pixels; of unit length if `unit`."""
    edge = 0 if padding == "valid" else filters.shape[-1] // 2
    mode = "reflect" if padding == "reflect" else "constant"
    padded = np.pad(maps, ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode=mode)
    k = filters.shape[-1]
    height, width = padded.shape[2] - k + 1, padded.shape[3] - k + 1
    found = np.empty((len(maps), height, width, len(filters)))
    for y in range(height):
        for x in range(width):
            window = padded[:, :, y : y + k, x : x + k].reshape(len(maps), -1)
            found[:, y, x] = window @ filters.reshape(len(filters), -1).T
    return found / np.linalg.norm(found, axis=-1, keepdims=True) if unit else found


def partly_assigned(spec: Recipe, network: nn.Module) -> tuple[Objective, State]:
    """Two synthetic patches, a third of whose tiles is grouped, some of them paired with real tiles of their group."""
    patches = photograph()
    real = RealSide(patches, network, spec, "photo")
    grid = TileGrid(2, real.grid.height, real.grid.width, 4, spec.transform.unfold)
    state = State.start(torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), len(grid))
    state.assignment.group[::3] = torch.arange(len(state.assignment.group[::3])) % 3
    for tile in torch.nonzero(state.assignment.group >= 0).flatten().tolist()[::2]:
        of_group = torch.nonzero(real.labels == state.assignment.group[tile]).flatten()
        state.assignment.partner[tile] = of_group[tile % len(of_group)]
    objective = Objective(real, grid, spec)
    objective.take_partners(state.assignment)
    return objective, state


@pytest.mark.parametrize("padding", ["reflect", "zero", "valid"])
@pytest.mark.parametrize("reduction", ["mean", "literal", "group-mean", "group-mean-twice"])
def test_the_three_terms_are_the_papers_equations(padding: str, reduction: str) -> None:
    spec = recipe(transform__padding=padding, loss__pair_reduction=reduction)
    patches = photograph()
    network = SmallNetwork()
    objective, state = partly_assigned(spec, network)
    real, grid = objective.real, objective.grid
    terms = objective(extract(network, state.patches, spec), step=0)

    draw = objective.inputs(0, real.statistics).draw
    normalize = real.statistics.normalize
    syn_features, real_features = (
        slow_local_features(
            normalize(extract(network, lr, spec)).double().numpy(), draw.filters.double().numpy(), padding
        )
        for lr in (state.patches, patches)
    )
    freqs = draw.freqs.double().numpy()
    channels = syn_features.shape[-1]
    whole = slow_distance(real_features.reshape(-1, channels), syn_features.reshape(-1, channels), freqs)
    assert float(terms["instance"]) == pytest.approx(whole, rel=2e-4)

    def tiles_of(features: np.ndarray, place: TileGrid) -> np.ndarray:
        down, across = place.height // 4, place.width // 4
        pieces = [
            features[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(16, channels)
            for b in range(len(features))
            for i in range(down)
            for j in range(across)
        ]
        return np.stack(pieces)

    syn_tiles, real_tiles = tiles_of(syn_features, grid), tiles_of(real_features, real.grid)
    groups, labels = state.assignment.group.numpy(), real.labels.numpy()
    expected = sum(
        slow_distance(
            real_tiles[labels == m].reshape(-1, channels), syn_tiles[groups == m].reshape(-1, channels), freqs
        )
        for m in range(3)
    )
    assert float(terms["group"]) == pytest.approx(expected, rel=2e-4)

    paired = [(s, int(r)) for s, r in enumerate(state.assignment.partner) if r >= 0]
    sizes = {m: sum(groups[s] == m for s, _ in paired) for m in range(3)}
    per_pair = {s: np.abs(syn_tiles[s] - real_tiles[r]) for s, r in paired}
    expected = {
        "mean": np.mean([d.mean() for d in per_pair.values()]),
        "literal": sum(d.sum() / sizes[groups[s]] for s, d in per_pair.items()),
        "group-mean": sum(d.mean() / sizes[groups[s]] for s, d in per_pair.items()),
        "group-mean-twice": sum(d.mean() / sizes[groups[s]] ** 2 for s, d in per_pair.items()),
    }[reduction]
    assert len(paired) >= 3
    assert float(terms["pair"]) == pytest.approx(float(expected), rel=1e-4)
    summed = sum(weighted(terms, spec).values())
    by_hand = sum(getattr(spec.loss, f"{name}_weight") * float(value) for name, value in terms.items())
    assert float(summed) == pytest.approx(by_hand, rel=1e-6)


def tiles_by_hand(features: np.ndarray) -> np.ndarray:
    """Tiles `[tiles, 16, C]` of local features `[B, h, w, C]`, 4 x 4 pixels each."""
    down, across = features.shape[1] // 4, features.shape[2] // 4
    pieces = [features[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] for b, i, j in np.ndindex(len(features), down, across)]
    return np.stack(pieces).reshape(-1, 16, features.shape[-1])


def by_hand(distance: str, real: np.ndarray, syn: np.ndarray, freqs: np.ndarray) -> float:
    if distance == "ncfd":
        return slow_distance(real, syn, freqs)
    if distance == "mse":
        return float(np.square(real.mean(0) - syn.mean(0)).mean())
    functions = [np.exp(1j * rows @ freqs.T).mean(0) for rows in (real, syn)]
    return float(np.square(np.abs(functions[0] - functions[1])).mean())


@pytest.mark.parametrize("padding", ["reflect", "valid"])
@pytest.mark.parametrize("unfold", ["pixels", "tiles"])
@pytest.mark.parametrize(
    ("kind", "distance"),
    [("identity", "ncfd"), ("dct", "ncfd"), ("dwt", "ncfd"), ("rlff", "ncfd"), ("rlff", "mmd"), ("rlff", "mse")],
)
def test_the_three_terms_of_every_transform_and_distance(kind: str, distance: str, unfold: str, padding: str) -> None:
    spec = recipe(
        transform={"kind": kind, "unfold": unfold, "padding": padding, "kernel_size": 3, "channels": 12},
        loss__distance=distance,
        loss__row_norm="none",
    )
    network = SmallNetwork()
    objective, state = partly_assigned(spec, network)
    real = objective.real
    terms = objective(extract(network, state.patches, spec), step=0)

    draw = objective.inputs(0, real.statistics).draw
    syn_tiles, real_tiles = (
        tiles_by_hand(
            slow_local_features(
                real.statistics.normalize(extract(network, lr, spec)).double().numpy(),
                draw.filters.double().numpy(),
                padding,
                unit=False,
            )
        )
        for lr in (state.patches, real.lr)
    )

    def samples(tiles: np.ndarray) -> np.ndarray:
        # A tile as one sample is its features in the order (channel, pixel).
        if unfold == "tiles":
            return tiles.transpose(0, 2, 1).reshape(len(tiles), -1)
        return tiles.reshape(-1, tiles.shape[-1])

    freqs = draw.freqs.double().numpy()
    if padding == "reflect":  # 16 x 16 pixels are tiles without remainder
        whole = by_hand(distance, samples(real_tiles), samples(syn_tiles), freqs)
        assert float(terms["instance"]) == pytest.approx(whole, rel=1e-3)
    groups, labels = state.assignment.group.numpy(), real.labels.numpy()
    expected = [
        by_hand(distance, samples(real_tiles[labels == m]), samples(syn_tiles[groups == m]), freqs) for m in range(3)
    ]
    assert float(terms["group"]) == pytest.approx(sum(expected), rel=1e-3)
    paired = [(s, int(r)) for s, r in enumerate(state.assignment.partner) if r >= 0]
    differences = [np.abs(syn_tiles[s] - real_tiles[r]).mean() for s, r in paired]
    assert float(terms["pair"]) == pytest.approx(float(np.mean(differences)), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "distance", "unfold"),
    [
        *((kind, "ncfd", "pixels") for kind in ("rlff", "identity", "dct", "dwt")),
        *(("rlff", distance, "pixels") for distance in ("mmd", "mse")),
        *(("rlff", distance, "tiles") for distance in ("ncfd", "mmd", "mse")),
        *(("identity", distance, "patches") for distance in ("ncfd", "mmd", "mse")),
    ],
)
def test_every_transform_and_distance_lowers_its_own_loss(kind: str, distance: str, unfold: str) -> None:
    # Where a whole patch is one sample, two samples never get near nine: no more than the direction is asked for.
    spec = recipe(
        transform={"kind": kind, "unfold": unfold, "kernel_size": 3, "channels": 12},
        loss={"distance": distance, "frequencies": 64, "bank_size": 4, "group_weight": 0, "pair_weight": 0},
        optimizer={"steps": 60, "initial": "noise", "learning_rate": 1e-2},
    )
    patches = photograph()
    real = RealSide(patches, SmallNetwork(), spec, "photo")
    start = (initial_patches(real, 2) * 255).round().to(torch.uint8)
    bank: list[object] = list(range(4))
    before = real.discrepancy(start, SmallNetwork(), bank)
    after = real.discrepancy(condense(spec).patches, SmallNetwork(), bank)
    assert after < (0.95 if unfold == "patches" else 0.7) * before


def test_without_groups_and_pairs_nothing_is_assigned() -> None:
    lines: list[dict[str, float]] = []
    spec = recipe(loss__group_weight=0, loss__pair_weight=0)
    condensed = condense(spec, log=lines.append)
    assert lines[-1]["grouped"] == lines[-1]["paired"] == 0
    assert condensed.losses.keys() == {"instance"}
    assert not torch.equal(condensed.patches, condense(recipe()).patches)


def test_the_instance_function_is_the_size_weighted_mean_of_the_groups() -> None:
    patches = photograph()
    real = RealSide(patches, SmallNetwork(), recipe(), "photo")
    _, targets = real.at(0, keep=True)
    weights = real.sizes.double() / real.sizes.sum()
    mean = (weights[:, None] * targets.groups).sum(0)
    assert torch.allclose(mean, targets.instance.to(mean.dtype), atol=1e-6)


def test_condensing_beats_random_real_patches_on_draws_it_never_saw() -> None:
    condensed = condense(recipe(optimizer__steps=150, optimizer__initial="real", loss__bank_size=8))
    assert condensed.patches.shape == (2, 3, SIZE, SIZE)
    assert condensed.patches.dtype == torch.uint8
    assert condensed.held_out < 0.7 * condensed.held_out_random


@pytest.mark.parametrize(
    ("initial", "parametrization"),
    [("noise", "pixels"), ("real", "pixels"), ("cf-greedy", "pixels"), ("leaves", "fourier"), ("noise", "maco")],
)
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(initial: str, parametrization: str) -> None:
    spec = recipe(optimizer__initial=initial, optimizer__parametrization=parametrization, loss__draws="bank")
    saved: list[bytes] = []
    whole = condense(spec, checkpoint=lambda state: saved.append(safetensors.torch.save(state.to_tensors())))
    states = [safetensors.torch.load(file) for file in saved]
    assert [int(state["step"]) for state in states] == [7, 14]
    for state in states:
        resumed = condense(spec, resume=State.from_tensors(state))
        assert torch.equal(resumed.patches, whole.patches)
        assert resumed.held_out == whole.held_out


def test_stopping_hands_the_state_over_and_loses_no_step() -> None:
    spec, saved = recipe(), []
    asked = iter([False] * 11 + [True])
    with pytest.raises(Stopped):
        condense(spec, checkpoint=lambda state: saved.append(state.to_tensors()), should_stop=lambda: next(asked))
    assert int(saved[-1]["step"]) == 11
    assert torch.equal(condense(spec, resume=State.from_tensors(saved[-1])).patches, condense(spec).patches)


def test_the_result_does_not_depend_on_other_photographs_but_on_the_id_and_the_seed() -> None:
    base = condense(recipe()).patches
    assert torch.equal(base, condense(recipe()).patches)
    assert not torch.equal(base, condense(recipe(seed=1)).patches)
    patches = photograph()
    other = condense_instance(patches, 2, SmallNetwork(), recipe(), "another")
    assert not torch.equal(base, other.patches)


SWITCHES = [
    ("preset", "paper"),
    ("features__statistics", "own"),
    ("features__statistics", "joint"),
    ("features__statistics", "none"),
    ("transform__kind", "identity"),
    ("transform__kind", "dct"),
    ("transform__kind", "dwt"),
    ("transform__unfold", "tiles"),
    ("loss__distance", "mmd"),
    ("loss__distance", "mse"),
    ("transform__rows", "literal"),
    ("transform__padding", "zero"),
    ("transform__padding", "valid"),
    ("transform__precision", "bf16"),
    ("features__precision", "bf16"),
    ("loss__row_norm", "global"),
    ("loss__row_norm", "none"),
    ("loss__frequency_scale", 0.3),
    ("loss__frequency_scale", [0.02, 1]),
    ("loss__phase_penalty", 0.3),
    ("loss__frequency_kind", "orthogonal"),
    ("loss__draws", "fresh"),
    ("loss__group_reduction", "mean"),
    ("loss__pair_reduction", "literal"),
    ("optimizer__initial", "leaves"),
    ("optimizer__initial", "real"),
    ("optimizer__initial", "cf-greedy"),
    ("optimizer__parametrization", "fourier"),
    ("optimizer__parametrization", "maco"),
]


@pytest.mark.parametrize("frequencies", [5, 12, 30])
def test_orthogonal_frequencies_are_orthogonal_in_blocks_and_each_is_normal(frequencies: int) -> None:
    spec = recipe(loss__frequency_kind="orthogonal", loss__frequencies=frequencies, loss__frequency_scale=0.5)
    channels = spec.transform.channels  # 12: the largest block
    made = [Draw.make(spec, 4, 1, name, torch.device("cpu")).freqs for name in range(400)]
    for block in made[0].split(channels):
        products = block @ block.T
        assert torch.allclose(products, products.diagonal().diag(), atol=1e-5)
    rows = torch.cat(made)
    assert rows.shape == (400 * frequencies, channels)
    # Moments of N(0, 1/4), whose fourth is 3/16, and of the squared length, 12/4 with variance 2 * 12 / 16.
    assert float(rows.mean()) == pytest.approx(0, abs=0.02)
    assert torch.allclose(rows.T @ rows / len(rows), torch.eye(channels) / 4, atol=0.04)
    assert float(rows.pow(4).mean()) == pytest.approx(3 / 16, rel=0.1)
    lengths = rows.square().sum(1)
    assert float(lengths.mean()) == pytest.approx(3, rel=0.03)
    assert float(lengths.var()) == pytest.approx(1.5, rel=0.15)
    # Of independent ones, the lengths of different rows are uncorrelated, and so they are here.
    pairs = torch.stack([each[:2].square().sum(1) for each in made])
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 0.2


@pytest.mark.parametrize("kind", ["iid", "orthogonal"])
def test_the_frequencies_of_a_range_are_log_uniform_and_otherwise_those_of_one(kind: str) -> None:
    of_range = recipe(loss__frequency_kind=kind, loss__frequencies=4000, loss__frequency_scale=[0.02, 1])
    of_one = recipe(loss__frequency_kind=kind, loss__frequencies=4000)
    found, one = (Draw.make(spec, 4, 1, 3, torch.device("cpu")) for spec in (of_range, of_one))
    assert torch.equal(found.filters, one.filters)
    scales = found.freqs / one.freqs
    assert torch.allclose(scales, scales[:, :1].expand_as(scales), rtol=1e-4)
    # Kolmogorov-Smirnov: with 4,000 values, the distribution functions differ by .0257 in 1 of 100 cases.
    levels = (scales[:, 0] / 0.02).log().sort().values / math.log(50)
    assert float((levels - torch.linspace(0, 1, 4000)).abs().max()) < 0.0257


@pytest.mark.parametrize(("key", "value"), SWITCHES, ids=[f"{k.replace('__', '.')}={v}" for k, v in SWITCHES])
def test_every_switch_changes_the_result(key: str, value: object) -> None:
    # With `literal` the filters come from a pool of 72 instead of 36: drawing the same ones would be chance.
    changed = condense(recipe(**{key: value}))
    assert torch.isfinite(torch.tensor([changed.held_out, *changed.losses.values()])).all()
    assert not torch.equal(changed.patches, condense(recipe()).patches)


@pytest.mark.parametrize("row_norm", ["row", "global", "none"])
def test_a_photograph_of_one_color_stays_that_color(row_norm: str) -> None:
    patches = photograph()
    flat = torch.full_like(patches, 77)
    spec = recipe(loss__row_norm=row_norm, optimizer__initial="real", transform__padding="valid")
    condensed = condense_instance(flat, 2, SmallNetwork(), spec, "flat")
    inner = condensed.patches[..., 4:-4, 4:-4].float()
    assert float(inner.mean()) == pytest.approx(77, abs=4)
    # Where nothing pulls, Adam makes full steps of rounding noise, which differs by processor and threads: a random
    # walk with an RMS of up to 6.5 levels. Steps in one direction would lead 39 levels away.
    assert float((inner - 77).square().mean().sqrt()) <= 10


def test_a_loss_that_is_not_finite_is_an_error_and_not_a_picture() -> None:
    class Broken(SmallNetwork):
        def features(self, lr: Tensor, layer: int | str) -> Tensor:
            return super().features(lr, layer) * (float("nan") if lr.requires_grad else 1)

    patches = photograph()
    with pytest.raises(DivergedError, match="NaN or Inf from step 1 of 20 on"):
        condense_instance(patches, 2, Broken(), recipe(), "broken")


def test_the_schedule_groups_and_pairs_everything_in_time() -> None:
    lines: list[dict[str, float]] = []
    condense(recipe(workers__log_every=1), log=lines.append)
    by_step = {int(line["step"]): line for line in lines}
    assert by_step[2]["grouped"] == 0
    # Events at steps 2, 4, 6, 8 (0-based) group a quarter each; each pairs what the one before grouped.
    assert by_step[3]["grouped"] == pytest.approx(0.25, abs=0.1)
    assert by_step[3]["paired"] == 0
    assert by_step[5]["paired"] == by_step[3]["grouped"]
    assert by_step[9]["grouped"] == 1
    assert by_step[11]["paired"] == 1
    assert {"instance", "group", "pair", "gradient_instance", "gradient_group", "gradient_pair"} <= by_step[20].keys()


def test_learning_rate_drops_at_the_papers_steps() -> None:
    spec = recipe(optimizer__steps=20_000)
    rates = [learning_rate(spec, step) for step in (0, 14_999, 15_000, 16_999, 17_000, 19_000, 19_999)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-5, 1e-5])


def test_only_patches_with_edges_above_the_mean_are_represented() -> None:
    patches = photograph()
    patches[:5] = patches[:5] // 16 + 100  # the same patches with edges a sixteenth as strong
    network = SmallNetwork()
    real = RealSide(patches, network, recipe(patches__complexity="above-mean"), "photo")
    assert torch.equal(real.lr, patches[5:])
    assert real.represented.tolist() == [5, 6, 7, 8]
    alone = RealSide(patches[5:], network, recipe(), "photo")
    assert torch.equal(real.features, alone.features)
    hard = np.array([3, 3, 9, 1, 1, 1, 1, 9, 1.0])
    real = RealSide(patches, network, recipe(patches__complexity="hardness"), "photo", hard)
    assert real.represented.tolist() == [2, 7]
    flat = torch.full_like(patches, 80)  # nothing is above the mean where all are equal, so all stay
    assert len(RealSide(flat, network, recipe(patches__complexity="above-mean"), "photo").lr) == 9


def test_initial_leaves_depend_on_the_photographs_id_and_the_seed_but_on_none_of_its_pixels() -> None:
    def leaves(spec: Recipe, name: str, lr: Tensor) -> Tensor:
        return (initial_patches(RealSide(lr, SmallNetwork(), spec, name), 3) * 255).round().byte()

    spec = recipe(optimizer__initial="leaves")
    found = leaves(spec, "photo", photograph())
    assert torch.equal(found, leaves(spec, "photo", photograph().flip(-1) // 2))
    assert len(found.unique(dim=0)) == 3
    others = (
        leaves(spec, "another", photograph()),
        leaves(recipe(optimizer__initial="leaves", seed=1), "photo", photograph()),
    )
    assert not any(torch.equal(found, other) for other in others)


def test_initial_patches_are_noise_in_range_or_real_patches() -> None:
    patches = photograph()
    network = SmallNetwork()
    noise = initial_patches(RealSide(patches, network, recipe(), "photo"), 2)
    assert 0 <= float(noise.min()) < float(noise.max()) <= 1
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.03)
    for initial in ("real", "cf-greedy"):
        chosen = initial_patches(RealSide(patches, network, recipe(optimizer__initial=initial), "photo"), 3)
        found = [(patches == (patch * 255).round().byte()).all(dim=(1, 2, 3)).nonzero().flatten() for patch in chosen]
        assert all(len(index) == 1 for index in found)
        assert len({int(index) for index in found}) == 3


@pytest.mark.parametrize(("distance", "statistics"), [("ncfd", "real"), ("ncfd", "none"), ("mse", "real")])
def test_greedy_subset_is_the_best_patch_and_no_swap_makes_it_better(distance: str, statistics: str) -> None:
    patches = photograph()
    network = SmallNetwork()
    real = RealSide(patches, network, recipe(loss__distance=distance, features__statistics=statistics), "photo")

    def measured(chosen: list[int]) -> float:
        return real.discrepancy(patches[chosen], network, [0, 1, 2])  # all draws of its bank

    assert int(real.greedy_subset(1)) == int(np.argmin([measured([patch]) for patch in range(9)]))
    chosen = real.greedy_subset(3).tolist()
    assert len(set(chosen)) == 3
    for place in range(3):
        for other in set(range(9)) - set(chosen):
            swapped = [*chosen[:place], other, *chosen[place + 1 :]]
            assert measured(swapped) >= measured(chosen) * (1 - 1e-4)


def test_random_subset_repeats_only_when_there_are_too_few_patches() -> None:
    patches = photograph()
    real = RealSide(patches, SmallNetwork(), recipe(), "photo")
    assert len(random_subset(real, 9, "x").unique()) == 9
    assert sorted(torch.bincount(random_subset(real, 13, "x"), minlength=9).tolist()) == [1] * 5 + [2] * 4


def test_statistics_are_biased_batch_statistics() -> None:
    maps = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    normalized = Statistics.of(maps).normalize(maps)
    expected = nn.functional.batch_norm(maps, None, None, training=True, eps=1e-5)
    assert torch.allclose(normalized, expected, atol=1e-5)
    halves = Statistics.of(maps[:1], maps[1:])
    assert torch.allclose(halves.mean, maps.mean((0, 2, 3), keepdim=True), atol=1e-6)


def test_state_survives_the_way_through_tensors() -> None:
    state = State.start(torch.rand(1, 3, 4, 4), 4)
    state.assignment = Assignment(torch.tensor([0, 1, -1, 2]), torch.tensor([5, -1, -1, 7]))
    state.step = 12
    state.adam["step"] += 12
    state.adam["exp_avg"] += 0.5
    again = State.from_tensors(state.to_tensors())
    assert again.step == 12
    assert again.assignment.partner.tolist() == [5, -1, -1, 7]
    assert again.adam.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(again.adam[name], state.adam[name]) for name in state.adam)
