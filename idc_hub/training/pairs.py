"""(lr, hr) pairs from photographs, for training and for evaluation."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from idc_hub.errors import ImageError
from idc_hub.images.files import read_image
from idc_hub.images.resize import imresize, mod_crop
from idc_hub.images.sources import MAX_THREADS, Entry, open_source

Pair = tuple[np.ndarray, np.ndarray]
"""LR and HR of one image: uint8 RGB `[h, w, 3]` and `[scale*h, scale*w, 3]`."""


def read_pairs(location: str | Path, scale: int, *, lr_location: str | Path | None = None) -> dict[str, Pair]:
    """Read all photographs of a source, and make or read the LR image of each.

    Args:
        location: HR images, whatever `images.sources.open_source` opens: a folder, a zip, a Hub dataset. They
            are cropped at the bottom and right to multiples of the scale; gray ones become RGB.
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

    def read(entry: Entry) -> Pair:
        hr = mod_crop(read_image(source.read(entry), entry.name).pixels, scale)
        if lr_source is None:
            return imresize(hr, 1 / scale), hr
        if entry.name not in lr_entries:
            raise ImageError(f"{lr_location} holds no LR image for {entry.name}.")
        lr = read_image(lr_source.read(lr_entries[entry.name]), f"{lr_location}/{entry.name}").pixels
        if hr.shape != (lr.shape[0] * scale, lr.shape[1] * scale, 3):
            raise ImageError(
                f"{entry.name} has {hr.shape[1]}x{hr.shape[0]} HR and {lr.shape[1]}x{lr.shape[0]} LR pixels: "
                f"not a pair for x{scale}.",
                hint="Check the scale and the LR images.",
            )
        return lr, hr

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        pairs = pool.map(read, source.entries)
        return {entry.name: pair for entry, pair in zip(source.entries, pairs, strict=True)}


def write_pixels(pairs: Sequence[Pair], path: Path) -> list[tuple[int, int]]:
    """Put all pixels one after the other into a file, which any number of processes map into their memory.

    Returns:
        Height and width of each LR image: what `map_pixels` needs to find the pairs again.
    """
    with path.open("wb") as file:
        for pair in pairs:
            for image in pair:
                file.write(np.ascontiguousarray(image).data)
    return [lr.shape[:2] for lr, _ in pairs]


def map_pixels(path: Path, shapes: Sequence[tuple[int, int]], scale: int) -> list[Pair]:
    """The pairs of a file by `write_pixels`; the processes of a machine share one copy of them, read as needed."""
    pixels = np.memmap(path, np.uint8, mode="r")
    pairs, start = [], 0
    for height, width in shapes:
        middle, end = start + height * width * 3, start + height * width * 3 * (1 + scale**2)
        lr = pixels[start:middle].reshape(height, width, 3)
        pairs.append((lr, pixels[middle:end].reshape(height * scale, width * scale, 3)))
        start = end
    return pairs
