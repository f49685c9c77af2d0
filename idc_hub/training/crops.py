"""What a training step sees: random aligned crops of the pairs.

A draw copies two pieces of memory for each crop and runs in threads (numpy releases Python's lock while it copies);
the device flips, rotates and converts to float.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from idc_hub.training.pairs import Pair
from idc_hub.training.recipe import TrainingRecipe


class Batch(NamedTuple):
    """Crops as they were cut, and how to turn each of them.

    Attributes:
        lr: uint8 `[B, crop, crop, 3]`.
        hr: uint8 `[B, scale*crop, scale*crop, 3]`, at the same places.
        turns: bool `[B, 3]`: transpose, then mirror top to bottom, then mirror left to right.
    """

    lr: Tensor
    hr: Tensor
    turns: Tensor


class Crop(NamedTuple):
    """Where a crop is cut, and how it is turned.

    Attributes:
        top: First row, in LR pixels.
        left: First column, in LR pixels.
        turns: Transpose, then mirror top to bottom, then mirror left to right.
    """

    top: int
    left: int
    turns: tuple[bool, bool, bool]


def draw_crop(rng: np.random.Generator, height: int, width: int, size: int) -> Crop:
    """Draw a crop of side `size` from an LR image: every place and every orientation is equally likely."""
    top, left = (int(rng.integers(side - size + 1)) for side in (height, width))
    return Crop(top, left, draw_turns(rng))


def draw_turns(rng: np.random.Generator) -> tuple[bool, bool, bool]:
    """Draw one of the eight orientations of a square, as the `turns` of a crop."""
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    return quarters % 2 == 1, quarters in (1, 2), (quarters >= 2) != mirrored


def cut(pair: Pair, crop: Crop, size: int, scale: int) -> Pair:
    """LR and HR of a crop, not turned yet: views of uint8 `[size, size, 3]` and `[scale*size, scale*size, 3]`."""
    lr, hr = pair
    rows, columns = (slice(start * scale, (start + size) * scale) for start in (crop.top, crop.left))
    return lr[crop.top : crop.top + size, crop.left : crop.left + size], hr[rows, columns]


def draw_batch(
    pairs: Mapping[str, Pair],
    names: Sequence[str],
    recipe: TrainingRecipe,
    scale: int,
    step: int,
    *,
    share: slice = slice(None),
    pinned: bool = False,
) -> Batch:
    """Draw the crops of one step. They depend on the seed and the step alone.

    Args:
        pairs: LR and HR images by name.
        names: Their names; each is drawn with equal probability, whatever the image's size.
        recipe: Batch size, crop and seed.
        scale: HR pixels per LR pixel.
        step: The step, from 1.
        share: Which crops of the batch to cut: one process's part of it.
        pinned: Use page-locked memory, from which copies to a GPU are fastest.
    """
    rng = np.random.default_rng((recipe.seed, step))
    size, drawn = recipe.crop, []
    for _ in range(recipe.batch_size):
        pair = pairs[names[int(rng.integers(len(names)))]]
        drawn.append((pair, draw_crop(rng, len(pair[0]), pair[0].shape[1], size)))
    drawn = drawn[share]
    low, high = (
        torch.empty(len(drawn), side, side, 3, dtype=torch.uint8, pin_memory=pinned) for side in (size, size * scale)
    )
    for index, (pair, crop) in enumerate(drawn):
        low[index].numpy()[:], high[index].numpy()[:] = cut(pair, crop, size, scale)
    return Batch(low, high, torch.tensor([crop.turns for _, crop in drawn]))


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Flip and rotate each crop, and convert to float.

    Args:
        images: uint8 `[B, size, size, 3]`.
        turns: bool `[B, 3]`, as in `Batch`, on the same device.

    Returns:
        Float `[B, 3, size, size]` in [0, 1], channels last in memory.
    """
    transpose, down, across = (turns[:, axis, None, None, None] for axis in range(3))
    images = torch.where(transpose, images.transpose(1, 2), images)
    images = torch.where(down, images.flip(1), images)
    images = torch.where(across, images.flip(2), images)
    return images.permute(0, 3, 1, 2).float() / 255
