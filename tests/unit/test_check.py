"""The check of an HR version: wrong rows, wrong pixels, damaged files, and what an older idc.json leaves open."""

import errno
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data

from idc_hub.dataset.check import check_contents
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import FileRecord
from idc_hub.dataset.parquet import Row, files_of, read_rows, write_rows
from idc_hub.dataset.pictures import draw_patches
from idc_hub.dataset.regenerate import add_version, regenerate
from idc_hub.dataset.shards import Facts, write_shards
from idc_hub.errors import IncompleteError, RunError
from idc_hub.images.files import decode_png, encode_png
from idc_hub.images.patches import is_mismatched
from idc_hub.images.resize import imresize
from idc_hub.networks.registry import create
from idc_hub.networks.teachers import Teacher, load_teacher, upscale
from idc_hub.verbs.verify import verify

MakeTeacher = Callable[..., Teacher]


@pytest.fixture
def nearest(repo: Path, make_teacher: MakeTeacher) -> Path:
    """A set with the HR version `nearest`, loadable and with a card."""
    add_version(CondensedSet(repo), make_teacher("repeat"), "nearest", set_default=True, progress=False)
    return repo


def rows_of(repo: Path) -> list[Row]:
    return list(read_rows(repo / "data/nearest"))


def rewrite(repo: Path, rows: list[Row], *, with_digests: bool = True) -> None:
    """Replace the rows as somebody would who also writes the right sizes and digests into idc.json."""
    folder, condensed = repo / "data/nearest", CondensedSet(repo)
    size = write_rows(folder, rows)
    files = {path.name: FileRecord.of(path) for path in files_of(folder)} if with_digests else None
    with condensed.updating() as manifest:
        version = manifest.hr_versions["nearest"]
        manifest.hr_versions["nearest"] = version.model_copy(update={"bytes": size.file_bytes, "files": files})


def flipped(png: bytes) -> bytes:
    """The same image upside down."""
    return encode_png(decode_png(png)[::-1].copy())


def bomb(width: int, height: int) -> bytes:
    """A sound 1-bit PNG of few bytes."""
    line = b"\0" + bytes((width + 7) // 8)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(line * height))
    parts = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_sound_version_passes_with_and_without_digests(nearest: Path) -> None:
    assert check_contents(CondensedSet(nearest), again=True) == []
    assert "matches its digest" in (verify(nearest).checked or {})["data/nearest/train-00000-of-00001.parquet"]
    rewrite(nearest, rows_of(nearest), with_digests=False)
    assert '"files"' not in (nearest / "idc.json").read_text()
    assert "no digest in idc.json" in (verify(nearest).checked or {})["data/nearest/train-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: [replace(r[0], lr_png=r[1].lr_png), *r[1:]], "lr of patch_index 0 of instance_id bridge is not the"),
        (
            lambda r: [replace(r[0], patch_index=7), *r[1:]],
            "row 0 is patch_index 7 of instance_id bridge; .* it is patch",
        ),
        (lambda r: [replace(r[0], instance_id="dog"), *r[1:]], "row 0 is patch_index 0 of instance_id dog"),
        (lambda r: r[:-1], "row 5 is nothing; according to lr/ it is patch_index 0 of instance_id tower"),
        (lambda r: [*r, r[-1]], "row 6 is .*; according to lr/ it is nothing"),
        (lambda r: [replace(r[0], hr_png=r[0].lr_png), *r[1:]], "hr of patch_index 0 .* 8-bit RGB PNG of 16 x 16"),
        (lambda r: [replace(r[0], hr_png=bomb(16, 16)), *r[1:]], "is not an 8-bit RGB PNG of 16 x 16 pixels"),
        (lambda r: [replace(r[0], hr_png=b"PNG"), *r[1:]], "is not an 8-bit RGB PNG of 16 x 16 pixels"),
        (lambda r: [replace(r[0], hr_png=r[0].hr_png[:-30]), *r[1:]], "hr of patch_index 0 .* damaged or truncated"),
        (
            lambda r: [replace(r[0], hr_png=r[1].hr_png), *r[1:]],
            "nothing in common with LR in patch_index 0 of .*bridge;",
        ),
        (lambda r: [replace(r[0], hr_png=flipped(r[0].hr_png)), *r[1:]], "nothing in common with LR"),
        (
            lambda r: [replace(r[0], hr_png=encode_png(np.zeros((16, 16, 3), np.uint8))), *r[1:]],
            "HR has a single color that LR does not have in patch_index 0 of instance_id bridge; the teacher failed",
        ),
    ],
)
def test_rows_that_contradict_the_set(nearest: Path, change: Callable[[list[Row]], list[Row]], sentence: str) -> None:
    rewrite(nearest, change(rows_of(nearest)))
    with pytest.raises(RunError, match=sentence):
        check_contents(CondensedSet(nearest), again=True)


