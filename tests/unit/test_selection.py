"""The baselines, against slow references, exhaustive search and what is known about them."""

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from idc_hub.images.leaves import dead_leaves
from idc_hub.images.patches import Place, complexity
from idc_hub.recipe import SelectionSettings
from idc_hub.selection import methods as selection


def gaussian(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimensions))


class TestGroups:
    @pytest.mark.parametrize(("size", "ratio", "total"), [(120, 0.1, 12), (137, 0.29, 39), (13, 0.5, 6), (7, 1, 7)])
    def test_the_total_is_exact_and_nothing_is_chosen_twice(self, size: int, ratio: float, total: int) -> None:
        chosen = selection.select_in_groups(size, ratio, 3, lambda members, count, seed: np.arange(count))
        assert len(chosen) == len(set(chosen.tolist())) == total
        assert chosen.dtype == np.int64
        assert (np.diff(chosen) > 0).all()
        assert 0 <= chosen.min() <= chosen.max() < size

    def test_the_groups_are_twenty_disjoint_random_parts_of_the_whole(self) -> None:
        groups: list[np.ndarray] = []
        seeds: list[int] = []

        def choose(members: np.ndarray, count: int, seed: int) -> np.ndarray:
            groups.append(members)
            seeds.append(seed)
            return np.arange(count)

        selection.select_in_groups(1000, 0.1, 0, choose)
        assert [len(members) for members in groups] == [50] * 20
        assert sorted(np.concatenate(groups).tolist()) == list(range(1000))
        assert all(abs(members.mean() - 499.5) < 200 for members in groups)  # not consecutive ones
        assert len(set(seeds)) == 20

    def test_what_is_chosen_stands_for_members_of_the_group(self) -> None:
        chosen = selection.select_in_groups(200, 0.1, 0, lambda members, count, seed: np.argsort(members)[:count])
        # One of each ten: the smallest of its group, so small numbers prevail.
        assert 0 in chosen
        assert chosen.mean() < 60

    def test_a_ratio_that_leaves_nothing_gives_nothing(self) -> None:
        assert len(selection.select_in_groups(9, 0.1, 0, lambda members, count, seed: np.arange(count))) == 0

    def test_the_seed_decides(self) -> None:
        def run(seed: int) -> list[int]:
            chosen = selection.select_in_groups(
                300, 0.1, seed, lambda members, count, seed: selection.random(len(members), count, seed)
            )
            return chosen.tolist()

        assert run(1) == run(1)
        assert run(1) != run(2)


def test_random_is_fair() -> None:
    hits = np.zeros(10)
    for seed in range(2000):
        chosen = selection.random(10, 3, seed)
        assert len(set(chosen.tolist())) == 3
        hits[chosen] += 1
    assert hits == pytest.approx(600, abs=4 * np.sqrt(2000 * 0.3 * 0.7))


class TestHerding:
    @pytest.mark.parametrize("sign", [1, -1])
    def test_against_the_definition_by_loops(self, sign: int) -> None:
        points = gaussian(40, 3)
        mean = points.mean(0)
        chosen: list[int] = []
        for _ in range(12):
            left = [index for index in range(40) if index not in chosen]
            # Appendix C.2: the distance between the mean of the chosen and the mean of all, once it is added.
            error = {index: np.linalg.norm(points[[*chosen, index]].mean(0) - mean) for index in left}
            chosen.append(min(left, key=lambda index: sign * error[index]))
        method = selection.herding if sign == 1 else selection.herding_deepcore
        assert method(points, 12).tolist() == chosen

    def test_the_published_code_is_worse_than_chance_and_herding_much_better(self) -> None:
        points = gaussian(600, 10, seed=1)

        def error(chosen: np.ndarray) -> float:
            assert len(set(chosen.tolist())) == 60
            return float(np.linalg.norm(points[chosen].mean(0) - points.mean(0)))

        at_random = np.mean([error(selection.random(600, 60, seed)) for seed in range(20)])
        assert error(selection.herding(points, 60)) < 0.1
        assert at_random == pytest.approx(np.sqrt(10 / 60 * 540 / 600), rel=0.2)
        # The farthest point lies on the side where the mean of the chosen already is: they end as the tenth of all
        # points that lies farthest in one direction, whose mean is 1.75 away.
        assert 1.5 < error(selection.herding_deepcore(points, 60)) < 2.1

    def test_all_can_be_chosen(self) -> None:
        assert sorted(selection.herding(gaussian(9, 2), 9).tolist()) == list(range(9))


