"""Given LR: which file belongs to which, under the names that data sets of the field use, and what is refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from idc_hub.errors import ImageError, RecipeError
from idc_hub.images.resize import imresize
from idc_hub.training import pairs as module
from idc_hub.training.pairing import set_name
from idc_hub.training.pairs import Pair, read_data, read_pairs

HR = [data.astronaut()[60:124, 180:252], data.coffee()[100:168, 200:264], data.chelsea()[60:124, 120:200]]


def given(number: int, scale: int = 4) -> np.ndarray:
    """LR that no downscaling would make of HR."""
    return 255 - imresize(HR[number], 1 / scale)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, np.ndarray], None]:
    def write(name: str, image: np.ndarray) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)

    return write


def assert_given(pairs: dict[str, Pair]) -> None:
    assert len(pairs) == 3
    for number, (lr, hr) in enumerate(pairs.values()):
        np.testing.assert_array_equal(hr, HR[number])
        np.testing.assert_array_equal(lr, given(number))


@pytest.mark.parametrize(
    ("hr", "lr", "hr_folder", "lr_folder"),
    [
        ("DIV2K_train_HR/{:04}.png", "DIV2K_train_LR_bicubic/X{s}/{:04}x{s}.png", "DIV2K_train_HR", "X4"),
        ("Set5/HR/im{}.png", "Set5/LR_bicubic/X{s}/im{}x{s}.png", "Set5/HR", "Set5/LR_bicubic"),
        ("Set5/GTmod12/im{}.png", "Set5/LRbicx{s}/im{}.png", "Set5/GTmod12", "Set5/LRbicx4"),
        ("HR/im{}.png", "LR/X{s}/im{}.png", "HR", "LR"),
        ("BSD/SRF/img_{:03}_SRF_4_HR.png", "BSD/SRF/img_{:03}_SRF_4_LR.png", "BSD/SRF", "BSD/SRF"),
        ("HR/im{}_HR_x4.png", "LR/im{}_LRBI_x4.png", "HR", "LR"),
        ("HR/im{}.bmp.png", "LR/im{}.bmp.webp", "HR", "LR"),
        ("HR/town/{}.png", "LR/town/{}.png", "HR", "LR"),
        ("HR/{}/photo.png", "LR/x4/{}/photox4.png", "HR", "LR"),
    ],
)  # fmt: skip
def test_lr_is_found_under_the_names_of_the_field(
    hr: str, lr: str, hr_folder: str, lr_folder: str, tmp_path: Path, save: Callable[[str, np.ndarray], None]
) -> None:
    """Beside the LR images of this scale there are those of others, which must not be taken."""
    for number in range(3):
        save(hr.format(number + 1, s=4), HR[number])
        for scale in (2, 4) if "{s}" in lr else (4,):
            path = lr.format(number + 1, s=scale)
            if path.endswith("webp"):
                save(path, given(number, scale))
                Image.fromarray(given(number)).save(tmp_path / path, lossless=True)
            else:
                save(path, given(number, scale))
    lr_folder = "DIV2K_train_LR_bicubic/X4" if lr_folder == "X4" else lr_folder
    pairs = read_pairs(tmp_path / hr_folder, 4, lr_location=tmp_path / lr_folder)
    assert (len(pairs), pairs.lr_given) == (3, True)
    assert_given(dict(pairs))
    first, partner = (path.format(1, s=4).removeprefix(f"{folder}/")
                      for path, folder in ((hr, hr_folder), (lr, lr_folder)))  # fmt: skip
    assert pairs.pairing.startswith(f"3 HR images with given LR, such as {first} with {partner}")


def test_the_inner_folders_of_two_zips_may_differ(tmp_path: Path, save: Callable[[str, np.ndarray], None]) -> None:
    for number in range(3):
        save(f"{number}.png", HR[number])
        save(f"{number}x4.png", given(number))
    for name, inner, mark in (("HR", "DIV2K/train", ""), ("LR", "bicubic", "x4")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for number in range(3):
                archive.write(tmp_path / f"{number}{mark}.png", f"{inner}/{number}{mark}.png")
    assert_given(dict(read_pairs(tmp_path / "HR.zip", 4, lr_location=tmp_path / "LR.zip")))


def test_what_does_not_pair_is_named(tmp_path: Path, save: Callable[[str, np.ndarray], None]) -> None:
    for number in range(3):
        save(f"HR/{number}.png", HR[number])
    save("LR/0x4.png", given(0))
    with pytest.raises(
        ImageError, match=r"LR has no LR image for 2 of the 3 HR images of .*HR: 1\.png, 2\.png\. An LR"
    ):
        read_pairs(tmp_path / "HR", 4, lr_location=tmp_path / "LR")
    save("LR/1x4.png", given(1)[1:])
    save("LR/2x4.png", given(2)[:, 1:])
    save("LR/3x4.png", given(2))
    pairs = read_pairs(tmp_path / "HR", 4, lr_location=tmp_path / "LR")
    assert pairs.pairing.endswith("; 1 other files in the LR folder are left out")
    with pytest.raises(ImageError, match="2 of 3 pairs cannot be used") as caught:
        dict(pairs)
    first, second = str(caught.value).splitlines()[1:]
    assert "1.png has 64x68 HR and 16x16 LR pixels" in first
    assert "2.png has 80x64 HR and 19x16 LR pixels" in second
    assert f"{tmp_path}/LR/2x4.png" in second
    for folder in ("bicubic", "unknown"):
        for number in range(3):
            save(f"both/{folder}/{number}x4.png", given(number))
    with pytest.raises(ImageError, match=r"0\.png of .*HR has 2 LR images in .*both: bicubic/0x4\.png, unknown/0"):
        read_pairs(tmp_path / "HR", 4, lr_location=tmp_path / "both")


def test_a_damaged_image_is_named_after_all_others_were_read(
    tmp_path: Path, save: Callable[[str, np.ndarray], None]
) -> None:
    for number in range(3):
        save(f"HR/{number}.png", HR[number])
    (tmp_path / "HR" / "1.png").write_bytes((tmp_path / "HR" / "1.png").read_bytes()[:-500])
    found = []
    with pytest.raises(ImageError, match=r"1\.png is damaged or truncated"):
        found.extend(name for name, _ in read_pairs(tmp_path / "HR", 4))
    assert found == ["0.png", "2.png"]


def test_columns_of_a_hub_dataset_are_cropped_as_folders_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    hr = np.pad(HR[0], ((0, 3), (0, 2), (0, 0)), mode="edge")
    rows = {"lr": [Image.fromarray(given(0))], "hr": [Image.fromarray(hr)]}
    features = datasets.Features({"lr": datasets.Image(), "hr": datasets.Image()})
    stand_in = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: stand_in)
    monkeypatch.setattr(module, "check_existence", lambda repo_id: None)
    pairs = read_data("org/pairs", 4)
    ((lr, cropped),) = dict(pairs).values()
    np.testing.assert_array_equal(cropped, HR[0])
    np.testing.assert_array_equal(lr, given(0))
    assert (pairs.facts, pairs.lr_given) == ({"hub": "org/pairs"}, True)
    with pytest.raises(RecipeError, match=r"org/pairs has LR images of its own\. Leave --lr out\."):
        read_data("org/pairs", 4, lr_location=tmp_path)


def test_facts_name_folders_but_not_where_they_are(tmp_path: Path, save: Callable[[str, np.ndarray], None]) -> None:
    for number in range(3):
        save(f"Set3/HR/{number}.png", HR[number])
        save(f"Set3/LR/X4/{number}.png", given(number))
    pairs = read_data(str(tmp_path / "Set3" / "HR"), 4, lr_location=tmp_path / "Set3" / "LR" / "X4")
    assert pairs.facts == {"photographs": "Set3", "lr": "Set3/LR/X4"}
    assert read_data(str(tmp_path / "Set3" / "HR"), 4).facts == {"photographs": "Set3"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Set5", "Set5"),
        ("Set5/HR", "Set5"),
        ("Set5/GTmod12", "Set5"),
        ("Set5/LRbicx4", "Set5"),
        ("Set5/LR_bicubic/X4", "Set5"),
        ("BSD100/image_SRF_4", "BSD100"),
        ("DIV2K/DIV2K_valid_HR", "DIV2K_valid_HR"),
    ],
)
def test_a_set_is_called_by_the_folder_that_says_something(path: str, name: str, tmp_path: Path) -> None:
    (tmp_path / path).mkdir(parents=True)
    assert set_name(tmp_path / path) == name
    assert set_name(f"{tmp_path / path}/") == name
    (tmp_path / "Set14.zip").touch()
    assert set_name(tmp_path / "Set14.zip") == "Set14"
    assert set_name("org/set14") == "set14"


def test_the_pixels_of_photographs_are_estimated_from_their_headers(
    tmp_path: Path, save: Callable[[str, np.ndarray], None]
) -> None:
    for number in range(3):
        save(f"HR/{number}.png", HR[number])
        save(f"LR/{number}.png", given(number))
    expected = sum(image.size + image.size // 16 for image in HR)
    assert read_pairs(tmp_path / "HR", 4).bytes_of_pixels() == expected
    assert read_pairs(tmp_path / "HR", 4, lr_location=tmp_path / "LR").bytes_of_pixels() == expected
