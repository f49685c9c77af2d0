"""What a training step sees: random aligned crops, drawn in advance so that the device never waits for them.

Drawing is two memory copies a crop, in threads (numpy lets go of Python's lock while it copies); flips, rotations
and the way to float are left to the device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from idc_hub.training.pairs import Pair
from idc_hub.training.recipe import TrainingRecipe

THREADS = 4
AHEAD = 8


class Batch(NamedTuple):
    """Crops as they were cut, and how each is to be turned.

    Attributes:
        lr: uint8 `[B, crop, crop, 3]`.
        hr: uint8 `[B, scale*crop, scale*crop, 3]`; the same places.
        turns: bool `[B, 3]`: transpose, then mirror top to bottom, then mirror left to right.
    """

    lr: Tensor
    hr: Tensor
    turns: Tensor


def draw_batch(
    pairs: Sequence[Pair],
    recipe: TrainingRecipe,
    scale: int,
    step: int,
    *,
    share: slice = slice(None),
    pinned: bool = False,
) -> Batch:
    """The crops of one step, the same for everybody who asks: they depend on the seed and the step alone.

    Args:
        pairs: Each is drawn equally often, whatever its size.
        recipe: Batch size, crop and seed.
        scale: HR pixels per LR pixel.
        step: The step, from 1.
        share: Which crops of the batch to cut; the others are drawn and left out.
        pinned: Put them into memory that a GPU reads at full speed.
    """
    rng = np.random.default_rng((recipe.seed, step))
    size, places, turns = recipe.crop, [], []
    for _ in range(recipe.batch_size):
        lr, hr = pairs[int(rng.integers(len(pairs)))]
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
    """Turn each crop its own way, and make it float.

    Args:
        images: uint8 `[B, size, size, 3]`.
        turns: bool `[B, 3]`, as in `Batch`, on the same device.

    Returns:
        Float `[B, 3, size, size]` in [0, 1], channels last in memory as it came.
    """
    transpose, down, across = (turns[:, axis, None, None, None] for axis in range(3))
    images = torch.where(transpose, images.transpose(1, 2), images)
    images = torch.where(down, images.flip(1), images)
    images = torch.where(across, images.flip(2), images)
    return images.permute(0, 3, 1, 2).float() / 255


def prefetch(draw: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
    """`draw(step)` for every step in order, each begun up to `AHEAD` steps before it is asked for."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(draw, step))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
