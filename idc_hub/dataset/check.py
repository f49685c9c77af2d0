"""What belongs to a repository tree, and whether it is fit to be published."""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import yaml
from huggingface_hub import DatasetCard

from idc_hub.dataset.manifest import FILE_NAME as MANIFEST
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.shards import verify_lr
from idc_hub.errors import RunError

CARD = "README.md"
RECIPE = "recipe.yaml"

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


def check_repository(folder: Path) -> dict[str, Any]:
    """Hold a repository tree to its idc.json as a consumer will see it: `load_dataset` of every config.

    Each config is loaded in a fresh temporary cache, which takes about as much room as its parquet files.

    Args:
        folder: `repo/` of a Run.

    Returns:
        What was found right: name, lr_digest, instances, patches, default, hr_versions (their names).

    Raises:
        RunError: Something is missing, damaged, or not what idc.json or the card says.
    """
    manifest = Manifest.load(folder)
    versions = set(manifest.hr_versions)
    if not versions:
        raise RunError(f"{folder} has no HR version yet.", "Run `idc regenerate` first.")
    for name in (CARD, RECIPE):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no {name}.", "Run `idc regenerate` again: it writes the whole tree.")
    on_disk = {version for path in own_files(folder) if (version := hr_version_of(path))}
    if on_disk != versions:
        raise RunError(
            f"{folder / 'data'} holds the HR versions {listed(on_disk)}, {MANIFEST} names {listed(versions)}.",
            "Run `idc regenerate` for those that differ.",
        )
    _check_configs(folder / CARD, manifest)
    verify_lr(folder / "lr", manifest)
    for version in sorted(versions):
        rows = _count_rows(folder, version)
        if rows != manifest.patches:
            raise RunError(
                f"{folder}: config {version} has {rows} rows, {MANIFEST} says {manifest.patches}.",
                "Run `idc regenerate` for this HR version again.",
            )
    return {
        "name": manifest.name,
        "lr_digest": manifest.lr_digest,
        "instances": manifest.instances,
        "patches": manifest.patches,
        "default": manifest.default,
        "hr_versions": sorted(versions),
    }


def listed(names: Iterable[str]) -> str:
    """Names in order, for a sentence."""
    return ", ".join(sorted(names)) or "(none)"


def one_line(words: object) -> str:
    """Somebody else's words, such as an error's, without line breaks and control characters, and at most 300 long."""
    text = "".join(c for c in " ".join(str(words).split()) if c.isprintable())
    return text if len(text) <= 300 else f"{text[:300]}…"


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
            f"The configs in {card} are {listed(names)} with the default {listed(defaults)}; {MANIFEST} says "
            f"{listed(manifest.hr_versions)} with the default {manifest.default}.",
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
