"""A set for a training loop of your own: aligned random crops of LR and HR, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.errors import ImageError, RecipeError, RunError
from idc_hub.images.files import image_size
from idc_hub.training.crops import Crop, cut, draw_crop, draw_turns, turned
from idc_hub.training.pairs import decode_pair, load_hub_rows, stored_pair, undecoded

if TYPE_CHECKING:
    import datasets


class PairedPatches(Dataset[tuple[Tensor, Tensor]]):
    """The LR/HR patches of an HR version, cropped and turned at random.

    Item `i` is `(lr, hr)`: float32 RGB `[3, crop, crop]` and `[3, scale*crop, scale*crop]` in [0, 1]. It depends on the
    seed, the epoch and `i` alone, so that any number of workers gives the same batches. Call `set_epoch` before each
    epoch; otherwise all epochs have the same crops. Images stay on the disk, compressed, and are decoded when needed.

    Args:
        data: A Run, a repository folder, the id of a dataset on the Hub, or a `datasets.Dataset` with the columns `lr`
            and `hr`.
        hr_version: The HR version of a set; None: its default.
        crop: Side of a crop in LR pixels; None: whole patches.
        augment: Whether to turn and mirror: each of the eight orientations is equally likely.
        seed: Seed of the crops and orientations.

    Raises:
        RunError: There is no condensed set, or no such HR version.
        RecipeError: `data` has no columns `lr` and `hr`, or `hr_version` is given for a `datasets.Dataset`.
        HubError: The Hub dataset cannot be loaded.
        ImageError: When an item is read: the images are damaged, do not fit each other, or are smaller than a crop.
    """

    def __init__(
        self,
        data: str | Path | datasets.Dataset,
        *,
        hr_version: str | None = None,
        crop: int | None = None,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        self.crop, self.augment, self.seed = crop, augment, seed
        rows: Any = data
        if isinstance(data, str | Path):
            rows = _load(data, hr_version)
        elif hr_version is not None:
            raise RecipeError("hr_version is for a Run or a repository, not for a loaded dataset.", "Leave it out.")
        _require_columns(rows, "lr", "hr")
        self._rows = undecoded(rows, "lr", "hr")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self))[index]
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        return _prepare(self._rows[index], f"row {index}", rng, self.crop, self.augment)

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops: those of epoch `epoch`, a number from 0."""
        self._epoch.fill_(epoch)


class StreamedPatches(IterableDataset[tuple[Tensor, Tensor]]):
    """`PairedPatches` of a set that is streamed from the Hub, without downloading it first.

    The crop of a patch depends on the seed, the epoch, and the patch alone. The order is that of `rows`, and each
    worker reads other files.

    Args:
        rows: What `datasets.load_dataset(repo_id, hr_version, split="train", streaming=True)` returns; shuffle it with
            its own method `shuffle`.
        crop: Side of a crop in LR pixels; None: whole patches.
        augment: Whether to turn and mirror: each of the eight orientations is equally likely.
        seed: Seed of the crops and orientations.

    Raises:
        RecipeError: `rows` lacks the columns `instance_id`, `patch_index`, `lr` and `hr`.
        ImageError: While iterating: the images are damaged, do not fit each other, or are smaller than a crop.
    """

    def __init__(
        self, rows: datasets.IterableDataset, *, crop: int | None = None, augment: bool = True, seed: int = 0
    ) -> None:
        self.crop, self.augment, self.seed = crop, augment, seed
        columns = ("instance_id", "patch_index", "lr", "hr")
        _require_columns(rows, *columns)
        self._rows = undecoded(rows, *columns)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for row in self._rows:
            instance_id, patch_index = row["instance_id"], row["patch_index"]
            name = f"patch_index {patch_index} of instance_id {instance_id}"
            rng = np.random.default_rng((self.seed, self._rows.epoch, crc32(instance_id.encode()), patch_index))
            yield _prepare(row, name, rng, self.crop, self.augment)

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops, and shuffle in another order if `rows` is shuffled; `epoch` is a number from 0."""
        self._rows.set_epoch(epoch)


def _load(location: str | Path, hr_version: str | None) -> datasets.Dataset:
    """The rows of an HR version, from a folder or from the Hub."""
    import datasets

    if not Path(location).exists() and str(location).count("/") == 1:
        return load_hub_rows(str(location), hr_version)
    condensed = CondensedSet.open(location)
    version = condensed.hr_version(hr_version)
    try:
        return datasets.load_dataset(str(condensed.folder), version, split="train")
    except Exception as error:  # damaged files or a damaged card: the library has no common class for them
        raise RunError(
            f"The HR version {version} of {condensed.folder} cannot be loaded.", "Run `idc verify`."
        ) from error


def _require_columns(rows: Any, *names: str) -> None:
    missing = [name for name in names if name not in (rows.column_names or ())]
    if missing:
        raise RecipeError(
            f"The dataset has no column {' and no column '.join(missing)}.", "Load an HR version of a condensed set."
        )


def _prepare(
    row: dict[str, Any], name: str, rng: np.random.Generator, crop: int | None, augment: bool
) -> tuple[Tensor, Tensor]:
    """Decode, crop and turn a row."""
    stored = stored_pair(row, name)
    assert stored.lr is not None
    scale = max(1, image_size(stored.hr, name)[0] // image_size(stored.lr, stored.lr_name)[0])
    pair = decode_pair(stored, scale, of_teacher=True)
    height, width = pair[0].shape[:2]
    if crop is None:
        if augment and height != width:
            raise ImageError(f"LR of {name} has {width}x{height} pixels: only a square can be turned.", "Give a crop.")
        drawn = Crop(0, 0, draw_turns(rng))
    elif crop > min(height, width):
        raise ImageError(
            f"LR of {name} has {width}x{height} pixels, less than a crop ({crop}x{crop}).", "Choose a smaller crop."
        )
    else:
        drawn = draw_crop(rng, height, width, crop)
        pair = cut(pair, drawn, crop, scale)
    turns = torch.tensor([drawn.turns if augment else (False, False, False)])
    lr, hr = (turned(torch.tensor(image)[None], turns)[0] for image in pair)
    return lr, hr
