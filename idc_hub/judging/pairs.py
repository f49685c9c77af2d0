"""(lr, hr) pairs from photographs, for training and for evaluation."""

from pathlib import Path

import numpy as np

from idc_hub.errors import ImageError
from idc_hub.images.files import read_image
from idc_hub.images.resize import imresize, mod_crop
from idc_hub.images.sources import open_source

Pair = tuple[np.ndarray, np.ndarray]
"""LR and HR of one image: uint8 RGB `[h, w, 3]` and `[scale*h, scale*w, 3]`."""


def read_pairs(location: str | Path, scale: int, *, lr_location: str | Path | None = None) -> dict[str, Pair]:
    """Read all photographs of a source, and make or read the LR image of each.

    Args:
        location: HR images, whatever `images.sources.open_source` opens: a folder, a zip, a Hub dataset. They
            are cropped at the bottom and right to multiples of the scale; grey ones become RGB.
        scale: HR pixels per LR pixel.
        lr_location: LR images under the HR images' names; without it LR is `imresize(hr, 1 / scale)`.

    Returns:
        Name: (lr, hr), in the source's order.

    Raises:
        ImageError: There is no such source, or an image is damaged, lacks its LR image, or does not fit it.
        HubError: The Hub dataset exists but cannot be loaded.
    """
    source = open_source(str(location))
    lr_source = open_source(str(lr_location)) if lr_location else None
    lr_entries = {entry.name: entry for entry in lr_source.entries} if lr_source else {}
    pairs = {}
    for entry in source.entries:
        hr = mod_crop(read_image(source.read(entry), entry.name).pixels, scale)
        if lr_source is None:
            lr = imresize(hr, 1 / scale)
        elif entry.name in lr_entries:
            lr = read_image(lr_source.read(lr_entries[entry.name]), f"{lr_location}/{entry.name}").pixels
        else:
            raise ImageError(f"{lr_location} holds no LR image for {entry.name}.")
        if hr.shape != (lr.shape[0] * scale, lr.shape[1] * scale, 3):
            raise ImageError(
                f"{entry.name} has {hr.shape[1]}x{hr.shape[0]} HR and {lr.shape[1]}x{lr.shape[0]} LR pixels: "
                f"not a pair for x{scale}.",
                hint="Check the scale and the LR images.",
            )
        pairs[entry.name] = (lr, hr)
    return pairs
