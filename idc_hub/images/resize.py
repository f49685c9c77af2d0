"""MATLAB's bicubic `imresize` for 8-bit images, in exact integer arithmetic, and the mod-crop before it.

The LR images of super-resolution papers are what MATLAB's `imresize` makes: Keys' cubic kernel (Keys 1981,
a = -0.5), widened when it shrinks, mirrored borders, rows before columns, rounded to 8 bits after each pass.
For whole scales every weight is a fraction with one known denominator, so the sums here are sums of integers:
the same bytes on every machine, and no tie is rounded by a floating-point accident.
"""

import math

import numpy as np

from idc_hub.errors import ImageError

LARGEST_SCALE = 8  # up to here the sums fit 32 bits with room to spare


def imresize(array: np.ndarray, scale: float) -> np.ndarray:
    """Resize as MATLAB's `imresize(array, scale, "bicubic")` does.

    Args:
        array: uint8 image, `[height, width]` or `[height, width, channels]`.
        scale: A whole number up to 8, or one divided by such a number (`1 / 4` shrinks to a quarter).

    Returns:
        uint8 image of the same layout; each side is `ceil(side * scale)`.

    Raises:
        ImageError: The array is not an 8-bit image, or the scale is not one of those above.
    """
    _check_image(array)
    up, down = _whole_ratio(scale)
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


def _whole_ratio(scale: float) -> tuple[int, int]:
    """`scale` as `(up, down)`, one of which is 1: `1 / 3` is not exact as a float, `(1, 3)` is."""
    for whole in range(1, LARGEST_SCALE + 1):
        if math.isclose(scale, whole, rel_tol=1e-6):
            return whole, 1
        if math.isclose(scale, 1 / whole, rel_tol=1e-6):
            return 1, whole
    allowed = f"a whole number from 1 to {LARGEST_SCALE}, or 1 divided by one"
    raise ImageError(f"Cannot resize by {scale}.", f"The scale is {allowed}.")


def _resize_axis(array: np.ndarray, axis: int, up: int, down: int) -> np.ndarray:
    """One pass: every output line is a weighted sum of `4 * down` input lines, rounded and clipped."""
    indices, weights, total = _contributions(array.shape[axis], up, down)
    shape = [1] * array.ndim
    shape[axis] = len(indices)
    summed: np.ndarray | int = total // 2  # half of the divisor: floor division then rounds to nearest
    for tap in range(indices.shape[1]):
        summed = summed + np.take(array, indices[:, tap], axis) * weights[:, tap].reshape(shape)
    return np.clip(summed // total, 0, 255).astype(np.uint8)


def _contributions(size: int, up: int, down: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Which input lines make each output line, and how much of each.

    In input lines, output line i has its center at `((2 i + 1) down - up) / (2 up)`. Distances to it, divided
    by `down` when shrinking, are whole multiples of `1 / (2 up down)`; so the kernel's values are whole too
    once multiplied by `2 (2 up down)^3`.

    Returns:
        indices int64 `[out, 4 * down]` with mirrored borders, weights int32 of the same shape, and the sum of
        each row of weights.
    """
    unit = 2 * up * down
    center = (2 * np.arange(-(-size * up // down)) + 1) * down - up  # in units of 1 / (2 up)
    lines = (center // (2 * up))[:, None] + np.arange(1 - 2 * down, 1 + 2 * down)
    distance = np.abs(center[:, None] - 2 * up * lines)
    near = 3 * distance**3 - 5 * unit * distance**2 + 2 * unit**3
    far = -(distance**3) + 5 * unit * distance**2 - 8 * unit**2 * distance + 4 * unit**3
    weights = np.where(distance <= unit, near, far)
    mirrored = lines % (2 * size)
    indices = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    return indices, weights.astype(np.int32), 2 * unit**3 * down
