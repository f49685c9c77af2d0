"""Which files belong to a repository folder, and whether it can be published."""

import re
import tempfile
from pathlib import Path

import datasets
import yaml
from huggingface_hub import DatasetCard

from idc_hub.dataset import parquet
from idc_hub.dataset.condensed_set import CARD, RECIPE, CondensedSet
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import RunError, enumerated, one_line
from idc_hub.images.files import decode_png
from idc_hub.images.patches import is_one_color, is_wrongly_one_color

_REPOSITORY_PATH = re.compile(
    r"README\.md|idc\.json|recipe\.yaml"
    r"|lr/(?:lr-\d{5}-of-\d{5}\.safetensors|lr\.safetensors\.index\.json)"
    r"|data/(?P<hr_version>[a-z0-9][a-z0-9-]*)/train-\d{5}-of-\d{5}\.parquet"
    r"|report/\w[\w.-]*\.(?:png|html)",
    re.ASCII,
)


def is_repository_path(path: str) -> bool:
    """Whether idc-hub writes files of this path; it leaves all others alone, in the folder and on the Hub."""
    return _REPOSITORY_PATH.fullmatch(path) is not None


def hr_version_of(path: str) -> str | None:
    """The HR version of a parquet file, by its path; None for all other paths."""
    match = _REPOSITORY_PATH.fullmatch(path)
    return match["hr_version"] if match else None


def repository_files(folder: Path) -> dict[str, Path]:
    """The files of a repository folder by their path on the Hub, without any that idc-hub does not write.

    Raises:
        RunError: One of them is a link.
    """
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {name: path for name, path in found.items() if is_repository_path(name)}
    for path in files.values():
        if path.is_symlink() or not path.is_file():
            raise RunError(f"{path} is not a plain file.", "Replace it with the file itself.")
    return files


def check_repository(condensed: CondensedSet, *, again: bool = False) -> list[str]:
    """Check a set against its idc.json and its card, and load every config with `load_dataset` as a consumer would.

    Each config is loaded into a fresh temporary cache, which needs about as much disk space as its parquet files. An HR
    patch of a single color that its LR patch does not have is an error: its teacher failed.

    Args:
        condensed: The set.
        again: Also check files that this process has already checked and that have not changed since.

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
    on_disk = {version for path in repository_files(folder) if (version := hr_version_of(path))}
    if on_disk != versions:
        raise RunError(
            f"{folder / 'data'} holds the HR versions {enumerated(on_disk)}; {MANIFEST} names {enumerated(versions)}.",
            "Run `idc regenerate` for those that differ.",
        )
    _check_configs(folder / CARD, manifest)
    condensed.check_lr(again=again)
    one_color: set[str] = set()
    for version in sorted(versions):
        if condensed.is_checked(version) and not again:
            continue
        rows = _count_rows(folder, version)
        if rows != manifest.patches:
            raise RunError(
                f"{folder}: config {version} has {rows} rows, {MANIFEST} says {manifest.patches}.",
                "Run `idc regenerate` for this HR version again.",
            )
        one_color.update(_check_colors(condensed.data(version), manifest))
        condensed.note_checked(version)
    return sorted(one_color)


def _check_configs(card: Path, manifest: Manifest) -> None:
    """The card must list every HR version as a config, and only the default version as the default."""
    try:
        configs = DatasetCard(card.read_bytes().decode()).data.to_dict().get("configs") or []
        names = {config["config_name"] for config in configs}
        defaults = [config["config_name"] for config in configs if config.get("default")]
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise RunError(f"The YAML block at the top of {card} cannot be read: {one_line(error)}") from error
    if names != set(manifest.hr_versions) or defaults != [manifest.default]:
        raise RunError(
            f"The configs in {card} are {enumerated(names)} with the default {enumerated(defaults)}; {MANIFEST} says "
            f"{enumerated(manifest.hr_versions)} with the default {manifest.default}.",
            "Run `idc regenerate` again: it writes the card.",
        )


def _check_colors(folder: Path, manifest: Manifest) -> list[str]:
    """Find HR patches of a single color: raises a RunError if LR differs, and returns the names of the other pairs.

    Decodes only files small enough to hold a single color, which PNG compresses to .4 % of its pixels' size.
    """
    largest = 200 + (manifest.patch_size * manifest.scale) ** 2 * 3 // 100
    bad, one_color = [], []
    for row in parquet.read_rows(folder):
        if len(row.hr_png) <= largest:
            name = f"patch_index {row.patch_index} of instance_id {row.instance_id}"
            lr, hr = (decode_png(png, f"{folder}: {name}").transpose(2, 0, 1)[None] for png in (row.lr_png, row.hr_png))
            if is_wrongly_one_color(lr, hr).any():
                bad.append(name)
            elif (is_one_color(lr) & is_one_color(hr)).any():
                one_color.append(name)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise RunError(
            f"{folder}: HR has a single color that LR does not have in {', '.join(bad[:3])}{more}; the teacher failed.",
            f"Delete {folder} and run `idc regenerate --name {folder.name}`, if necessary with another teacher.",
        )
    return one_color


def _count_rows(folder: Path, version: str) -> int:
    """Number of rows that `load_dataset` finds for a config of a repository folder."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            return len(datasets.load_dataset(str(folder), version, split="train", cache_dir=cache))
    except Exception as error:  # whatever fails here would fail for a consumer too
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise RunError(
            f"`load_dataset` cannot load config {version} of {folder}: {type(cause).__name__}: {one_line(cause)}",
            "Run `idc regenerate` for this HR version again.",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