def test_facts_of_rows_must_be_those_of_the_index_and_of_the_pixels(nearest: Path) -> None:
    patches = {name: tensor.numpy() for name, tensor in CondensedSet(nearest).patches()}
    facts = {
        name: Facts(source_sha256=name[0] * 64, nearest_real=[float(number) for number in range(len(array))])
        for name, array in (("bridge", patches["bridge"]), ("cat", patches["cat"]))
    }
    write_shards(nearest / "lr", patches.items(), metadata={}, facts=facts | {"tower": Facts()})
    verify(nearest)  # this HR version was made when the index had no facts
    rows = [
        replace(row, source_sha256=row.instance_id[0] * 64, nearest_real=float(row.patch_index))
        for row in rows_of(nearest)
    ]
    rewrite(nearest, rows)
    verify(nearest)
    for change, sentence in (
        ({"source_sha256": "0" * 64}, "source_sha256 of patch_index 1 of instance_id bridge is not the one in lr/"),
        ({"nearest_real": 1.25}, "nearest_real of patch_index 1 of instance_id bridge is not the one in lr/"),
        ({"nearest_real": float("nan")}, "nearest_real of patch_index 1 of instance_id bridge is not the one in lr/"),
        ({"teacher_residual": 0.5}, "teacher_residual is not that of the pixels in patch_index 1 of instance_id bri"),
    ):
        rewrite(nearest, [rows[0], replace(rows[1], **change), *rows[2:]])
        with pytest.raises(RunError, match=sentence):
            verify(nearest)


