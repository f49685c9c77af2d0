"""Which files belong to a repository folder, and whether it can be published."""

import errno
import re
import tempfile
from itertools import zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from huggingface_hub import DatasetCard

from idc_hub.dataset import parquet
from idc_hub.dataset.condensed_set import CARD, RECIPE, CondensedSet, LRPatch
from idc_hub.dataset.manifest import MANIFEST, FileRecord, Manifest
from idc_hub.errors import ImageError, IncompleteError, RunError, enumerated, first_few, lacks_memory, one_line
from idc_hub.images.figures import rms_residual
from idc_hub.images.files import decode_png
from idc_hub.images.patches import is_mismatched, is_one_color, is_wrongly_one_color

_REPOSITORY_PATH = re.compile(
    r"README\.md|idc\.json|recipe\.yaml|LICENSE(?:\.md|\.txt)?"
    r"|lr/(?:lr-\d{5}-of-\d{5}\.safetensors|lr\.safetensors\.index\.json)"
    r"|data/(?P<hr_version>[a-z0-9][a-z0-9-]*)/train-\d{5}-of-\d{5}\.parquet"
    r"|report/patches\.png",
    re.ASCII,
)
_SAMPLE = 256
"""About how many rows, evenly spaced, have their HR compared with their LR."""
_ROUNDING = 1e-3
"""Gray levels by which a float32 in a row may differ from what it should be."""


def is_repository_path(path: str) -> bool:
    """Whether a path belongs to a set; idc-hub leaves all others alone, in the folder and on the Hub."""
    return _REPOSITORY_PATH.fullmatch(path) is not None


def hr_version_of(path: str) -> str | None:
    """The HR version of a parquet file, by its path; None for all other paths."""
    match = _REPOSITORY_PATH.fullmatch(path)
    return match["hr_version"] if match else None


def repository_files(folder: Path, *, cached: bool = False) -> dict[str, Path]:
    """The files of a repository folder by their path on the Hub, without any that do not belong to the set.

    Args:
        folder: The repository folder.
        cached: Whether `folder` may be a snapshot in the Hub's cache: then links to the blobs of the same repository
            in the cache count as files.

    Raises:
        RunError: One of them is another link.
    """
    blobs = _blobs_of_snapshot(folder) if cached else None
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {name: path for name, path in found.items() if is_repository_path(name)}
    for path in files.values():
        is_blob = blobs is not None and path.resolve().parent == blobs
        if (path.is_symlink() and not is_blob) or not path.is_file():
            raise RunError(f"{path} is not a plain file.", "Replace it with the file itself.")
    return files


def _blobs_of_snapshot(folder: Path) -> Path | None:
    """The folder with the files of a snapshot in the Hub's cache, `datasets--owner--name/snapshots/<commit>`."""
    repository = folder.resolve().parents[1]
    is_snapshot = folder.resolve().parent.name == "snapshots" and repository.name.startswith("datasets--")
    return repository / "blobs" if is_snapshot else None


def check_repository(condensed: CondensedSet, *, again: bool = False, cached: bool = False) -> list[str]:
    """Check a set as `check_contents` does, and its card, and load every config with `load_dataset` as a consumer does.

    Each config is loaded into a fresh temporary cache, which needs about as much disk space as its parquet files.

    Args:
        condensed: The set.
        again: Also check files that this process has already checked and that have not changed since.
        cached: Whether it may be a snapshot in the Hub's cache.

    Returns:
        Names of the pairs whose LR and HR have the same single color, as parts of a black border do.

    Raises:
        RunError: A file is missing or damaged, or contradicts idc.json or the card.
    """
    folder, manifest = condensed.folder, condensed.manifest
    versions = set(manifest.hr_versions)
    if not versions:
        raise RunError(f"{folder} has no HR version yet.", "Run `idc regenerate` first.")
    for name, verb in ((CARD, "idc regenerate"), (RECIPE, "idc condense")):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no {name}.", f"Run `{verb}` again, which writes it, or pull the set again.")
    files = repository_files(folder, cached=cached)
    for path in files.values():
        _check_transfer(path)
    on_disk = {version for path in files if (version := hr_version_of(path))}
    if on_disk != versions:
        raise RunError(
            f"{folder / 'data'} holds the HR versions {enumerated(on_disk)}; {MANIFEST} names {enumerated(versions)}.",
            "Run `idc regenerate` for those that differ.",
        )
    _check_configs(folder / CARD, manifest)
    one_color = check_contents(condensed, again=again)
    for version in sorted(versions):
        if condensed.is_checked(version, "loaded") and not again:
            continue
        rows = _count_rows(folder, version)
        if rows != manifest.patches:
            raise RunError(
                f"{folder}: config {version} has {rows} rows, {MANIFEST} says {manifest.patches}.",
                "Run `idc regenerate` for this HR version again.",
            )
        condensed.note_checked(version, "loaded")
    return one_color


