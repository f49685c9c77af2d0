"""Run a network on a large image tile by tile, so memory depends only on the tile size."""

from collections.abc import Callable

import torch
from torch import Tensor

from idc_hub.errors import NetworkError


@torch.no_grad()
def tiled(network: Callable[[Tensor], Tensor], lr: Tensor, *, tile: int, overlap: int) -> Tensor:
    """The network's output, computed tile by tile.

    Each tile also sees up to `overlap` pixels on every side, but only its own pixels are kept. If the network's
    receptive field fits within the overlap, the result equals that of the whole image. If not (attention), pixels
    near seams differ slightly. If `tile` and `overlap` are multiples of a network's window, tiles and the whole
    image are divided into the same windows.

    Args:
        network: Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`.
        lr: Float `[B, 3, h, w]` in [0, 1].
        tile: Tile side in LR pixels.
        overlap: How far a tile sees beyond its own pixels, in LR pixels.

    Returns:
        Float `[B, 3, scale*h, scale*w]`, without gradients.

    Raises:
        NetworkError: `tile` isn't positive, or `overlap` is negative.
    """
    if tile < 1 or overlap < 0:
        raise NetworkError(f"{tile}-pixel tiles with an overlap of {overlap} are impossible.", hint="Try 64 and 16.")
    height, width = lr.shape[2:]
    hr: Tensor | None = None
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            y, x = max(0, top - overlap), max(0, left - overlap)
            piece = lr[:, :, y : top + tile + overlap, x : left + tile + overlap]
            result = network(piece)
            scale = result.shape[2] // piece.shape[2]
            if hr is None:
                hr = result.new_empty(*result.shape[:2], scale * height, scale * width)
            target = hr[:, :, scale * top : scale * (top + tile), scale * left : scale * (left + tile)]
            down, right = scale * (top - y), scale * (left - x)
            target.copy_(result[:, :, down : down + target.shape[2], right : right + target.shape[3]])
    assert hr is not None  # an image has pixels
    return hr
