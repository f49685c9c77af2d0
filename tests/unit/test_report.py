"""The contact sheet: which patches, which pixels, how large."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import HRVersion, Manifest, TeacherRecord
from idc_hub.dataset.parquet import Row, write_rows
from idc_hub.dataset.pictures import MAX_BYTES, contact_sheet, draw_patches, is_drawable
from idc_hub.dataset.regenerate import regenerate
from idc_hub.images.files import encode_png
from idc_hub.networks.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


def holds(picture: np.ndarray, tile: np.ndarray) -> bool:
    """Whether `picture` contains `tile`, pixel for pixel."""
    height, width, _ = tile.shape
    corners = np.argwhere((picture == tile[0, 0]).all(axis=2))
    return any(np.array_equal(picture[y : y + height, x : x + width], tile) for y, x in corners)


def enlarge(image: np.ndarray, times: int) -> np.ndarray:
    return np.kron(image, np.ones((times, times, 1), np.uint8))


def test_the_sheet_shows_the_very_pixels_of_lr_and_of_every_version(
    repo: Path, make_teacher: MakeTeacher, instances: dict[str, np.ndarray]
) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    regenerate(CondensedSet(repo), make_teacher("darken"), "dark")
    path = draw_patches(CondensedSet(repo))
    assert path == repo / "report" / "patches.png"
    picture = np.asarray(Image.open(path))
    shown = 0
    for patches in instances.values():
        for patch in patches:
            lr = patch.transpose(1, 2, 0)
            found = holds(picture, enlarge(lr, 32))  # 8 LR pixels on 256
            assert holds(picture, enlarge(lr // 2, 32)) == found
            shown += found
    assert shown == 4
    assert not [entry.name for entry in repo.rglob(".*")]


def test_one_version_gets_patches_side_by_side(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    with Image.open(draw_patches(CondensedSet(repo)) or "") as one:
        assert one.width > 4 * 256
    regenerate(CondensedSet(repo), make_teacher("darken"), "dark")
    with Image.open(draw_patches(CondensedSet(repo)) or "") as two:
        assert 3 * 256 < two.width < 4 * 256


def test_without_a_version_there_is_no_picture(repo: Path) -> None:
    assert draw_patches(CondensedSet(repo)) is None
    assert not (repo / "report").exists()


def test_the_same_tree_gives_the_same_bytes(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    first = (draw_patches(CondensedSet(repo)) or Path()).read_bytes()
    assert (draw_patches(CondensedSet(repo)) or Path()).read_bytes() == first


def test_noise_that_no_png_shrinks_still_fits(repo: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        Row(
            "cat",
            number,
            encode_png(random.integers(0, 256, (64, 64, 3), np.uint8)),
            encode_png(random.integers(0, 256, (256, 256, 3), np.uint8)),
        )
        for number in range(6)
    ]
    size = write_rows(repo / "data" / "noise", rows)
    manifest = Manifest.load(repo)
    teacher = {"name": "noise", "kind": "network", "scale": 4, "weights_sha256": None, "license": None}
    manifest.hr_versions["noise"] = HRVersion(
        teacher=TeacherRecord.of(teacher),
        lr_digest=manifest.lr_digest,
        date="2026-11-21",
        patches=6,
        bytes=size.file_bytes,
    )
    manifest.default, manifest.patch_size, manifest.scale = "noise", 64, 4
    manifest.save(repo)
    path = draw_patches(CondensedSet(repo))
    assert path is not None
    assert path.stat().st_size <= MAX_BYTES


@pytest.mark.parametrize("count", [1, 3, 4])
def test_patches_stand_in_rows(count: int) -> None:
    images = [np.full((64, 64, 3), 10 * number, np.uint8) for number in range(1, 3)]
    sheet = contact_sheet(["LR", "HR"], [("label", images)] * count, across=2)
    one = contact_sheet(["LR", "HR"], [("label", images)], across=2)
    rows = -(-count // 2)
    assert (sheet.width > one.width) == (count > 1)
    assert sheet.height - one.height == (rows - 1) * (256 + 28)


def test_a_name_that_the_font_lacks_is_shown_as_a_number() -> None:
    assert is_drawable("0801_a b")
    for name in ("猫", "ночь", "a\N{COMBINING ACUTE ACCENT}", "two\nlines"):
        assert not is_drawable(name)


def test_long_labels_are_cut_and_any_character_is_drawn() -> None:
    images = [np.zeros((64, 64, 3), np.uint8)] * 2
    short = contact_sheet(["LR", "HR"], [("", images)], across=1)
    long = contact_sheet(["LR" * 99, "猫|é"], [("x" * 200, images)], across=1)
    assert long.size == short.size
    assert (np.asarray(long)[:, -12:] == 255).all()  # nothing runs over the right margin
