"""What belongs to a repository tree, and whether it is fit to be published."""

import re
import tempfile
from pathlib import Path

import datasets
import yaml
from huggingface_hub import DatasetCard

from idc_hub.dataset.condensed_set import CARD, RECIPE, CondensedSet
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import RunError, enumerated, one_line

_OURS = re.compile(
    r"README\.md|idc\.json|recipe\.yaml"
    r"|lr/(?:lr-\d{5}-of-\d{5}\.safetensors|lr\.safetensors\.index\.json)"
    r"|data/(?P<hr_version>[a-z0-9][a-z0-9-]*)/train-\d{5}-of-\d{5}\.parquet"
    r"|report/\w[\w.-]*\.(?:png|html)",
    re.ASCII,
)


def is_ours(path: str) -> bool:
    """Whether a path is one that a repository tree can have; on the Hub, all others are somebody else's."""
    return _OURS.fullmatch(path) is not None


def hr_version_of(path: str) -> str | None:
    """The HR version that a parquet file of a repository tree belongs to; None for all other paths."""
    match = _OURS.fullmatch(path)
    return match["hr_version"] if match else None


def own_files(folder: Path) -> dict[str, Path]:
    """The files of a repository tree by their path on the Hub; what else lies in the folder is left alone.

    Raises:
        RunError: One of them is a link.
    """
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {name: path for name, path in found.items() if is_ours(name)}
    for path in files.values():
        if path.is_symlink() or not path.is_file():
            raise RunError(f"{path} is not a plain file.", "Put the file itself there.")
    return files


def check_repository(condensed: CondensedSet, *, again: bool = False) -> None:
    """Hold a set to its idc.json as a consumer will see it: `load_dataset` of every config.

    Each config is loaded in a fresh temporary cache, which takes about as much room as its parquet files.

    Args:
        condensed: The set.
        again: Load and read also what this process has checked already and what has not changed since.

    Raises:
        RunError: Something is missing, damaged, or not what idc.json or the card says.
    """
    folder, manifest = condensed.folder, condensed.manifest
    versions = set(manifest.hr_versions)
    if not versions:
        raise RunError(f"{folder} has no HR version yet.", "Run `idc regenerate` first.")
    for name in (CARD, RECIPE):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no {name}.", "Run `idc regenerate` again: it writes the whole tree.")
    on_disk = {version for path in own_files(folder) if (version := hr_version_of(path))}
    if on_disk != versions:
        raise RunError(
            f"{folder / 'data'} holds the HR versions {enumerated(on_disk)}, {MANIFEST} names {enumerated(versions)}.",
            "Run `idc regenerate` for those that differ.",
        )
    _check_configs(folder / CARD, manifest)
    condensed.check_lr(again=again)
    for version in sorted(versions):
        if condensed.is_checked(version) and not again:
            continue
        rows = _count_rows(folder, version)
        if rows != manifest.patches:
            raise RunError(
                f"{folder}: config {version} has {rows} rows, {MANIFEST} says {manifest.patches}.",
                "Run `idc regenerate` for this HR version again.",
            )
        condensed.note_checked(version)


def _check_configs(card: Path, manifest: Manifest) -> None:
    """The card must name every HR version as a config, and exactly the right one as the default."""
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


def _count_rows(folder: Path, version: str) -> int:
    """Number of rows that `datasets` finds for a config of a local repository tree."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            return len(datasets.load_dataset(str(folder), version, split="train", cache_dir=cache))
    except Exception as error:  # whatever `datasets` stumbles over, a consumer would stumble over too
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise RunError(
            f"`load_dataset` cannot load config {version} of {folder}: {type(cause).__name__}: {one_line(cause)}",
            "Run `idc regenerate` for this HR version again.",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
