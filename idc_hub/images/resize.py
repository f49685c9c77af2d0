"""MATLAB's bicubic `imresize` for 8-bit images, in exact integer arithmetic, and the mod-crop before it.

The LR images of super-resolution papers are what MATLAB's `imresize` makes: Keys' cubic kernel (Keys 1981,
a = -0.5), widened when it shrinks, mirrored borders, rows before columns, rounded to 8 bits after each pass.
For fractions as scales the weights are fractions with one denominator, so the sums here are sums of integers: the
same bytes on every machine, and no tie is rounded by a floating-point accident.
"""

import math
from fractions import Fraction

import numpy as np

from idc_hub.errors import ImageError

LARGEST_SCALE = 8  # up to here the sums fit 32 bits with room to spare


def imresize(array: np.ndarray, scale: float) -> np.ndarray:
    """Resize as MATLAB's `imresize(array, scale, "bicubic")` does.

    Args:
        array: uint8 image, `[height, width]` or `[height, width, channels]`.
        scale: A fraction of whole numbers up to 8: `4`, `1 / 4`, `3 / 4`.

    Returns:
        uint8 image of the same layout; each side is `ceil(side * scale)`.

    Raises:
        ImageError: The array is not an 8-bit image, or the scale is not one of those above.
    """
    _check_image(array)
    up, down = _ratio(scale)
    for axis in (0, 1):
        array = _resize_axis(array, axis, up, down)
    return array


def mod_crop(array: np.ndarray, scale: int) -> np.ndarray:
    """Cut rows from the bottom and columns from the right until both sides are multiples of `scale`.

    Args:
        array: Image, `[height, width]` or `[height, width, channels]`.
        scale: The super-resolution scale.

    Returns:
        A view of `array`.
    """
    height, width = array.shape[:2]
    return array[: height - height % scale, : width - width % scale]


def _check_image(array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(
            f"Cannot resize an array of {array.dtype} and shape {array.shape}.",
            "Give a uint8 image, [height, width] or [height, width, channels].",
        )


def _ratio(scale: float) -> tuple[int, int]:
    """`scale` as `(up, down)` in lowest terms: `1 / 3` is not exact as a float, `(1, 3)` is."""
    if 0 < scale < math.inf:
        ratio = Fraction(scale).limit_denominator(LARGEST_SCALE)
        if ratio.numerator in range(1, LARGEST_SCALE + 1) and math.isclose(scale, ratio, rel_tol=1e-6):
            return ratio.numerator, ratio.denominator
    raise ImageError(
        f"Cannot resize by {scale}.", f"The scale is a fraction of whole numbers from 1 to {LARGEST_SCALE}."
    )


def _resize_axis(array: np.ndarray, axis: int, up: int, down: int) -> np.ndarray:
    """One pass: every output line is a weighted mean of input lines, rounded and clipped."""
    indices, weights = _contributions(array.shape[axis], up, down)
    shape = [1] * array.ndim
    shape[axis] = len(indices)
    total = weights.sum(axis=1, dtype=np.int32).reshape(shape)
    summed = total // 2  # half of the divisor: floor division then rounds to nearest
    for tap in range(indices.shape[1]):
        summed = summed + np.take(array, indices[:, tap], axis) * weights[:, tap].reshape(shape)
    return np.clip(summed // total, 0, 255).astype(np.uint8)


def _contributions(size: int, up: int, down: int) -> tuple[np.ndarray, np.ndarray]:
    """Which input lines make each output line, and how much of each.

    In input lines, output line i has its center at `((2 i + 1) down - up) / (2 up)`. Distances to it, multiplied by
    `up / down` when shrinking, are whole multiples of 1 / unit, where unit is `2 max(up, down)`; so the kernel's values
    are whole too once multiplied by `2 unit^3`.

    Returns:
        indices int64 `[out, taps]` with mirrored borders, and weights int32 of the same shape, to be divided by their
        sum over each row.
    """
    unit = 2 * max(up, down)
    reach = max(2, -(-2 * down // up))  # half the width of the kernel, in input lines
    center = (2 * np.arange(-(-size * up // down)) + 1) * down - up  # in units of 1 / (2 up)
    lines = (center // (2 * up))[:, None] + np.arange(1 - reach, 1 + reach)
    distance = np.abs(center[:, None] - 2 * up * lines)
    near = 3 * distance**3 - 5 * unit * distance**2 + 2 * unit**3
    far = -(distance**3) + 5 * unit * distance**2 - 8 * unit**2 * distance + 4 * unit**3
    weights = np.where(distance <= unit, near, np.where(distance <= 2 * unit, far, 0))
    mirrored = lines % (2 * size)
    indices = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    return indices, weights.astype(np.int32)