def test_every_flipped_bit_of_a_parquet_file_is_noticed(nearest: Path) -> None:
    path = nearest / "data/nearest/train-00000-of-00001.parquet"
    sound, rng = path.read_bytes(), random.Random(0)
    for bit in rng.sample(range(8 * len(sound)), 60):
        path.write_bytes(sound[: bit // 8] + bytes([sound[bit // 8] ^ 1 << bit % 8]) + sound[bit // 8 + 1 :])
        with pytest.raises(RunError, match="damaged"):
            verify(nearest)
    path.write_bytes(sound)
    verify(nearest)


def test_a_bit_flipped_in_a_picture_is_noticed_without_digests(nearest: Path) -> None:
    rng = random.Random(1)
    for number, row in enumerate(rows := rows_of(nearest)):
        bit = rng.randrange(8 * len(row.hr_png))
        damaged = bytearray(row.hr_png)
        damaged[bit // 8] ^= 1 << bit % 8
        rewrite(nearest, [*rows[:number], replace(row, hr_png=bytes(damaged)), *rows[number + 1 :]], with_digests=False)
        with pytest.raises(RunError, match=f"hr of {row.name}"):
            check_contents(CondensedSet(nearest), again=True)


def test_a_png_bomb_is_refused_before_it_is_decoded(nearest: Path, make_teacher: MakeTeacher) -> None:
    rewrite(nearest, [replace(row, hr_png=bomb(12_000, 12_000)) for row in rows_of(nearest)])
    sentence = "hr of patch_index . of instance_id .* is not an 8-bit RGB PNG of 16 x 16 pixels"
    with pytest.raises(RunError, match=sentence):
        draw_patches(CondensedSet(nearest))
    with pytest.raises(RunError, match=sentence):
        add_version(CondensedSet(nearest), make_teacher("darken"), "dark", set_default=True, progress=False)
    assert not (nearest / "data/dark").exists()


def test_a_damaged_version_stops_another_one_and_is_made_again(nearest: Path, make_teacher: MakeTeacher) -> None:
    path = nearest / "data/nearest/train-00000-of-00001.parquet"
    sound = path.read_bytes()
    path.write_bytes(sound[:99] + bytes([sound[99] ^ 1]) + sound[100:])
    with pytest.raises(RunError, match="digest"):
        add_version(CondensedSet(nearest), make_teacher("darken"), "dark", set_default=True, progress=False)
    assert not (nearest / "data/dark").exists()
    assert regenerate(CondensedSet(nearest), make_teacher("repeat"), "nearest").written
    assert path.read_bytes() == sound


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"the temporary folder .* is full\. Free space there"),
        (OSError("Not enough disk space. Needed: 1 GB"), r"the temporary folder .* is full\. Free space there"),
        (RuntimeError("can't start new thread"), "^can't start new thread$"),
        (ValueError("a wrong byte"), "cannot load config nearest .* ValueError: a wrong byte Run `idc regenerate`"),
    ],
)
def test_what_the_machine_lacks_is_not_taken_for_damage(
    cause: Exception, sentence: str, nearest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from cause

    monkeypatch.setattr(datasets, "load_dataset", fail)
    expected = {OSError: IncompleteError, RuntimeError: RuntimeError, ValueError: RunError}[type(cause)]
    with pytest.raises(expected) as raised:
        verify(nearest)
    assert re.search(sentence, str(raised.value))


def test_pairs_of_one_color_are_named(tmp_path: Path, repo: Path, make_teacher: MakeTeacher) -> None:
    condensed = CondensedSet(repo)
    patches = {name: tensor.numpy().copy() for name, tensor in condensed.patches()}
    patches["cat"][1] = 0
    digest = write_shards(repo / "lr", patches.items(), metadata={})
    condensed.manifest.lr_digest = digest
    condensed.manifest.save(repo)
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    assert check_contents(CondensedSet(repo)) == ["patch_index 1 of instance_id cat"]


def test_bad_teachers_are_not_mismatches_and_other_photographs_are() -> None:
    shrunk = [imresize(photograph[:296, :296], 1 / 4) for photograph in (data.astronaut(), data.coffee(), data.cat())]
    crops = [lr[top : top + 48, left : left + 48] for lr in shrunk for top in (0, 13, 26) for left in (0, 13, 26)]
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    lr = torch.from_numpy(np.stack([*crops, *noise])).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    untrained = create("edsr-tiny", scale=4).eval()
    bicubic = load_teacher("bicubic", scale=4)(lr)
    teachers = {
        "bicubic": bicubic,
        "EDSR": load_teacher("edsr-small", scale=4)(lr),
        "untrained": upscale(untrained, lr, margin=8),
        "blurred": torch.from_numpy(gaussian_filter(bicubic.numpy(), (0, 0, 4, 4))),
        "dark": bicubic // 2,
        "noisy": (bicubic + 40 * torch.randn(bicubic.shape)).clamp(0, 255).byte(),
    }
    pixels = lr.permute(0, 2, 3, 1).numpy()
    for name, hr in teachers.items():
        images = hr.permute(0, 2, 3, 1).contiguous().numpy()
        assert not [k for k, own in enumerate(images) if is_mismatched(pixels[k], own, 4)], name
        swapped = [is_mismatched(pixels[k], images[k - 9], 4) for k in range(len(images))]
        assert np.mean(swapped) > 0.7, name
    garbage = np.random.default_rng(1).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    gray = np.full_like(garbage, 128)
    assert all(is_mismatched(one, hr, 4) for one in pixels for hr in (garbage, gray))
