"""The layouts in which the field keeps LR beside HR, each as its own scripts write it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from idc_hub.errors import ImageError
from idc_hub.images.files import write_png
from idc_hub.images.sources import open_source

SIZES = {1: (48, 72), 2: (24, 36), 3: (16, 24), 4: (12, 18)}


def write(root: Path, files: dict[str, int]) -> Path:
    """Images by name, each smaller by its factor."""
    for name, factor in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, np.random.default_rng(0).integers(0, 256, (*SIZES[factor], 3), dtype=np.uint8))
    return root


PAIRED = {
    "DIV2K": (
        {
            "DIV2K_train_HR/0001.png": 1,
            "DIV2K_train_LR_bicubic/X2/0001x2.png": 2,
            "DIV2K_train_LR_bicubic/X4/0001x4.png": 4,
        },
        "DIV2K_train_HR",
    ),
    "DIV2K unknown": (
        {"DIV2K_valid_LR_mild/0801x4m.png": 4, "DIV2K_valid_HR/0801.png": 1},
        "DIV2K_valid_HR",
    ),
    "Flickr2K": ({"Flickr2K_HR/000001.png": 1, "Flickr2K_LR_bicubic/X4/000001x4.png": 4}, "Flickr2K_HR"),
    "KAIR training": ({"trainsets/trainH/a.png": 1, "trainsets/trainL/a.png": 4}, "trainsets/trainH"),
    "KAIR test": ({"Set5/HR/baby.png": 1, "Set5/LR_bicubic/X4/babyx4.png": 4}, "Set5/HR"),
    "BasicSR": ({"Set5/GTmod12/baby.png": 1, "Set5/LRbicx2/baby.png": 2, "Set5/LRbicx4/baby.png": 4}, "Set5/GTmod12"),
    "BasicSR pieces": (
        {"DIV2K_train_HR_sub/0001_s001.png": 1, "DIV2K_train_LR_bicubic/X4_sub/0001_s001.png": 4},
        "DIV2K_train_HR_sub",
    ),
    "GT and LR": ({"GT/a.png": 1, "LR/a.png": 4}, "GT"),
    "gt and lq, equally large": ({"gt/a.png": 1, "lq/a.png": 1}, "gt"),
    "scales of both": ({"HR/x4/a.png": 1, "LR/x4/a.png": 4}, "HR"),
    "HR and X4": ({"HR/a.png": 1, "X4/a.png": 4}, "HR"),
    "other names": ({"photos/a.png": 1, "x4/ax4.png": 4}, "photos"),
    "under one name": ({"HR_LR/HR/a.png": 1, "HR_LR/LR/a.png": 4}, "HR_LR/HR"),
}


@pytest.mark.parametrize("layout", PAIRED)
def test_lr_beside_hr_is_refused_and_the_hr_folder_named(tmp_path, layout):
    files, folder = PAIRED[layout]
    root = write(tmp_path / "set", files)
    with pytest.raises(ImageError) as caught:
        open_source(str(root))
    message = str(caught.value)
    assert message.startswith(f"{root} holds LR images beside their HR images (")
    assert message.endswith(f": give the folder of the HR images, {root / folder}.")
    hr = [name for name, factor in files.items() if name.startswith(f"{folder}/")]
    assert [f"{folder}/{entry.name}" for entry in open_source(str(root / folder)).entries] == hr


@pytest.mark.parametrize("layout", PAIRED)
def test_lr_beside_hr_in_a_zip_is_chosen_by_a_pattern(tmp_path, layout):
    files, folder = PAIRED[layout]
    root, path = write(tmp_path / "set", files), tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in files:
            archive.write(root / name, name)
    with pytest.raises(ImageError, match=r"holds LR images beside their HR images") as caught:
        open_source(str(path))
    assert f"source.include={folder}/* " in str(caught.value)
    chosen = open_source(str(path), include=[f"{folder}/*"])
    assert all(entry.name.startswith(f"{folder}/") for entry in chosen.entries)


IN_ONE_FOLDER = {
    "SelfExSR": ({"img_001_SRF_4_HR.png": 1, "img_001_SRF_4_LR.png": 4}, "include=*_HR.png"),
    "RealSR": ({"Canon_001_HR.png": 1, "Canon_001_LR4.png": 1}, "include=*_HR.png"),
    "scales": ({"a.png": 1, "ax4.png": 4}, "exclude=*x4.png"),
    "LR below HR": ({"a.png": 1, "LRbicx4/a.png": 4}, "exclude=LRbicx4/*"),
}


@pytest.mark.parametrize("layout", IN_ONE_FOLDER)
def test_pairs_in_one_folder_are_chosen_by_a_pattern(tmp_path, layout):
    files, remedy = IN_ONE_FOLDER[layout]
    write(tmp_path, files)
    with pytest.raises(ImageError) as caught:
        open_source(str(tmp_path))
    assert f" source.{remedy} (or --" in str(caught.value)
    key, _, pattern = remedy.partition("=")
    chosen = open_source(str(tmp_path), **{key: [pattern]})
    assert [entry.name for entry in chosen.entries] == list(files)[:1]


@pytest.mark.parametrize("folder", ["DIV2K_train_LR_bicubic", "x"])
def test_one_photograph_at_several_scales_is_refused(tmp_path, folder):
    root = write(tmp_path / folder, {"X2/0001x2.png": 2, "X3/0001x3.png": 3, "X4/0001x4.png": 4})
    with pytest.raises(
        ImageError, match=r"holds the same photographs at several scales \(X2/0001x2\.png and X3/0001x3"
    ):
        open_source(str(root))
    assert [entry.id for entry in open_source(str(root / "X4")).entries] == ["0001x4"]


@pytest.mark.parametrize(
    "files",
    [
        {"x4.png": 1, "a.png": 1},
        {"x2.png": 1, "x4.png": 4},
        {"a.png": 1, "ax4.png": 1},  # equally large: another photograph
        {"IMG_1.png": 1, "IMG_1_LR.png": 1},  # edited, not shrunk
        {"LR/a.png": 4, "LR/b.png": 4},
        {"trainH/a.png": 1, "trainL/b.png": 1},
        {"HR/a.png": 1, "HR/b.png": 1},
        {"DIV2K_train_HR/0001.png": 1, "DIV2K_valid_HR/0801.png": 1},
        {"clear/a.png": 1, "flowers/b.png": 4},
    ],
    ids=lambda files: ",".join(files),
)
def test_photographs_alone_are_no_pairs(tmp_path, files):
    write(tmp_path, files)
    assert len(open_source(str(tmp_path)).entries) == len(files)