def check_contents(condensed: CondensedSet, *, again: bool = False, except_for: str | None = None) -> list[str]:
    """Compare the LR patches and the HR versions of a set with its idc.json and with each other.

    Args:
        condensed: The set.
        again: Also check files that this process has already checked and that have not changed since.
        except_for: An HR version to leave out.

    Returns:
        Names of the pairs whose LR and HR have the same single color, as parts of a black border do.

    Raises:
        RunError: A file is missing or damaged, or something contradicts idc.json.
    """
    condensed.check_lr(again=again)
    one_color: set[str] = set()
    for version in sorted(condensed.manifest.hr_versions.keys() - {except_for}):
        if again or not condensed.is_checked(version, "read"):
            one_color.update(check_version(condensed, version))
            condensed.note_checked(version, "read")
    return sorted(one_color)


def check_version(condensed: CondensedSet, name: str) -> list[str]:
    """Check an HR version: the digests of its files, and every row.

    Ids, numbers and LR pixels of all rows must be those of the LR shards, and all images must be undamaged PNGs of the
    right size. `source_sha256` and `nearest_real` must be those in the index of the shards, where both have one. In a
    fixed sample HR must show what LR shows (`is_mismatched`), and `teacher_residual` must be that of the pixels. HR
    must not have a single color that LR does not have: then the teacher failed.

    Returns:
        See `check_contents`.

    Raises:
        RunError: See `check_contents`.
    """
    folder, manifest = condensed.data(name), condensed.manifest
    _check_files(condensed, name)
    # PNG compresses a single color to .4 % of its pixels' size.
    largest = 200 + (manifest.patch_size * manifest.scale) ** 2 * 3 // 100
    step = ceil(manifest.patches / _SAMPLE)
    wrongly_one_color, one_color, mismatched, wrong_residual = [], [], [], []
    for number, (row, expected) in enumerate(zip_longest(condensed.rows(name), condensed.lr_patches())):
        if row is None or expected is None or row.name != expected.name:
            found, wanted = (side.name if side else "nothing" for side in (row, expected))
            raise RunError(f"{folder}: row {number} is {found}; according to lr/ it is {wanted}.", parquet.REMEDY)
        lr = _decode(row.lr_png, f"{folder}: lr of {row.name}")
        if not np.array_equal(lr, expected.pixels.numpy().transpose(1, 2, 0)):
            raise RunError(f"{folder}: lr of {row.name} is not the patch in lr/.", parquet.REMEDY)
        _check_facts(folder, row, expected)
        if number % step and len(row.hr_png) > largest:
            continue
        hr = _decode(row.hr_png, f"{folder}: hr of {row.name}")
        pair = [image.transpose(2, 0, 1)[None] for image in (lr, hr)]
        if is_wrongly_one_color(*pair).any():
            wrongly_one_color.append(row.name)
        elif (is_one_color(pair[0]) & is_one_color(pair[1])).any():
            one_color.append(row.name)
        elif number % step == 0 and is_mismatched(lr, hr, manifest.scale):
            mismatched.append(row.name)
        if row.teacher_residual is not None and not abs(row.teacher_residual - rms_residual(lr, hr)) < _ROUNDING:
            wrong_residual.append(row.name)
    for bad, problem, cause in (
        (wrongly_one_color, "HR has a single color that LR does not have", "the teacher failed"),
        (mismatched, "HR, downscaled, has nothing in common with LR", "rows were swapped, or the teacher failed"),
        (wrong_residual, "teacher_residual is not that of the pixels", "rows were changed"),
    ):
        if bad:
            raise RunError(
                f"{folder}: {problem} in {first_few(bad)}; {cause}.",
                f"Delete {folder} and run `idc regenerate --name {name}`, if necessary with another teacher.",
            )
    return one_color


def _check_facts(folder: Path, row: parquet.Row, expected: LRPatch) -> None:
    """Compare what a row says about its LR patch with the index of the shards, as far as both say something."""
    if None not in (row.source_sha256, expected.source_sha256) and row.source_sha256 != expected.source_sha256:
        raise RunError(f"{folder}: source_sha256 of {row.name} is not the one in lr/.", parquet.REMEDY)
    found, wanted = row.nearest_real, expected.nearest_real
    if found is not None and wanted is not None and not abs(found - wanted) < _ROUNDING:  # NaN is not below it
        raise RunError(f"{folder}: nearest_real of {row.name} is not the one in lr/.", parquet.REMEDY)


