"""Measures of technical defects, against slow references and images whose defects are known."""

import numpy as np
import pytest

from idc_hub.images import defects
from idc_hub.images.leaves import dead_leaves
from idc_hub.images.patches import luma


@pytest.fixture(scope="module")
def gray() -> np.ndarray:
    return luma(dead_leaves(2, 44, 1))


def test_blockiness_equals_a_slow_reference(gray: np.ndarray) -> None:
    basis = np.array([[np.cos((2 * x + 1) * k * np.pi / 16) for x in range(8)] for k in range(8)])
    basis *= np.sqrt(np.where(np.arange(8) == 0, 1, 2) / 8)[:, None]

    def variation(image: np.ndarray) -> np.ndarray:
        down, across = image.shape[0] // 8, image.shape[1] // 8
        dct = {
            (y, x): basis @ image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] @ basis.T
            for y in range(down)
            for x in range(across)
        }
        lengths = [
            np.hypot(
                dct[y - 1, x] + dct[y + 1, x] - 2 * dct[y, x],
                dct[y, x - 1] + dct[y, x + 1] - 2 * dct[y, x],
            )
            for y in range(1, down - 1)
            for x in range(1, across - 1)
        ]
        return np.mean(lengths, axis=0)

    expected = [np.abs(variation(image[4:, 4:]) / variation(image) - 1).sum() for image in gray.astype(float)]
    np.testing.assert_allclose(defects.blockiness(gray), expected, rtol=1e-4)


def test_entropy_is_the_number_of_bits_of_a_level() -> None:
    levels = np.repeat([[10, 20, 30, 40]], 16, axis=0).reshape(1, 8, 8)
    np.testing.assert_allclose(defects.entropy(np.stack([levels[0], 0 * levels[0]]).astype(np.float32)), [2, 0])


def test_contrast_and_sharpness_of_a_checkerboard() -> None:
    board = 100 + 50 * (-1.0) ** np.add.outer(np.arange(8), np.arange(8))[None]
    assert defects.contrast(board) == pytest.approx([50])
    inside = np.full((1, 3, 3), 0.0)
    inside[0, 1, 1] = 9
    # Mirrored borders repeat no pixel: the Laplacian is -36 in the center, 18 beside it and 0 in the corners.
    assert defects.sharpness(inside) == pytest.approx([np.var([-36, 18, 18, 18, 18, 0, 0, 0, 0])])


def test_aliasing_equals_a_slow_reference(gray: np.ndarray) -> None:
    amplitude = np.abs(np.fft.fft2(gray.astype(float)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(44), np.fft.fftfreq(44)))
    expected = amplitude[:, frequency > 0.375].mean(axis=1) / amplitude.mean(axis=(1, 2))
    np.testing.assert_allclose(defects.aliasing(gray), expected, rtol=1e-4)
    assert defects.aliasing(np.full((1, 32, 32), 7.0)) == pytest.approx([0])
    noise = np.random.default_rng(0).normal(size=(1, 64, 64))
    assert defects.aliasing(noise) == pytest.approx([1], abs=0.05)
