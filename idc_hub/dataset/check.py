"""What belongs to a repository tree, and whether it is fit to be published."""

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


def check_repository(condensed: CondensedSet, *, again: bool = False) -> list[str]:
    """Hold a set to its idc.json as a consumer will see it: `load_dataset` of every config.

    Each config is loaded in a fresh temporary cache, which takes about as much room as its parquet files. HR patches of
    one color are held to their LR patches: those that are not of that color come from a teacher that failed.

    Args:
        condensed: The set.
        again: Load and read also what this process has checked already and what has not changed since.

    Returns:
        Names of the pairs whose LR and HR are both of the same single color, as pieces of a black border are.

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


def _check_colors(folder: Path, manifest: Manifest) -> list[str]:
    """No HR patch of an HR version may be of one color that its LR patch is not; returns the pairs of one color.

    Every row is looked at, but only what is small enough for one color is decoded: PNG takes .4 % of such pixels.
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
            f"{folder}: HR is of one color, and LR is not, in {', '.join(bad[:3])}{more}; the teacher failed there.",
            f"Delete {folder} and run `idc regenerate --name {folder.name}`, with another teacher if need be.",
        )
    return one_color


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
