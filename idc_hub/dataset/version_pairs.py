"""The (lr, hr) pairs of an HR version, ready to train on."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.parquet import read_rows
from idc_hub.errors import RecipeError, RunError
from idc_hub.images.files import read_image
from idc_hub.images.sources import MAX_THREADS
from idc_hub.training.pairs import Pair


def read_version(tree: Path, scale: int, hr_version: str | None = None) -> tuple[list[Pair], dict[str, str]]:
    """Read an HR version of a repository tree.

    Args:
        tree: The repository tree.
        scale: The scale that the pairs are for.
        hr_version: Which HR version; None: the set's own default.

    Returns:
        The pairs in order, and what they are: `condensed_set` or `selection`, `hr_version`, `lr_digest`.

    Raises:
        RunError: There is no such version, or its files are damaged.
        RecipeError: The set has another scale.
    """
    manifest = Manifest.load(tree)
    version = hr_version or manifest.default
    if version not in manifest.hr_versions:
        names = ", ".join(manifest.hr_versions) or "none yet"
        raise RunError(f"{tree} has no HR version {version}.", f"Its HR versions: {names}.")
    if manifest.scale != scale:
        raise RecipeError(f"{tree} is a set for x{manifest.scale}, not for x{scale}.", f"Say --scale {manifest.scale}.")
    pairs = decode_pairs((row.lr_png, row.hr_png) for row in read_rows(tree / "data" / version))
    kind = "selection" if _method(tree) != "idc" else "condensed_set"
    return pairs, {kind: manifest.name, "hr_version": version, "lr_digest": manifest.lr_digest}


def _method(tree: Path) -> str:
    """How the LR patches were made. Only this key is looked at: a newer idc-hub may have written others."""
    path = tree / "recipe.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(values.get("method", "idc"))


def decode_pairs(rows: Iterable[tuple[bytes, bytes]]) -> list[Pair]:
    """Pairs from the bytes of their image files; the decoder works in several threads at once.

    Raises:
        ImageError: An image is damaged.
    """

    def decode(row: tuple[int, tuple[bytes, bytes]]) -> Pair:
        number, (lr, hr) = row
        return read_image(lr, f"LR of row {number}").pixels, read_image(hr, f"HR of row {number}").pixels

    with ThreadPoolExecutor(MAX_THREADS) as pool:
        return list(pool.map(decode, enumerate(rows)))
