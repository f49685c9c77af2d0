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
    size, places, turns = recipe.crop, [], []
    for _ in range(recipe.batch_size):
        lr, hr = pairs[names[int(rng.integers(len(names)))]]
        top, left = (int(rng.integers(side - size + 1)) for side in lr.shape[:2])
        quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        places.append((lr, hr, top, left))
        turns.append((quarters % 2 == 1, quarters in (1, 2), (quarters >= 2) != mirrored))
    places = places[share]
    low, high = (
        torch.empty(len(places), side, side, 3, dtype=torch.uint8, pin_memory=pinned) for side in (size, size * scale)
    )
    for index, (lr, hr, top, left) in enumerate(places):
        low[index].numpy()[:] = lr[top : top + size, left : left + size]
        rows, columns = (slice(start * scale, (start + size) * scale) for start in (top, left))
        high[index].numpy()[:] = hr[rows, columns]
    return Batch(low, high, torch.tensor(turns[share]))


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
