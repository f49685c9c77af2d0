"""Windows on the LR grid, and the HR box that belongs to each.

An HR box is always derived from its LR box, never cut on a grid of its own, so a pair cannot drift apart.
"""

import numpy as np


def windows(height: int, width: int, size: int, stride: int, *, tail: bool = True) -> list[tuple[int, int]]:
    """Places of the square windows of an LR image, row by row.

    Args:
        height: Height of the LR image.
        width: Width of the LR image.
        size: Side of a window, in LR pixels.
        stride: Distance between neighbouring windows, in LR pixels.
        tail: Whether to add one last window, flush with the far edge, where the stride leaves pixels over.

    Returns:
        `(top, left)` of each window; empty where the image is smaller than one window.
    """
    lefts = _starts(width, size, stride, tail)
    return [(top, left) for top in _starts(height, size, stride, tail) for left in lefts]


def _starts(length: int, size: int, stride: int, tail: bool) -> list[int]:
    starts = list(range(0, length - size + 1, stride))
    if tail and starts and starts[-1] + size < length:
        starts.append(length - size)
    return starts


def hr_box(place: tuple[int, int], size: int, scale: int) -> tuple[int, int, int, int]:
    """The HR box `(top, left, bottom, right)` that the LR window of side `size` at `place` covers."""
    top, left = place
    return top * scale, left * scale, (top + size) * scale, (left + size) * scale


def cut(lr: np.ndarray, size: int, stride: int, *, tail: bool = True) -> np.ndarray:
    """Cut an LR image into its windows.

    Args:
        lr: uint8 RGB image, `[height, width, 3]`.
        size: Side of a window.
        stride: Distance between neighbouring windows.
        tail: As in `windows`.

    Returns:
        uint8 patches `[N, 3, size, size]`, in the order of `windows`.
    """
    height, width, channels = lr.shape
    places = windows(height, width, size, stride, tail=tail)
    patches = np.empty((len(places), channels, size, size), lr.dtype)
    for patch, (top, left) in zip(patches, places, strict=True):
        patch[:] = lr[top : top + size, left : left + size].transpose(2, 0, 1)
    return patches
