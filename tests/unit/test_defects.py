"""Measures of technical defects, against slow references and images whose defects are known."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idc_hub.images import defects
from idc_hub.images.defects import first_sight
from idc_hub.images.files import read_image, write_png
from idc_hub.images.leaves import dead_leaves
from idc_hub.images.patches import luma
from idc_hub.images.resize import imresize
from idc_hub.images.sources import open_source, survey


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


class TestFirstSight:
    sharp = dead_leaves(1, 300, 2)[0].transpose(1, 2, 0)

    def test_compressed_and_enlarged_originals_are_told_from_good_ones(self) -> None:
        assert first_sight(self.sharp) is None
        assert first_sight(jpeg(self.sharp, 75)) == "compressed by JPEG"
        assert first_sight(jpeg(self.sharp, 75)[:290, 8:]) == "compressed by JPEG"
        assert first_sight(imresize(imresize(self.sharp, 1 / 2), 2)) == "enlarged or blurred"
        assert first_sight(imresize(jpeg(self.sharp, 75), 1 / 2)) is None  # shrinking removes the blocks

    def test_flat_and_small_images_are_not_judged(self) -> None:
        assert first_sight(np.full((300, 300, 3), 7, np.uint8)) is None
        assert first_sight(jpeg(self.sharp[:120], 20)) is None

    def test_the_survey_names_them_in_one_warning(self, tmp_path: Path) -> None:
        for number in range(5):
            write_png(tmp_path / f"jpeg{number}.png", jpeg(self.sharp, 50))
        write_png(tmp_path / "large.png", imresize(imresize(self.sharp, 1 / 2), 2))
        write_png(tmp_path / "good.png", self.sharp)
        with pytest.warns(UserWarning, match="Of 7 photographs") as caught:
            assert len(survey(open_source(str(tmp_path)), scale=2, size=32, stride=32)) == 7
        (message,) = [str(warning.message) for warning in caught]
        assert "Of 7 photographs, 5 look compressed by JPEG (jpeg0.png, jpeg1.png, jpeg2.png and 2 more)" in message
        assert "1 looks enlarged or blurred (large.png)" in message
        assert "good.png" not in message

    def test_lossless_photographs_are_not_suspected(self, shared: Path) -> None:
        looks = {
            path.stem: first_sight(read_image(path.read_bytes(), path.name).pixels)
            for path in sorted((shared / "data/train").glob("*.png"))
        }
        # One of CLIC's, which was a JPEG before.
        assert {name for name, look in looks.items() if look} == {"clic25_7e499613"}


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))
