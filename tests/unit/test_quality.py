"""The figures of the quality gate on arrays with known answers, and their judgment."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from idc_hub.dataset.judgment import FIGURES, judge, table
from idc_hub.images import figures as quality
from idc_hub.images.figures import Quality
from idc_hub.images.patches import cut
from idc_hub.images.resize import imresize

SIDE = 16
Patches = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A crop of a photograph: uint8 [192, 256, 3]."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    pixels = np.asarray(Image.open(Path(spec.origin).parent / "data" / "coffee.png").convert("RGB"))
    return pixels[60:252, 150:406]


@pytest.fixture(scope="module")
def real(photograph: np.ndarray) -> np.ndarray:
    """Its LR patches at x2: uint8 [165, 3, 16, 16]."""
    return cut(imresize(photograph, 0.5), SIDE, 8)


def noise(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def flat(value: int, count: int = 1, side: int = SIDE) -> np.ndarray:
    return np.full((count, 3, side, side), value, np.uint8)


def with_chroma_noise(patches: np.ndarray, strength: float = 12) -> np.ndarray:
    """Noise in red, taken back in green, so that luma 0.299 R + 0.587 G + 0.114 B stays as it is."""
    red = np.random.default_rng(1).normal(0, strength, patches[:, 0].shape)
    change = np.stack([red, -red * 0.299 / 0.587, np.zeros_like(red)], axis=1)
    return (patches + change).round().clip(0, 255).astype(np.uint8)


def figures(patches: np.ndarray, real: np.ndarray, own: np.ndarray | None = None) -> dict[str, float]:
    """The figures of one photograph, with nearest-neighbor enlargement as the teacher."""
    collected = Quality()
    collected.add(patches, patches.repeat(2, axis=2).repeat(2, axis=3), real, own)
    return collected.figures()


def test_a_checkerboard_has_its_contrast_at_the_finest_scale_and_no_chroma() -> None:
    board = flat(100)
    board[:, :, ::2, 1::2] = board[:, :, 1::2, ::2] = 120
    assert quality.high_frequency(board) == pytest.approx((20 / 255, 0), abs=1e-6)
    board[:, :2] = 0  # blue alone: Y has .114 of it, Cb .5, Cr .0813
    luma, chroma = quality.high_frequency(board)
    assert (luma, chroma) == pytest.approx((0.114 * 20 / 255, (0.5 + 0.081312) / 2 * 20 / 255))


def test_saturated_values_are_counted_at_both_ends() -> None:
    patches = flat(1)
    patches[:, :, :4] = 0
    patches[:, 0, 4:8] = 255
    assert quality.saturated(patches) == pytest.approx(4 / 16 + 4 / 16 / 3)


def test_the_residual_is_what_hr_adds_to_a_bicubic_enlargement(photograph: np.ndarray) -> None:
    assert quality.teacher_residual(flat(100), flat(151, side=2 * SIDE)) == pytest.approx(0.2)
    enlarged = imresize(photograph, 2).transpose(2, 0, 1)[None]
    assert quality.teacher_residual(photograph.transpose(2, 0, 1)[None], enlarged) == 0


def test_the_rms_residual_is_in_gray_levels(photograph: np.ndarray) -> None:
    gray = np.full((4, 4, 3), 100, np.uint8)
    hr = np.full((8, 8, 3), 100, np.uint8)
    hr[:4, :, 0] = 112  # half of a third of the values differ by 12
    assert quality.rms_residual(gray, hr) == pytest.approx(12 / 6**0.5)
    assert quality.rms_residual(photograph, imresize(photograph, 2)) == 0


def test_blurring_lowers_the_residual(photograph: np.ndarray) -> None:
    def residual(hr: np.ndarray) -> float:
        return quality.teacher_residual(imresize(hr, 0.5).transpose(2, 0, 1)[None], hr.transpose(2, 0, 1)[None])

    sharp, blurred = residual(photograph), residual(gaussian_filter(photograph, (1, 1, 0)))
    assert 0 < blurred < 0.5 * sharp


def test_the_color_distance_is_that_of_scipy() -> None:
    patches, real = noise(3, 3, 8, 8), noise(5, 3, 8, 8, low=90, high=140, seed=1)
    expected = [wasserstein_distance(patches[:, c].ravel() / 255, real[:, c].ravel() / 255) for c in range(3)]
    assert quality.color_distance(patches, real) == pytest.approx(np.mean(expected))
    assert quality.color_distance(flat(20), flat(71, count=4)) == pytest.approx(0.2)


def test_the_sliced_distance_of_a_shift_is_the_shift(real: np.ndarray) -> None:
    darker = real // 2
    assert quality.sliced_distance(darker, darker + 51) == pytest.approx(0.2)
    assert quality.sliced_distance(flat(20), flat(71, count=3)) == pytest.approx(0.2)
    assert quality.sliced_distance(real, real) == 0


def test_the_sliced_distance_sees_structure_that_the_colors_hide(real: np.ndarray) -> None:
    shuffled = np.random.default_rng(0).permuted(real.reshape(len(real), 3, -1), axis=2).reshape(real.shape)
    assert quality.color_distance(shuffled, real) == 0
    halves = quality.sliced_distance(real[::2], real[1::2])
    assert quality.sliced_distance(shuffled, real) > 2 * halves


def test_white_noise_has_a_flat_spectrum_at_its_variance() -> None:
    gray = np.repeat(noise(300, 1, 32, 32), 3, axis=1)
    power = quality.spectrum(gray)
    assert power.shape == (16,)
    variance = (256**2 - 1) / 12 / 255**2
    assert power[1:] == pytest.approx(np.full(15, variance), rel=0.1)
    assert power[1:].mean() == pytest.approx(variance, rel=0.02)


def test_a_wave_has_its_power_at_its_frequency() -> None:
    wave = 128 + 100 * np.cos(2 * np.pi * 5 * np.arange(32) / 32)
    patch = np.broadcast_to(wave, (1, 3, 32, 32)).astype(np.uint8)
    assert quality.spectrum(patch).argmax() + 1 == 5
    assert quality.spectrum(patch.swapaxes(2, 3)).argmax() + 1 == 5


def test_twice_the_power_is_3_db_and_less_than_rounding_is_nothing() -> None:
    power = np.array([1.0, 0.1, 0.01])
    assert quality.spectrum_distance(2 * power, power) == pytest.approx(3.01, abs=0.01)
    assert quality.spectrum_distance(power * 1e-9, power * 0) < 0.01


def test_a_copy_has_distance_0_and_a_patch_of_its_own_does_not_count(real: np.ndarray) -> None:
    assert quality.nearest_distances(real[[7, 30]], real).tolist() == [0, 0]
    shifted = (real[[7]] // 2 + 5).astype(np.uint8)
    assert quality.nearest_distances(shifted, real // 2) <= 5 / 255
    pixels = real.reshape(len(real), -1) / 255
    expected = []
    for number in (7, 30):
        others = np.delete(pixels, number, axis=0)
        expected.append(np.sqrt(((others - pixels[number]) ** 2).mean(axis=1)).min())
    assert quality.nearest_distances(real[[7, 30]], real, np.array([7, 30])) == pytest.approx(expected)


def test_more_real_patches_than_one_piece_are_all_searched() -> None:
    many = noise(600, 3, 8, 8)
    assert quality.nearest_distances(many[[0, 300, 599]], many).tolist() == [0, 0, 0]


def test_the_whole_set_covers_everything_half_of_it_half_and_noise_nothing(real: np.ndarray) -> None:
    assert quality.coverage(real, real) == 1
    dark, bright = noise(20, 3, SIDE, SIDE, high=40), noise(20, 3, SIDE, SIDE, low=200, seed=1)
    both = np.concatenate([dark, bright])
    assert quality.coverage(dark, both) == 0.5
    assert quality.coverage(noise(4, 3, SIDE, SIDE), real) == 0
    assert quality.coverage(real[:1], real[:1]) == 1


def test_coverage_is_that_of_the_definition(real: np.ndarray) -> None:
    patches = real[::9]
    described = quality._describe(real)
    scaled = [(d - described.mean(0)) / (described.std(0) + 1 / 255) for d in (described, quality._describe(patches))]
    covered = 0
    for point in scaled[0]:
        to_others = sorted(np.linalg.norm(scaled[0] - point, axis=1))[1:]
        covered += min(np.linalg.norm(scaled[1] - point, axis=1)) <= to_others[4]
    assert 0 < covered < len(real)
    assert quality.coverage(patches, real) == covered / len(real)


def test_photographs_count_as_often_as_they_have_patches() -> None:
    collected = Quality()
    for value, count in ((0, 3), (128, 1)):
        patches = flat(value, count)
        collected.add(patches, patches.repeat(2, axis=2).repeat(2, axis=3), flat(value, 8))
    assert collected.figures()["saturated"] == pytest.approx(0.75)


def test_chroma_noise_raises_only_the_ratio_and_fails_the_gate(real: np.ndarray) -> None:
    muted, own = real // 2 + 64, np.arange(0, len(real), 4)  # far from 0 and 255, where noise would be cut off
    natural, noisy = figures(muted[own], muted, own), figures(with_chroma_noise(muted[own]), muted)
    assert noisy["chroma_over_luma"] > 2 * natural["chroma_over_luma"]
    for key in ("luma_hf", "residual", "spectrum_distance", "saturated"):
        assert noisy[key] == pytest.approx(natural[key], rel=0.1), key
    gate = judge(noisy, [natural])
    assert not gate["passed"]
    assert any("the patches carry color noise" in warning for warning in gate["warnings"])
    assert gate["figures"]["residual"]["passed"]


def test_blurred_patches_fail_by_their_spectrum_and_their_residual(real: np.ndarray) -> None:
    own = np.arange(0, len(real), 4)
    gate = judge(figures(gaussian_filter(real[own], (0, 0, 1.5, 1.5)), real), [figures(real[own], real, own)])
    failed = {key for key, figure in gate["figures"].items() if figure["passed"] is False}
    assert {"residual", "spectrum_distance"} <= failed
    assert gate["figures"]["luma_hf"]["passed"] is None


def test_copies_are_counted_but_not_judged(real: np.ndarray) -> None:
    half = np.concatenate([real[:3], noise(3, 3, SIDE, SIDE)])
    gate = judge(figures(half, real), [figures(real[:6], real, np.arange(6))])
    assert gate["figures"]["copied"]["set"] == 0.5
    assert gate["figures"]["copied"]["passed"] is None


def test_a_photograph_of_one_window_has_no_other_patch_to_be_near_to() -> None:
    found = figures(flat(9), flat(9), np.array([0]))
    assert "nearest" not in found
    assert all(np.isfinite(list(found.values())))


@pytest.mark.parametrize(
    ("key", "value", "real", "passed"),
    [
        ("held_out", 0.05, 0.05, True),
        ("held_out", 0.0501, 0.05, False),
        ("chroma_over_luma", 0.39, 0.26, True),
        ("chroma_over_luma", 0.40, 0.26, False),
        ("residual", 0.15, 0.2, True),
        ("residual", 0.149, 0.2, False),
        ("residual", 0.0, 0.0, True),  # a bicubic teacher adds nothing anywhere
        ("residual", 0.7, 0.2, True),
        ("residual", 0.71, 0.2, False),  # as black HR patches have
        ("residual", 0.0039, 0.0078, True),  # a gray level is what rounding makes
        ("residual", 0.0039, 0.0079, False),
        ("held_out", 9.1e-7, 8.9e-7, True),  # two equal sets, in float32
        ("held_out", 5e-6, 9e-7, False),
        ("color_distance", 0.0019, 0.0, True),  # half a gray level
        ("color_distance", 0.0021, 0.0, False),
        ("coverage", 0.0, 1 / 256, True),
        ("coverage", 0.0, 2 / 256, False),
        ("flat", 0.02, 0.0, True),
        ("flat", 0.021, 0.0, False),
        ("flat_hr", 0.0, 0.0, True),
        ("flat_hr", 0.001, 0.0, False),
        ("flat_hr", 0.5, 0.5, False),  # a teacher that fails on real patches too
        ("saturated", 0.05, 0.03, True),
        ("saturated", 0.051, 0.03, False),
        ("copied", 1.0, 0.0, None),
    ],
)
def test_the_limits(key: str, value: float, real: float, passed: bool | None) -> None:
    gate = judge({key: value}, [{key: real - 0.001 * (real > 0)}, {key: real + 0.001 * (real > 0)}])
    assert gate["figures"][key]["real"] == pytest.approx(real)
    assert FIGURES[key].passes(value, real) is passed
    assert gate["passed"] is (passed is not False)


def test_a_failure_is_a_sentence_with_its_figures() -> None:
    gate = judge({"chroma_over_luma": 0.59, "saturated": 0.5}, [{"chroma_over_luma": 0.26, "saturated": 0.0}])
    assert gate["warnings"] == [
        "chroma HF / luma HF is 0.59, 2.3 times that of random real patches (0.26): the patches carry color noise",
        "share of saturated values is 0.5, random real patches have 0: "
        "the optimization ran into the bounds of the pixels",
    ]


def test_the_table_has_a_row_for_each_figure_that_was_measured() -> None:
    gate = judge(
        {"held_out": 0.02, "residual": 0.1, "copied": 0.25}, [{"held_out": 0.08, "residual": 0.2, "copied": 0}]
    )
    assert table(gate["figures"]) == [
        ("held-out discrepancy", "0.02", "0.08", "at most 0.08", "passed"),
        ("99.5 % residual of the teacher", "0.1", "0.2", "at least 0.15, at most 0.7", "failed"),
        ("share of copied patches", "0.25", "0", "", ""),
    ]
