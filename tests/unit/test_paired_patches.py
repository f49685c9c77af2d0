"""PairedPatches and StreamedPatches: aligned crops, the same for any number of workers, other ones in each epoch."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import idc_hub
from idc_hub.dataset.card import write_card
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.regenerate import regenerate
from idc_hub.errors import ImageError, RecipeError, RunError
from idc_hub.networks.teachers import Teacher

SIZE, CROP, COUNT = 12, 5, 10


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(image: np.ndarray) -> dict[str, Any]:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def numbered(patch: int) -> np.ndarray:
    """An LR patch whose pixels say where they are: uint8 [SIZE, SIZE, 3]."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.stack([rows, columns, np.full_like(rows, patch)], axis=2).astype(np.uint8)


def rows_of(patches: list[np.ndarray], scale: int = 3) -> datasets.Dataset:
    """Rows whose HR shows each LR pixel as a block."""
    features = datasets.Features(
        {
            "instance_id": datasets.Value("string"),
            "patch_index": datasets.Value("int32"),
            "lr": datasets.Image(),
            "hr": datasets.Image(),
        }
    )
    rows = [
        {
            "instance_id": f"photo {number // 4}",
            "patch_index": number % 4,
            "lr": png(patch),
            "hr": png(patch.repeat(scale, 0).repeat(scale, 1)),
        }
        for number, patch in enumerate(patches)
    ]
    return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture
def rows() -> datasets.Dataset:
    return rows_of([numbered(number) for number in range(COUNT)])


def pixels(image: torch.Tensor) -> np.ndarray:
    assert image.dtype == torch.float32
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def orientations(patch: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(patch, quarters) for quarters in range(4)]
    return turned + [image[:, ::-1] for image in turned]


def test_hr_lies_on_lr_and_every_place_and_orientation_comes_up(rows: datasets.Dataset) -> None:
    patches = idc_hub.PairedPatches(rows, crop=CROP)
    seen = set()
    for epoch in range(60):
        patches.set_epoch(epoch)
        for number, (lr, hr) in enumerate(map(patches.__getitem__, range(COUNT))):
            small = pixels(lr)
            np.testing.assert_array_equal(pixels(hr), small.repeat(3, 0).repeat(3, 1))
            top, left = int(small[..., 0].min()), int(small[..., 1].min())
            crop = numbered(number)[top : top + CROP, left : left + CROP]
            (orientation,) = (o for o, turned in enumerate(orientations(crop)) if np.array_equal(turned, small))
            seen.add((top, left, orientation))
    assert {place[0] for place in seen} == {place[1] for place in seen} == set(range(SIZE - CROP + 1))
    assert {place[2] for place in seen} == set(range(8))


def test_without_crop_and_augmentation_the_pixels_are_those_of_the_set(
    repo: Path, make_teacher: Callable[..., Teacher], instances: dict[str, np.ndarray]
) -> None:
    for answer in ("repeat", "darken"):
        regenerate(CondensedSet(repo), make_teacher(answer), answer, set_default=answer == "darken")
    write_card(CondensedSet(repo))
    expected = [patch.transpose(1, 2, 0) for patches in instances.values() for patch in patches]
    for version, divisor in (("repeat", 1), ("darken", 2), (None, 2)):
        pairs = idc_hub.PairedPatches(repo, hr_version=version, augment=False)
        assert len(pairs) == len(expected) == 6
        for (lr, hr), patch in zip((pairs[number] for number in range(6)), expected, strict=True):
            np.testing.assert_array_equal(pixels(lr), patch)
            large = patch.repeat(2, 0).repeat(2, 1)
            np.testing.assert_array_equal(pixels(hr), large // divisor)
    with pytest.raises(RunError, match="has no HR version 'other'"):
        idc_hub.PairedPatches(repo, hr_version="other")


def batches(data: Any, workers: int, epochs: int = 2, **options: Any) -> list[torch.Tensor]:
    loader = DataLoader(data, batch_size=4, num_workers=workers, persistent_workers=workers > 0, **options)
    found = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        found += [torch.cat([lr.flatten(), hr.flatten()]) for lr, hr in loader]
    return found


def test_batches_depend_on_seed_and_epoch_but_not_on_workers(rows: datasets.Dataset) -> None:
    alone = batches(idc_hub.PairedPatches(rows, crop=CROP), 0)
    shared = batches(idc_hub.PairedPatches(rows, crop=CROP), 2)
    assert len(alone) == len(shared) == 6
    assert all(map(torch.equal, alone, shared))
    assert not any(map(torch.equal, alone[:3], alone[3:]))  # the second epoch
    assert not any(map(torch.equal, alone, batches(idc_hub.PairedPatches(rows, crop=CROP, seed=1), 0)))


def test_a_streamed_patch_gets_the_same_crop_from_any_worker_in_any_order(rows: datasets.Dataset) -> None:
    def crops(workers: int, shuffled: bool = False) -> dict[int, bytes]:
        stream = rows.to_iterable_dataset(num_shards=4)
        stream = stream.shuffle(seed=3, buffer_size=5) if shuffled else stream
        data = idc_hub.StreamedPatches(stream, crop=CROP)
        loader = DataLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
        found: dict[int, bytes] = {}
        for epoch in range(2):
            data.set_epoch(epoch)
            for lr, hr in loader:
                small = pixels(lr)
                np.testing.assert_array_equal(pixels(hr), small.repeat(3, 0).repeat(3, 1))
                found[epoch * COUNT + int(small[0, 0, 2])] = small.tobytes()
        return found

    alone = crops(0)
    assert sorted(alone) == list(range(2 * COUNT))
    assert [alone[number] == alone[COUNT + number] for number in range(COUNT)].count(True) < 3
    assert crops(2) == alone
    assert crops(0, shuffled=True) == alone


def test_whole_patches_are_turned(rows: datasets.Dataset) -> None:
    patches = idc_hub.PairedPatches(rows)
    corners = {tuple(pixels(patches[number][0])[0, 0, :2]) for number in range(COUNT)}
    assert len(corners) > 1
    assert corners <= {(0, 0), (0, SIZE - 1), (SIZE - 1, 0), (SIZE - 1, SIZE - 1)}
    assert torch.equal(patches[-1][1], patches[COUNT - 1][1])
    with pytest.raises(IndexError):
        patches[COUNT]


def test_what_cannot_be_used_is_named(rows: datasets.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"LR of row 3 has 12x12 pixels, less than a crop \(13x13\)\. Choose a sm"):
        idc_hub.PairedPatches(rows, crop=13)[3]
    with pytest.raises(ImageError, match=r"LR of row 0 has 12x7 pixels: only a square can be turned\. Give a crop\."):
        idc_hub.PairedPatches(rows_of([numbered(0)[:7]]))[0]
    odd = rows.to_list()[:1]
    odd[0]["hr"] = png(np.zeros((30, 36, 3), np.uint8))
    with pytest.raises(ImageError, match="row 0 has 36x30 HR and 12x12 LR pixels"):
        idc_hub.PairedPatches(datasets.Dataset.from_list(odd, features=rows.features))[0]
    for kind, given in ((idc_hub.PairedPatches, rows), (idc_hub.StreamedPatches, rows.to_iterable_dataset())):
        with pytest.raises(RecipeError, match="has no column hr"):
            kind(given.remove_columns("hr"))
    with pytest.raises(RecipeError, match="not for a loaded dataset"):
        idc_hub.PairedPatches(rows, hr_version="x")
    with pytest.raises(RunError, match="holds no condensed set"):
        idc_hub.PairedPatches(tmp_path)
