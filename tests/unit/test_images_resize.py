import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from idc_hub.errors import ImageError
from idc_hub.images.resize import imresize, mod_crop

SCALES = [
    *(Fraction(1, n) for n in (4, 3, 2)),
    Fraction(3, 4),
    Fraction(5, 8),
    *map(Fraction, (2, 3, 4)),
    Fraction(7, 4),
]


def keys_kernel(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


def slow_line(line: list[int], scale: Fraction) -> list[int]:
    """MATLAB's recipe for one line, in its own 1-based words and in exact fractions."""
    shrink = min(scale, Fraction(1))
    size, result = len(line), []
    for x in range(1, math.ceil(size * scale) + 1):
        u = x / scale + (1 - 1 / scale) / 2
        first = math.floor(u - 2 / shrink)
        weighted = weights = Fraction(0)
        for j in range(first, first + math.ceil(4 / shrink) + 2):
            weight = shrink * keys_kernel(shrink * (u - j))
            place = j
            while not 1 <= place <= size:
                place = 1 - place if place < 1 else 2 * size + 1 - place
            weights += weight
            weighted += weight * line[place - 1]
        result.append(min(255, max(0, math.floor(weighted / weights + Fraction(1, 2)))))
    return result


def slow_imresize(array: np.ndarray, scale: Fraction) -> np.ndarray:
    channels = []
    for channel in np.moveaxis(array, -1, 0):
        columns = [slow_line(column, scale) for column in channel.T.tolist()]
        channels.append([slow_line(list(row), scale) for row in zip(*columns, strict=True)])
    return np.moveaxis(np.array(channels, np.uint8), 0, -1)


def pattern(height: int, width: int) -> np.ndarray:
    """Steep and full of overshoot: neighboring values have little to do with one another."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((y * y * 7 + x * 13 + y * x * 29 + c * 101) % 256).astype(np.uint8)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("shape", [(24, 12), (13, 17), (2, 3), (1, 1)])
def test_equals_a_slow_reference(shape, scale):
    array = pattern(*shape)
    assert np.array_equal(imresize(array, float(scale)), slow_imresize(array, scale))


@pytest.mark.parametrize(
    ("scale", "digest"),
    [  # of slow_imresize, which also makes the LR of Set5's bird byte for byte
        (Fraction(1, 4), "406eed659ae57ab7e7747ce98f92cb3a9314bac572f8aabd909607c18e783951"),
        (Fraction(1, 3), "bc9dc31b72995b9be83daed7c8dec285f3604291db2c7e4c502442d9400ce86b"),
        (Fraction(1, 2), "93672defc7932731054abb5f1ef9909a716688d289f1bdc1d35c338a924a4b29"),
        (Fraction(4), "97b179c180356257fd68817c7aab98fa4a5bf74ff372c7d87b330252276266d8"),
    ],
    ids=str,
)
def test_bytes_never_change(scale, digest):
    assert hashlib.sha256(imresize(pattern(36, 48), float(scale)).tobytes()).hexdigest() == digest


@pytest.mark.parametrize("name", ["Set5", "Set14", "BSD100"])
def test_equals_the_lr_images_of_the_literature(shared, name):
    """Every LR file of the test sets, bit for bit (they agree with SwinIR's and PAN's published files)."""
    files = sorted((shared / "data/test" / name).glob("*.png"))
    assert len(files) == {"Set5": 5, "Set14": 14, "BSD100": 20}[name]
    for file in files:
        hr = np.array(Image.open(file))
        lr = np.array(Image.open(shared / "data/test/LR_bicubic_x4" / name / file.name))
        assert np.array_equal(imresize(hr, 1 / 4), lr), file.name


def test_a_line_shrunk_by_hand():
    """Output i of a shrink to a quarter has its center at row 4 i + 1.5; row 8 is 13/8, 5/8, 3/8, 11/8 from them."""
    array = np.zeros((16, 16), np.uint8)
    array[8] = 255
    # Keys' kernel there: -0.0439, 0.3896, 0.7275, -0.0732; times 255 / 4
    assert imresize(array, 1 / 4)[:, 0].tolist() == [0, 25, 46, 0]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_constant_stays_constant(scale, value):
    result = imresize(np.full((11, 7, 3), value, np.uint8), float(scale))
    assert result.shape == (math.ceil(11 * scale), math.ceil(7 * scale), 3)
    assert (result == value).all()


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 3])
def test_gray_layout_and_mirror_symmetry(scale):
    array = pattern(24, 12)
    result = imresize(array, scale)
    assert np.array_equal(imresize(array[..., 1], scale), result[..., 1])
    assert np.array_equal(imresize(array[::-1, ::-1], scale), result[::-1, ::-1])


def test_output_size_survives_the_float_error_of_a_third():
    for size in range(3, 400, 3):
        assert imresize(np.zeros((size, 1), np.uint8), 1 / 3).shape == (size // 3, 1)
        assert imresize(np.zeros((size, 1), np.uint8), 1 - 2 / 3).shape == (size // 3, 1)


def test_scale_one_changes_nothing():
    assert np.array_equal(imresize(pattern(9, 8), 1), pattern(9, 8))


@pytest.mark.parametrize("scale", [0, -2, 0.29, 9, 1 / 9, math.nan, math.inf])
def test_other_scales_are_refused(scale):
    with pytest.raises(ImageError, match="Cannot resize by"):
        imresize(pattern(8, 8), scale)


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint16), np.zeros(8, np.uint8), np.zeros((0, 8, 3), np.uint8)],
    ids=["float", "16-bit", "one axis", "no rows"],
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(ImageError, match="Cannot resize an array"):
        imresize(array, 1 / 4)


def test_mod_crop_cuts_bottom_and_right():
    array = pattern(11, 14)
    assert np.array_equal(mod_crop(array, 4), array[:8, :12])
    assert np.array_equal(mod_crop(array[:8, :12], 4), array[:8, :12])
    assert mod_crop(array[..., 0], 3).shape == (9, 12)
    assert mod_crop(array[:3], 4).shape == (0, 12, 3)
