"""Many synthetic patches in pieces, so that what their backward pass needs is in memory for one piece at a time.

An 8K photograph has some 200 synthetic patches; the graph of them all through the extractor and the local features
would take tens of gigabytes. In pieces, a forward pass keeps its results alone, and the backward pass makes the rest
again: a step costs about one more forward pass, and its sums are added in another order, so that it differs by
rounding from one that is not cut. Where to cut is fixed and depends on no machine.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

WHOLE_PIXELS = 16 * 64 * 64
"""LR pixels, of all patches together, up to which nothing is cut."""

PIECE_PIXELS = 4 * 64 * 64
"""LR pixels of a piece at most, beyond that."""


def piece_size(patches: int, pixels: int) -> int:
    """Patches that are worked on at a time, where there are so many, each of so many pixels."""
    if patches * pixels <= WHOLE_PIXELS:
        return patches
    return max(1, PIECE_PIXELS // pixels)


def recomputed(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function now, and again in the backward pass, instead of keeping what that would need."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    result: Result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
