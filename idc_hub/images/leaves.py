"""Dead leaves: images of random disks that hide one another, made without any photograph.

The model of Lee, Mumford and Huang (Occlusion models for natural images, IJCV 2001): disks fall on one another, their
radii follow a power law. Like photographs, such images have sharp edges at all scales and power that falls with about
the square of the frequency. VibrantLeaves (arXiv 2504.10201) trains restoration networks on a richer version.
"""

import numpy as np

SMALLEST_RADIUS = 1.0
"""In pixels. The largest radius is the side of the image."""

_FINE = 4
"""Subpixels per pixel and axis; a pixel is their mean, as in a sensor."""
_BATCH = 256
"""Leaves drawn at a time."""
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
"""Full-range BT.601, from Y, Cb, Cr."""


def dead_leaves(count: int, size: int, seed: int) -> np.ndarray:
    """Make images of dead leaves.

    Radii r have a density proportional to r^-3. The color of a leaf is independent of its size and place: Y is uniform
    in [0.06, 0.9]; (Cr - Cb) / sqrt(2), from blue to orange, and (Cr + Cb) / sqrt(2) have Laplace distributions with
    standard deviations of 0.1 and 0.05. Photographs have about this spread.

    Args:
        count: Number of images.
        size: Side of an image, in pixels.
        seed: Seed. Image k depends on the seed, k and the size alone.

    Returns:
        uint8 RGB `[count, 3, size, size]`.
    """
    images = np.empty((count, 3, size, size), np.uint8)
    for number, image in enumerate(images):
        image[:] = _image(size, np.random.default_rng([seed, number]))
    return images


def _image(size: int, rng: np.random.Generator) -> np.ndarray:
    """One image, from the front leaf to the back until nothing shows through: an exact sample of the model."""
    side = size * _FINE
    fine = np.zeros((3, side, side), np.uint8)
    bare = np.ones((side, side), bool)
    centers_of_pixels = np.arange(side) + 0.5
    while bare.any():
        radii, tops, lefts = (_FINE * values for values in _places(size, rng))
        for radius, y, x, color in zip(radii, tops, lefts, _colors(rng), strict=True):
            rows = slice(max(int(y - radius), 0), max(int(y + radius) + 1, 0))
            columns = slice(max(int(x - radius), 0), max(int(x + radius) + 1, 0))
            down, across = centers_of_pixels[rows] - y, centers_of_pixels[columns] - x
            seen = bare[rows, columns] & ((down**2)[:, None] + across**2 <= radius**2)
            fine[:, rows, columns][:, seen] = color[:, None]
            bare[rows, columns] &= ~seen
    blocks = fine.reshape(3, size, _FINE, size, _FINE).sum(axis=(2, 4), dtype=np.uint32)
    return ((blocks + _FINE**2 // 2) // _FINE**2).astype(np.uint8)


def _places(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radii and centers, each float `[_BATCH]`, in pixels, of leaves whose bounding boxes meet the image.

    Centers are uniform over the plane, so a leaf of radius r meets the image with a frequency that grows as
    (size + 2 r)^2: the density of the radii of those that do is proportional to r^-3 (size + 2 r)^2.
    """
    radii = np.geomspace(SMALLEST_RADIUS, max(size, 2 * SMALLEST_RADIUS), 1024)
    integral = -0.5 * size**2 * radii**-2 - 4 * size / radii + 4 * np.log(radii)
    drawn = np.interp(rng.uniform(integral[0], integral[-1], _BATCH), integral, radii)
    tops, lefts = rng.random((2, _BATCH)) * (size + 2 * drawn) - drawn
    return drawn, tops, lefts


def _colors(rng: np.random.Generator) -> np.ndarray:
    """Colors of leaves, uint8 RGB `[_BATCH, 3]`."""
    luma = rng.uniform(0.06, 0.9, _BATCH)
    warm, violet = rng.laplace(scale=[[0.1 / 2**0.5], [0.05 / 2**0.5]], size=(2, _BATCH))
    ycc = np.stack([luma, (violet - warm) / 2**0.5, (violet + warm) / 2**0.5], axis=1)
    rgb = np.einsum("nj,ij->ni", ycc, _TO_RGB)  # no BLAS, whose sums differ between machines
    return np.clip(np.rint(255 * rgb), 0, 255).astype(np.uint8)