class TestKCenter:
    @pytest.mark.parametrize("seed", range(5))
    def test_against_the_definition_by_loops(self, seed: int) -> None:
        points = gaussian(30, 4, seed)
        chosen = selection.k_center(points, 8, seed).tolist()
        for number in range(1, 8):
            reach = [min(np.linalg.norm(point - points[index]) for index in chosen[:number]) for point in points]
            assert chosen[number] == int(np.argmax(reach))

    @pytest.mark.parametrize("seed", range(10))
    def test_it_covers_at_least_half_as_well_as_the_best_of_all(self, seed: int) -> None:
        points = gaussian(11, 2, seed)
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)

        def radius(centers: list[int]) -> float:
            return float(distances[:, centers].min(1).max())

        best = min(radius(list(centers)) for centers in combinations(range(11), 3))
        assert best <= radius(selection.k_center(points, 3, seed).tolist()) <= 2 * best

    def test_the_start_is_random(self) -> None:
        points = gaussian(50, 2)
        assert len({int(selection.k_center(points, 1, seed)[0]) for seed in range(20)}) > 10

    def test_points_that_coincide_are_not_chosen_twice(self) -> None:
        assert sorted(selection.k_center(np.zeros((6, 2)), 6, 0).tolist()) == list(range(6))


class TestDcsr:
    def pool(self) -> tuple[np.ndarray, np.ndarray]:
        """300 patches of 15 clear textures, of which 20 are frequent; complexity has no part in the texture."""
        rng = np.random.default_rng(0)
        textures = np.repeat(np.eye(15), 20, axis=0) + rng.normal(size=(300, 15)) * 0.01
        return rng.permutation(300).astype(float), textures

    def test_patches_below_the_average_are_never_chosen(self) -> None:
        complexities, textures = self.pool()
        complexities = complexities**3  # its average is not its median
        chosen = selection.dcsr(complexities, textures, 40, seed=0)
        assert len(set(chosen.tolist())) == 40
        assert complexities[chosen].min() >= complexities.mean()
        assert 0 < (complexities >= complexities.mean()).sum() < 130

    def test_every_texture_gets_equally_many(self) -> None:
        complexities, textures = self.pool()
        kinds = np.bincount(selection.dcsr(complexities, textures, 45, seed=2) // 20, minlength=15)
        assert kinds.tolist() == [3] * 15
        kinds = np.bincount(selection.dcsr(complexities, textures, 50, seed=2) // 20, minlength=15)
        assert sorted(kinds.tolist()) == [3] * 10 + [4] * 5

    def test_small_clusters_give_all_they_have(self) -> None:
        textures = np.repeat(np.eye(15), [2] + [40] * 14, axis=0)
        chosen = selection.dcsr(np.ones(562), textures, 150, seed=0)
        kinds = np.bincount(textures[chosen].argmax(1), minlength=15)
        assert kinds[0] == 2
        assert set(kinds[1:].tolist()) <= {10, 11}
        assert kinds.sum() == 150

    def test_draws_within_a_cluster_are_random_and_follow_the_seed(self) -> None:
        complexities, textures = self.pool()
        runs = [frozenset(selection.dcsr(complexities, textures, 15, seed).tolist()) for seed in (0, 1, 0)]
        assert runs[0] == runs[2] != runs[1]

    def test_the_most_complex_of_the_removed_fill_up(self) -> None:
        complexities = np.array([0.0, 1, 2, 3, 100, 4])
        chosen = selection.dcsr(complexities, gaussian(6, 3), 3, seed=0)
        assert sorted(chosen.tolist()) == [3, 4, 5]


class TestDescriptors:
    def test_complexity_of_an_edge_and_of_nothing(self) -> None:
        patches = np.zeros((3, 3, 8, 8), np.uint8)
        patches[1] = 200
        patches[2, :, :, 4:] = 100
        # |Sx| is 4 * 100 in the two columns beside the edge and 0 elsewhere; |Sy| is 0.
        assert complexity(patches) == pytest.approx([0, 0, 0.5 * 400 * 2 / 8], rel=1e-5)

    def test_complexity_against_loops(self) -> None:
        patch = np.random.default_rng(0).integers(0, 256, (3, 6, 7), dtype=np.uint8)
        luma = np.pad(0.299 * patch[0] + 0.587 * patch[1] + 0.114 * patch[2], 1, mode="reflect")
        kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        total = 0.0
        for y in range(6):
            for x in range(7):
                window = luma[y : y + 3, x : x + 3]
                total += 0.5 * abs((window * kernel).sum()) + 0.5 * abs((window * kernel.T).sum())
        # A neighbor in the batch changes nothing.
        both = complexity(np.stack([patch, 255 - patch[::-1]]))
        assert both[0] == pytest.approx(total / 42, rel=1e-5)

    def test_texture_knows_textures_and_not_brightness_or_turns(self) -> None:
        rng = np.random.default_rng(0)
        noise, stripes = rng.integers(0, 100, (32, 32)), np.tile([0, 0, 90, 90], (32, 8))
        variants = [noise, noise + 100, np.rot90(noise), rng.integers(0, 100, (32, 32)), stripes]
        patches = np.stack([np.stack([variant] * 3) for variant in variants]).astype(np.uint8)
        described = selection.texture(patches)
        assert described.shape == (5, 10 + 18 + 26)
        assert described.sum(1) == pytest.approx(3)
        far = np.linalg.norm(described[0] - described[4])
        for same in (1, 2, 3):
            assert np.linalg.norm(described[0] - described[same]) < 0.3 * far


class TestHardest:
    errors = np.random.default_rng(0).permutation(40).astype(float)
    places = tuple(("ab"[n % 2], 4 * (n // 2 % 5), 4 * (n // 10)) for n in range(40))

    def choose(self, count: int, drop_top: float = 0.1, distance: float = 0) -> list[int]:
        return selection.hardest(self.errors, self.places, count, drop_top=drop_top, distance=distance).tolist()

    def test_the_hardest_are_left_out_and_the_next_taken(self) -> None:
        assert sorted(self.errors[self.choose(5)]) == [31, 32, 33, 34, 35]  # without 36 to 39, a tenth of 40
        assert sorted(self.errors[self.choose(3, drop_top=0)]) == [37, 38, 39]
        assert sorted(self.errors[self.choose(36)]) == list(range(36))

    def test_chosen_patches_of_an_image_keep_their_distance(self) -> None:
        chosen = self.choose(8, distance=8)
        for one, other in combinations(chosen, 2):
            if self.places[one][0] == self.places[other][0]:
                assert max(abs(self.places[one][axis] - self.places[other][axis]) for axis in (1, 2)) >= 8
        # Nothing harder was passed over without a harder or equal neighbor that is chosen.
        for index in set(range(40)) - set(chosen):
            if min(self.errors[chosen]) < self.errors[index] < 36:
                assert any(
                    self.places[n][0] == self.places[index][0]
                    and max(abs(self.places[n][axis] - self.places[index][axis]) for axis in (1, 2)) < 8
                    and self.errors[n] > self.errors[index]
                    for n in chosen
                )

    def test_close_ones_follow_where_too_few_are_left(self) -> None:
        assert sorted(self.errors[self.choose(36, distance=100)]) == list(range(36))
        apart = self.choose(2, distance=100)
        assert {self.places[index][0] for index in apart} == {"a", "b"}
        rest = sorted(set(self.errors.astype(int)) - set(self.errors[apart].astype(int)) - {36, 37, 38, 39})
        assert set(self.errors[self.choose(4, distance=100)]) == set(self.errors[apart]) | set(rest[-2:])


class TestFilters:
    clean = dead_leaves(1, 80, 3)
    limits = SelectionSettings(max_aliasing=0.6, max_sharpness=20_000)

    def passes(self, image: np.ndarray, place: Place | None = None, **limits: float) -> bool:
        found = selection.passes(image, [place or Place(0, 0)], 4, self.limits.model_copy(update=limits))
        assert found.shape == (1,)
        return bool(found[0])

    def test_a_sharp_image_passes_and_each_defect_fails(self) -> None:
        assert self.passes(self.clean)
        assert not self.passes(jpeg(self.clean, 30))
        assert not self.passes(np.full_like(self.clean, 90))
        blurred = gaussian_filter(self.clean.astype(float), (0, 0, 4, 4)).astype(np.uint8)
        assert not self.passes(blurred)
        assert self.passes(blurred, min_sharpness=0)
        pale = self.clean // 6 + 100
        assert not self.passes(pale, min_entropy=0)
        assert self.passes(pale, min_contrast=0, min_entropy=0)
        assert not self.passes(self.clean, max_sharpness=60)
        noise = np.random.default_rng(0).integers(0, 256, self.clean.shape).astype(np.uint8)
        assert not self.passes(noise, max_sharpness=1e9)
        assert self.passes(noise, max_sharpness=1e9, max_aliasing=1.2)

    def test_the_blocks_of_jpeg_are_found_wherever_a_patch_was_cut(self) -> None:
        compressed = jpeg(dead_leaves(1, 128, 3), 60)
        for top, left in ((0, 0), (1, 0), (3, 5)):
            patch = compressed[:, :, 4 * top : 4 * top + 96, 4 * left : 4 * left + 96]
            assert not self.passes(patch, Place(top, left)), (top, left)


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(images[0].transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file)).transpose(2, 0, 1)[None]
