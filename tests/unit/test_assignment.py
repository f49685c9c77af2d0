"""Grouping and pairing against brute force, and the counts that the schedule promises."""

import itertools

import numpy as np
import pytest
import torch

from idc_hub.condensation import assignment as assignment_room
from idc_hub.condensation.assignment import Assignment, TileGrid, event_share, kmeans, proportional_quotas


def test_tiles_are_cut_in_reading_order_and_the_remainder_is_left_out() -> None:
    grid = TileGrid(2, 7, 9, 3)
    maps = torch.arange(2 * 1 * 7 * 9).view(2, 1, 7, 9)
    assert len(grid) == 2 * 2 * 3
    tiles = grid.cut(maps)
    assert torch.equal(tiles[7, 0], maps[1, 0, 0:3, 3:6])
    assert torch.equal(grid.samples_of_tiles()[4], maps[0, 0, 3:6, 3:6].reshape(-1))


def test_sample_labels_mark_the_samples_of_each_tile_and_leave_the_others() -> None:
    grid = TileGrid(1, 5, 4, 2)
    labels = grid.sample_labels(torch.tensor([0, 1, -1, 2]), other=9).view(5, 4)
    assert labels.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [9, 9, 2, 2], [9, 9, 2, 2], [9, 9, 9, 9]]


def test_a_sample_is_a_pixel_a_tile_or_a_patch() -> None:
    maps = torch.arange(2 * 3 * 7 * 9).view(2, 3, 7, 9)
    pixels, tiles, patches = (TileGrid(2, 7, 9, 3, unfold) for unfold in ("pixels", "tiles", "patches"))
    assert torch.equal(pixels.to_samples(maps)[9 + 4], maps[0, :, 1, 4])
    assert torch.equal(tiles.to_samples(maps)[7], maps[1, :, 0:3, 3:6].flatten())
    assert torch.equal(patches.to_samples(maps)[1], maps[1].flatten())
    for grid in (pixels, tiles, patches):
        samples = grid.to_samples(maps)
        assert samples.shape == (grid.samples, 3 * grid.pixels_per_sample)
        of_one_patch = grid.to_samples(maps[1:])
        assert torch.equal(samples[-len(of_one_patch) :], of_one_patch)
    labels = torch.arange(12) % 4 - 1
    assert torch.equal(tiles.sample_labels(labels, other=9), torch.where(labels < 0, 9, labels))
    assert tiles.samples_of_tiles().flatten().tolist() == list(range(12))
    assert patches.sample_labels(labels, other=9).tolist() == [9, 9]


def test_kmeans_finds_separated_clusters_and_repeats_itself() -> None:
    rng = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = torch.arange(90) % 3
    points = centers[truth] + torch.randn(90, 2, generator=rng)
    centroids, labels = kmeans(points, 3, seed=1)
    for cluster in range(3):
        members = points[labels == cluster]
        assert len(truth[labels == cluster].unique()) == 1
        assert torch.allclose(members.mean(0), centroids[cluster], atol=1e-4)
    again = kmeans(points, 3, seed=1)
    assert torch.equal(again[0], centroids)
    assert torch.equal(again[1], labels)


def test_more_groups_than_tiles_are_not_an_error() -> None:
    centroids, labels = kmeans(torch.eye(3), 16, seed=0)
    assert centroids.shape == (3, 3)
    assert sorted(labels.tolist()) == [0, 1, 2]


def test_quotas_are_the_largest_remainders() -> None:
    assert proportional_quotas(torch.tensor([1, 1, 1]), 10).tolist() == [4, 3, 3]
    assert proportional_quotas(torch.tensor([50, 30, 20]), 7).tolist() == [4, 2, 1]
    sizes = torch.tensor([1234, 77, 9001, 3, 2500])
    quotas = proportional_quotas(sizes, 3840)
    assert int(quotas.sum()) == 3840
    exact = sizes.double() * 3840 / sizes.sum()
    assert bool(((quotas - exact).abs() < 1).all())


def test_event_shares_sum_to_the_quotas_and_are_even() -> None:
    quotas = torch.tensor([0, 1, 24, 25, 26, 240, 1000])
    shares = torch.stack([event_share(quotas, event, 25) for event in range(1, 26)])
    assert torch.equal(shares.sum(0), quotas)
    assert bool(((shares - quotas / 25).abs() <= 1).all())
    per_event = [int(event_share(torch.tensor(3840), event, 25)) for event in range(1, 26)]
    assert set(per_event) == {153, 154}


