"""Large images through a network piece by piece, so that the memory depends on the piece alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from idc_hub.errors import NetworkError


@torch.no_grad()
def tiled(network: Callable[[Tensor], Tensor], lr: Tensor, *, tile: int, overlap: int) -> Tensor:
    """The network's output, computed tile by tile.

    Each tile sees `overlap` more pixels on all sides, or up to the edge of the image, and only its own pixels are
    kept. Where the network looks no further than that, the result is that of the whole image; where it looks
    further (attention), pixels near a seam differ a little. With `tile` and `overlap` multiples of a
    network's window, the windows of the tiles are those of the whole image.

    Args:
        network: Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`.
        lr: Float `[B, 3, h, w]` in [0, 1].
        tile: Side of a tile in LR pixels.
        overlap: LR pixels that a tile sees beyond its own side.

    Returns:
        Float `[B, 3, scale*h, scale*w]`, without gradient.

    Raises:
        NetworkError: `tile` is not positive, or `overlap` is negative.
    """
    if tile < 1 or overlap < 0:
        raise NetworkError(f"Tiles of {tile} pixels with an overlap of {overlap} are none.", hint="Try 64 and 16.")
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
