"""LR/HR pairs for training and evaluation: from photographs, from a condensed set, from the Hub.

Image files stay on disk. `Pairs` decodes them in order, a few at a time; a training needs them in random order and
copies their pixels to a file first (`training.pixels`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST
from idc_hub.errors import HubError, ImageError, RecipeError, one_line
from idc_hub.images.files import image_size, read_image
from idc_hub.images.hub_dataset import check_existence
from idc_hub.images.patches import is_wrongly_one_color
from idc_hub.images.resize import imresize, mod_crop
from idc_hub.images.sources import PACKAGE_PREFIX, open_source
from idc_hub.images.sources import Source as OpenSource
from idc_hub.recipe import Source
from idc_hub.training.pairing import folder_name, pair_files, set_name
from idc_hub.training.prefetch import prefetch

if TYPE_CHECKING:
    import datasets

Pair = tuple[np.ndarray, np.ndarray]
"""LR and HR of one image: uint8 RGB `[h, w, 3]` and `[scale*h, scale*w, 3]`."""

AHEAD = 4
"""Pairs that are decoded before they are needed: a 2K photograph takes about 10 MB."""


@dataclass(frozen=True)
class StoredPair:
    """The files of a pair, undecoded.

    Attributes:
        name: What messages call it.
        hr: Bytes of the HR image file.
        lr: Bytes of the LR image file; None: LR is `imresize(hr, 1 / scale)`.
        lr_name: What messages call the LR image.
    """

    name: str
    hr: bytes
    lr: bytes | None = None
    lr_name: str = ""


@dataclass(frozen=True)
class Pairs:
    """LR/HR pairs of one scale, decoded each time they are iterated over; `len` is their number.

    HR is cropped at the bottom and right to a multiple of the scale; LR, where it is given, must fit that.

    Attributes:
        scale: HR pixels per LR pixel.
        count: Number of pairs.
        stored: Reads their files, in order.
        facts: Where they come from, for `training.yaml`.
        lr_given: Whether LR images are given, rather than made by `imresize`.
        pairing: Which files make a pair, in words.
        left_out: Names of the files of the source that are no images by their suffix.
        of_teacher: HR is a teacher's, which may have failed: HR of one color is refused where LR has more.
    """

    scale: int
    count: int
    stored: Callable[[], Iterator[StoredPair]]
    facts: dict[str, Any] = field(default_factory=dict)
    lr_given: bool = False
    pairing: str = "LR is made by bicubic downscaling"
    left_out: tuple[str, ...] = ()
    of_teacher: bool = False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, Pair]]:
        """Name and pair of each image; unusable ones are left out, and named by the error at the end.

        Raises:
            ImageError: Some images are damaged or do not fit; a line for each.
            RunError: The files of a condensed set are damaged.
        """
        problems = []
        for outcome in prefetch(self._decode, self.stored(), ahead=AHEAD):
            if isinstance(outcome, ImageError):
                problems.append(outcome)
            else:
                yield outcome
        if len(problems) == 1:
            raise problems[0]
        if problems:
            listed = "".join(f"\n  {problem}" for problem in problems)
            raise ImageError(f"{len(problems)} of {self.count} pairs cannot be used:{listed}")

    def bytes_of_pixels(self) -> int:
        """About how many bytes all decoded pixels take, from the headers of the image files."""
        pixels = 0
        for stored in self.stored():
            hr = _area(stored.hr, stored.name)
            pixels += hr + (hr // self.scale**2 if stored.lr is None else _area(stored.lr, stored.lr_name))
        return pixels * 3

    def _decode(self, stored: StoredPair) -> tuple[str, Pair] | ImageError:
        try:
            return stored.name, decode_pair(stored, self.scale, of_teacher=self.of_teacher)
        except ImageError as error:
            return error


def decode_pair(stored: StoredPair, scale: int, *, of_teacher: bool) -> Pair:
    """Decode one pair; see `Pairs` for the arguments.

    Raises:
        ImageError: An image is damaged, they do not fit each other, or the teacher failed.
    """
    hr = mod_crop(read_image(stored.hr, stored.name).pixels, scale)
    if stored.lr is None:
        return imresize(hr, 1 / scale), hr
    lr = read_image(stored.lr, stored.lr_name).pixels
    if hr.shape != (lr.shape[0] * scale, lr.shape[1] * scale, 3):
        raise ImageError(
            f"{stored.name} has {hr.shape[1]}x{hr.shape[0]} HR and {lr.shape[1]}x{lr.shape[0]} LR pixels "
            f"({stored.lr_name}): not a pair for x{scale}.",
            hint="Check the scale and the LR images.",
        )
    if of_teacher and is_wrongly_one_color(*(image.transpose(2, 0, 1)[None] for image in (lr, hr))).any():
        raise ImageError(
            f"HR of {stored.name} is of one color, and its LR is not: the teacher failed there.",
            "`idc verify` names all such patches.",
        )
    return lr, hr


def location_of(photographs: str | Path | Source) -> str:
    """The place of photographs, given alone or as the section of a recipe."""
    return photographs.path if isinstance(photographs, Source) else str(photographs)


def open_photographs(photographs: str | Path | Source, *, lr_allowed: bool = False) -> OpenSource:
    """Open photographs given by place or as the section of a recipe, and warn of files that are left out."""
    section = photographs if isinstance(photographs, Source) else Source(path=str(photographs))
    source = open_source(**section.model_dump(), lr_allowed=lr_allowed)
    source.warn_of_left_out()
    return source


def read_pairs(photographs: str | Path | Source, scale: int, *, lr_location: str | Path | None = None) -> Pairs:
    """Photographs as pairs. No image is decoded yet.

    Args:
        photographs: HR images, whatever `images.sources.open_source` opens: a folder, a zip, a Hub dataset; or the
            section of a recipe, which chooses among them. Gray ones become RGB.
        scale: HR pixels per LR pixel.
        lr_location: LR images, paired as `training.pairing.pair_files` does; None: LR is `imresize(hr, 1 / scale)`.

    Raises:
        ImageError: There is no such source, or an HR image has no LR image.
        HubError: The Hub dataset exists but cannot be loaded.
    """
    # With LR in the same folder, the names say what is HR (`pair_files`).
    source = open_photographs(photographs, lr_allowed=str(lr_location) == location_of(photographs))
    if lr_location is None:
        return Pairs(
            scale,
            len(source.entries),
            lambda: (StoredPair(entry.name, source.read(entry)) for entry in source.entries),
            left_out=source.left_out,
        )
    lr_source = open_source(str(lr_location), lr_allowed=True)
    location = location_of(photographs)
    files = pair_files(source.entries, lr_source.entries, scale, location=location, lr_location=str(lr_location))

    def stored() -> Iterator[StoredPair]:
        for hr, lr in files:
            yield StoredPair(hr.name, source.read(hr), lr_source.read(lr), f"{lr_location}/{lr.name}")

    hr, lr = files[0]
    unused = len(lr_source.entries) - len(files)
    pairing = f"{len(files)} HR images with given LR, such as {hr.name} with {lr.name}"
    pairing += f"; {unused} other files in the LR folder are left out" if unused else ""
    return Pairs(scale, len(files), stored, lr_given=True, pairing=pairing, left_out=source.left_out)


def read_version(condensed: CondensedSet, scale: int, hr_version: str | None = None) -> Pairs:
    """An HR version of a condensed set as pairs.

    Args:
        condensed: The set.
        scale: The scale that the pairs are for.
        hr_version: Which HR version; None: the set's own default.

    Raises:
        RunError: There is no such version.
        RecipeError: The set has another scale.
    """
    manifest, version = condensed.manifest, condensed.hr_version(hr_version)
    if manifest.scale != scale:
        raise RecipeError(
            f"{condensed.folder} is a set for x{manifest.scale}, not for x{scale}.", f"Say --scale {manifest.scale}."
        )

    def stored() -> Iterator[StoredPair]:
        for row in condensed.rows(version):
            yield StoredPair(row.name, row.hr_png, row.lr_png, f"LR of {row.name}")

    kind = "selection" if condensed.is_selection else "condensed_set"
    facts = {kind: manifest.name, "hr_version": version, "lr_digest": manifest.lr_digest}
    pairing = f"LR and HR patches of {manifest.name}"
    return Pairs(scale, manifest.patches, stored, facts, lr_given=True, pairing=pairing, of_teacher=True)


def read_data(
    data: str | Source, scale: int, hr_version: str | None = None, *, lr_location: str | Path | None = None
) -> Pairs:
    """What `--data` names: a Run or a repository folder, a condensed set on the Hub, or photographs.

    The facts of the pairs name a local path by a folder, not in full: they are for a card that others read.

    Args:
        data: What to read; of photographs also a recipe's `Source`, which chooses among them.
        scale: The scale that the pairs are for.
        hr_version: HR version of a condensed set; None: the set's own default.
        lr_location: LR images of photographs; None: they are made by bicubic downscaling.

    Raises:
        RecipeError: An HR version or LR images were named where they make no sense, or the set has another scale.
        RunError, ImageError, HubError: The data cannot be read.
    """
    chosen = isinstance(data, Source) and data != Source(path=data.path)
    location = location_of(data)
    path = Path(location).expanduser()
    if any((folder / MANIFEST).is_file() for folder in (path / "repo", path)):
        _refuse_lr(location, lr_location)
        if chosen:
            raise RecipeError(
                f"{location} is a condensed set: no patches can be chosen from it.", "Leave --include and the like out."
            )
        return read_version(CondensedSet.open(path), scale, hr_version)
    of_hub = not path.exists() and location.count("/") == 1 and not location.startswith(PACKAGE_PREFIX)
    if of_hub and not chosen:
        pairs = _pairs_of_hub_set(location, scale, hr_version)
        if pairs is not None:
            _refuse_lr(location, lr_location)
            return pairs
    if hr_version:
        raise RecipeError(
            f"{location} is no condensed set: it has no HR version {hr_version}.", "Leave --hr-version out."
        )
    pairs = read_pairs(data, scale, lr_location=lr_location)
    if of_hub:
        pairs.facts["hub"] = location
    else:
        pairs.facts["photographs"] = location if location.startswith(PACKAGE_PREFIX) else set_name(location)
    if lr_location is not None:
        pairs.facts["lr"] = folder_name(lr_location)
    return pairs


def _refuse_lr(data: str, lr_location: str | Path | None) -> None:
    if lr_location is not None:
        raise RecipeError(f"{data} has LR images of its own.", "Leave --lr out.")


def load_hub_rows(repo_id: str, hr_version: str | None = None) -> "datasets.Dataset":
    """The split `train` of a dataset on the Hub, or of one config of it.

    Raises:
        HubError: It cannot be loaded.
    """
    import datasets

    check_existence(repo_id)
    try:
        return datasets.load_dataset(repo_id, hr_version, split="train")
    except Exception as error:  # network, config, broken files: the library has no common class for them
        raise HubError(
            f"The dataset {repo_id} could not be loaded from the Hub ({one_line(error)}).",
            "Check --hr-version; for photographs, --config and --split.",
        ) from error


def undecoded(rows: Any, *columns: str) -> Any:
    """A `datasets.Dataset` or `IterableDataset` with these columns only; `lr` and `hr` stay files (`bytes`, `path`)."""
    import datasets

    rows = rows.select_columns(list(columns))
    for column in ("lr", "hr"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def stored_pair(row: dict[str, Any], name: str) -> StoredPair:
    """The files of an undecoded row.

    Raises:
        ImageError: An image is not in it.
    """
    if row["lr"]["bytes"] is None or row["hr"]["bytes"] is None:
        raise ImageError(f"{name[:1].upper()}{name[1:]} has no image bytes in it.", "Leave that row out.")
    return StoredPair(name, row["hr"]["bytes"], row["lr"]["bytes"], f"LR of {name}")


def _pairs_of_hub_set(repo_id: str, scale: int, hr_version: str | None) -> Pairs | None:
    """The pairs of a dataset on the Hub; None if it has no columns `lr` and `hr`."""
    rows = load_hub_rows(repo_id, hr_version)
    if not {"lr", "hr"} <= set(rows.column_names):
        return None
    rows = undecoded(rows, "lr", "hr")

    def stored() -> Iterator[StoredPair]:
        for number, row in enumerate(rows):
            yield stored_pair(row, f"row {number}")

    facts = {"hub": repo_id, **({"hr_version": hr_version} if hr_version else {})}
    pairing = f"columns lr and hr of {repo_id}"
    return Pairs(scale, len(rows), stored, facts, lr_given=True, pairing=pairing, of_teacher=True)


def _area(data: bytes, name: str) -> int:
    """Number of pixels of an image file; 0 if it is damaged, which decoding names later."""
    try:
        width, height = image_size(data, name)
    except ImageError:
        return 0
    return width * height