def slow_grouping(distances: np.ndarray, free: list[int], room: list[int]) -> dict[int, int]:
    taken: dict[int, int] = {}
    order = sorted(itertools.product(free, range(len(room))), key=lambda pair: distances[pair])
    for tile, group in order:
        if tile not in taken and room[group] > 0:
            taken[tile] = group
            room[group] -= 1
    return taken


def test_grouping_takes_the_nearest_free_tiles_while_there_is_room() -> None:
    rng = torch.Generator().manual_seed(3)
    descriptors, centroids = torch.randn(30, 4, generator=rng), torch.randn(5, 4, generator=rng)
    assignment = Assignment.empty(30)
    assignment.group[[2, 7]] = 1
    free = [tile for tile in range(30) if tile not in (2, 7)]
    distances = torch.cdist(descriptors, centroids).numpy()
    expected = slow_grouping(distances, free, [2, 0, 3, 1, 4])
    assignment.add_to_groups(descriptors, centroids, torch.tensor([2, 0, 3, 1, 4]))
    found = {tile: int(assignment.group[tile]) for tile in free if assignment.group[tile] >= 0}
    assert found == expected
    assert len(found) == 10
    assert assignment.group[[2, 7]].tolist() == [1, 1]


def pairing_problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    syn, real = torch.randn(6, 2, 2, 2, generator=rng), torch.randn(9, 2, 2, 2, generator=rng)
    return syn, real, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, -1])


def squared(syn: torch.Tensor, real: torch.Tensor) -> np.ndarray:
    return (syn.flatten(1)[:, None] - real.flatten(1)[None]).square().sum(-1).numpy()


def test_greedy_pairing_takes_the_closest_pair_first_and_each_real_tile_once() -> None:
    syn, real, real_groups, groups = pairing_problem()
    assignment = Assignment(groups.clone(), torch.full((6,), -1))
    assignment.pair(syn, real.__getitem__, real_groups)
    distances = squared(syn, real)
    expected: dict[int, int] = {}
    for s, r in sorted(itertools.product(range(6), range(9)), key=lambda pair: distances[pair]):
        if groups[s] == real_groups[r] and s not in expected and r not in expected.values():
            expected[s] = r
    assert {s: int(r) for s, r in enumerate(assignment.partner) if r >= 0} == expected
    assert assignment.partner[5] == -1


@pytest.mark.parametrize(("rows", "columns"), [(30, 50), (50, 30)])
def test_many_tiles_are_paired_like_few_ones(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment_room, "_TILES", 16)
    rng = torch.Generator().manual_seed(7)
    # Whole numbers: distances are exact, and many are equal, which leaves the order of rows and columns to decide.
    syn = torch.randint(0, 5, (rows, 1, 2, 1), generator=rng).float()
    real = torch.randint(0, 5, (columns, 1, 2, 1), generator=rng).float()
    assignment = Assignment(torch.zeros(rows, dtype=torch.int64), torch.full((rows,), -1))
    assignment.pair(syn, real.__getitem__, torch.zeros(columns, dtype=torch.int64))
    distances = squared(syn, real)
    expected: dict[int, int] = {}
    for s, r in sorted(itertools.product(range(rows), range(columns)), key=lambda pair: distances[pair]):
        if s not in expected and r not in expected.values():
            expected[s] = r
    assert {s: int(r) for s, r in enumerate(assignment.partner) if r >= 0} == expected


def test_a_partner_of_an_earlier_event_is_not_used_again() -> None:
    real = torch.tensor([0.0, 0.1, 0.2, 5.0]).view(4, 1, 1, 1)
    assignment = Assignment(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 2, -1, -1]))
    assignment.pair(torch.zeros(4, 1, 1, 1), real.__getitem__, torch.zeros(4, dtype=torch.int64))
    assert assignment.partner[:2].tolist() == [0, 2]
    assert sorted(assignment.partner[2:].tolist()) == [1, 3]


def test_tiles_stay_unpaired_when_their_group_has_no_free_real_tile() -> None:
    assignment = Assignment(torch.zeros(2, dtype=torch.int64), torch.full((2,), -1))
    assignment.pair(torch.zeros(2, 1, 1, 1), torch.ones(1, 1, 1, 1).__getitem__, torch.zeros(1, dtype=torch.int64))
    assert sorted(assignment.partner.tolist()) == [-1, 0]
