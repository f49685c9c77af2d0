"""(lr, hr) pairs for training and evaluation: from photographs, from a condensed set, from the Hub."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST
from idc_hub.dataset.parquet import read_rows
from idc_hub.errors import HubError, ImageError, RecipeError, one_line
from idc_hub.images.files import read_image
from idc_hub.images.patches import is_wrongly_one_color
from idc_hub.images.resize import imresize, mod_crop
from idc_hub.images.sources import MAX_THREADS, PACKAGE_PREFIX, Entry, open_source

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


def read_version(
    condensed: CondensedSet, scale: int, hr_version: str | None = None
) -> tuple[list[Pair], dict[str, str]]:
    """Read an HR version of a condensed set.

    Args:
        condensed: The set.
        scale: The scale that the pairs are for.
        hr_version: Which HR version; None: the set's own default.

    Returns:
        The pairs in order, and what they are: `condensed_set` or `selection`, `hr_version`, `lr_digest`.

    Raises:
        RunError: There is no such version, or its files are damaged.
        RecipeError: The set has another scale.
    """
    manifest, version = condensed.manifest, condensed.hr_version(hr_version)
    if manifest.scale != scale:
        raise RecipeError(
            f"{condensed.folder} is a set for x{manifest.scale}, not for x{scale}.", f"Say --scale {manifest.scale}."
        )
    pairs = _decode((row.lr_png, row.hr_png) for row in read_rows(condensed.data(version)))
    kind = "selection" if condensed.is_selection else "condensed_set"
    return pairs, {kind: manifest.name, "hr_version": version, "lr_digest": manifest.lr_digest}


def read_data(data: str, scale: int, hr_version: str | None = None) -> tuple[list[Pair], dict[str, str]]:
    """Read what `--data` names: a Run or a repository folder, a condensed set on the Hub, or photographs.

    Returns:
        The pairs, and what they are. A local path is named by its last part: it is for a card that others read.

    Raises:
        RecipeError: An HR version was asked for where there is none, or the set has another scale.
        RunError, ImageError, HubError: The data cannot be read.
    """
    path = Path(data)
    if any((folder / MANIFEST).is_file() for folder in (path / "repo", path)):
        return read_version(CondensedSet.open(path), scale, hr_version)
    of_hub = not path.exists() and data.count("/") == 1 and not data.startswith(PACKAGE_PREFIX)
    if of_hub:
        pairs = _pairs_of_hub_set(data, hr_version)
        if pairs is not None:
            return pairs, {"hub": data, **({"hr_version": hr_version} if hr_version else {})}
    if hr_version:
        raise RecipeError(f"{data} is no condensed set: it has no HR version {hr_version}.", "Leave --hr-version out.")
    name = data if of_hub or data.startswith(PACKAGE_PREFIX) else path.resolve().name
    return list(read_pairs(data, scale).values()), {"hub" if of_hub else "photographs": name}


def _pairs_of_hub_set(repo_id: str, hr_version: str | None) -> list[Pair] | None:
    """The pairs of a dataset on the Hub, None if it has no columns `lr` and `hr`."""
    import datasets

    try:
        rows = datasets.load_dataset(repo_id, hr_version, split="train")
    except Exception as error:  # network, config, broken files: the library has no common class for them
        raise HubError(
            f"The dataset {repo_id} could not be loaded from the Hub ({one_line(error)}).",
            "Check its name and --hr-version.",
        ) from error
    if not {"lr", "hr"} <= set(rows.column_names):
        return None
    rows = rows.select_columns(["lr", "hr"])
    for column in ("lr", "hr"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return _decode((row["lr"]["bytes"], row["hr"]["bytes"]) for row in rows)


def _decode(rows: Iterable[tuple[bytes, bytes]]) -> list[Pair]:
    """Pairs from the bytes of their image files; the decoder works in several threads at once.

    Raises:
        ImageError: An image is damaged, or HR is of one color that LR is not.
    """

    def decode(row: tuple[int, tuple[bytes, bytes]]) -> Pair:
        number, (lr, hr) = row
        pair = read_image(lr, f"LR of row {number}").pixels, read_image(hr, f"HR of row {number}").pixels
        if is_wrongly_one_color(*(image.transpose(2, 0, 1)[None] for image in pair)).any():
            raise ImageError(
                f"HR of row {number} is of one color, and its LR is not: the teacher failed there.",
                "`idc verify` names all such patches.",
            )
        return pair

    with ThreadPoolExecutor(MAX_THREADS) as pool:
        return list(pool.map(decode, enumerate(rows)))


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
