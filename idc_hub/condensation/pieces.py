"""Split many synthetic patches into pieces so that only one piece's backward graph is in memory at a time.

An 8K photograph has about 200 synthetic patches; the graph of all of them through the extractor and the local
features would take tens of gigabytes. In pieces, the forward pass keeps only its results and the backward pass
recomputes the rest (gradient checkpointing). A step then costs about one more forward pass, and its sums are added in
another order, so it differs from an unsplit step by rounding. The split is fixed and does not depend on the machine.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

WHOLE_PIXELS = 16 * 64 * 64
"""LR pixels, over all patches, up to which nothing is split."""

PIECE_PIXELS = 4 * 64 * 64
"""Maximum LR pixels of a piece."""


def piece_size(patches: int, pixels: int) -> int:
    """Patches to process at a time, given how many there are and the pixels of each."""
    if patches * pixels <= WHOLE_PIXELS:
        return patches
    return max(1, PIECE_PIXELS // pixels)


def recomputed(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function, and call it again in the backward pass instead of keeping its intermediate results."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    result: Result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