def _check_files(condensed: CondensedSet, name: str) -> None:
    """Compare the files of an HR version with their sizes and digests in idc.json, as far as it has them."""
    version = condensed.manifest.hr_versions[name]
    paths = parquet.files_of(condensed.data(name))
    if version.files is None:
        size = sum(path.stat().st_size for path in paths)
        if size != version.bytes:
            raise RunError(f"{condensed.data(name)} has {size} bytes; {MANIFEST} says {version.bytes}.", parquet.REMEDY)
        return
    if [path.name for path in paths] != sorted(version.files):
        raise RunError(f"{condensed.data(name)} holds other files than {MANIFEST} names.", parquet.REMEDY)
    for path in paths:
        if FileRecord.of(path) != version.files[path.name]:
            raise RunError(f"{path} is damaged: its digest is not the one in {MANIFEST}.", parquet.REMEDY)


def _decode(png: bytes, name: str) -> np.ndarray:
    try:
        return decode_png(png, name)
    except ImageError as error:
        raise RunError(error.message, parquet.REMEDY) from error


def _check_transfer(path: Path) -> None:
    """Raise a RunError if git left a pointer in place of a file, or changed the line ends of a binary file."""
    with path.open("rb") as file:
        start = file.read(1_000_000)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise RunError(f"{path} is a pointer of Git LFS, not the file itself.", "Run `git lfs pull` in the clone.")
    is_binary = path.suffix in (".parquet", ".safetensors", ".png")
    # A binary file whose every line feed follows a carriage return did not come about by chance.
    if is_binary and start.count(b"\n") == start.count(b"\r\n") > 2:
        raise RunError(
            f"git changed the line ends in {path}, which is a binary file.",
            "Clone again with `git -c core.autocrlf=false clone`, or use `idc pull`.",
        )


def _check_configs(card: Path, manifest: Manifest) -> None:
    """The card must list every HR version as a config, and only the default version as the default."""
    try:
        text = card.read_bytes().decode()
        if text.startswith("\ufeff"):
            raise RunError(
                f"{card} begins with a byte order mark, which hides its metadata from the Hub.",
                "Save it as UTF-8 without a byte order mark.",
            )
        configs = DatasetCard(text).data.to_dict().get("configs") or []
        names = {config["config_name"] for config in configs if _is_version(config)}
        defaults = [config["config_name"] for config in configs if config.get("default")]
    except RunError:
        raise
    except Exception as error:  # PyYAML raises nearly every class there is
        raise RunError(f"The YAML block at the top of {card} cannot be read: {one_line(error)}") from error
    if names != set(manifest.hr_versions) or defaults != [manifest.default]:
        raise RunError(
            f"The configs in {card} are {enumerated(names)} with the default {enumerated(defaults)}; {MANIFEST} says "
            f"{enumerated(manifest.hr_versions)} with the default {manifest.default}.",
            "Run `idc regenerate` again: it writes the card.",
        )


def _is_version(config: dict[str, Any]) -> bool:
    """Whether a config is an HR version; an owner's card may have others."""
    files = config.get("data_files")
    return isinstance(files, list) and _files_of(config["config_name"]) in files


def _files_of(hr_version: str) -> dict[str, str]:
    return {"split": "train", "path": f"data/{hr_version}/train-*"}


def _without_owners_data(folder: Path, scratch: Path) -> Path:
    """A view of a repository folder with the HR versions alone.

    `idc pull` leaves out the files of the owner's own configs and splits, and no config may name others outside.
    """
    card = DatasetCard((folder / CARD).read_bytes().decode())
    facts = card.data.to_dict()
    names = [config["config_name"] for config in facts["configs"] if _is_version(config)]
    configs = [{"config_name": name, "data_files": [_files_of(name)]} for name in names]
    if [{k: v for k, v in config.items() if k != "default"} for config in facts["configs"]] == configs:
        return folder
    infos = [info for info in facts.get("dataset_info") or [] if info.get("config_name") in names]
    for info in infos:
        info["splits"] = [split for split in info.get("splits") or [] if split.get("name") == "train"]
    view = scratch / "repository"
    view.mkdir()
    (view / "data").symlink_to((folder / "data").absolute())
    front = {"configs": configs, "dataset_info": [{k: v for k, v in info.items() if v} for info in infos]}
    (view / CARD).write_text(f"---\n{yaml.safe_dump(front)}---\n", encoding="utf-8")
    return view


def _count_rows(folder: Path, version: str) -> int:
    """Number of rows that `load_dataset` finds for a config of a repository folder."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            view = _without_owners_data(folder, Path(cache))
            return len(datasets.load_dataset(str(view), version, split="train", cache_dir=cache))
    except Exception as error:  # whatever fails here would fail for a consumer too
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if lacks_memory(cause):
            raise cause from None
        if getattr(cause, "errno", None) == errno.ENOSPC or "Not enough disk space" in str(cause):
            raise IncompleteError(
                f"`load_dataset` cannot load config {version}: the temporary folder {tempfile.gettempdir()} is full.",
                "Free space there, or set TMPDIR to another folder, and run the same command again.",
            ) from error
        raise RunError(
            f"`load_dataset` cannot load config {version} of {folder}: {type(cause).__name__}: {one_line(cause)}",
            "Run `idc regenerate` for this HR version again.",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
