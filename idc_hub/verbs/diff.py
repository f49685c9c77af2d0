"""diff: compare two sets, or two HR versions of one set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.shards import read_index
from idc_hub.errors import RunError
from idc_hub.images.files import decode_png
from idc_hub.images.metrics import Protocol, psnr
from idc_hub.runs.progress import Reporting, counting
from idc_hub.verbs.pull import pull


@dataclass(frozen=True)
class DiffSide:
    """One of the two sets that `diff` compares.

    Attributes:
        place: The set, as it was given.
        name: Name of its recipe.
        lr_recipe_hash: Hash of the recipe keys that determine the LR patches.
        lr_digest: SHA-256 of the LR patches.
        photographs: Number of photographs that have patches.
        patches: Number of LR patches, which is the number of rows of each HR version.
        default: The HR version that `load_dataset` gives without a config name.
        hr_versions: For each HR version, the name of its teacher.
    """

    place: str
    name: str
    lr_recipe_hash: str
    lr_digest: str
    photographs: int
    patches: int
    default: str | None
    hr_versions: dict[str, str]


@dataclass(frozen=True)
class HRDifference:
    """How far two HR versions of the same LR patches are apart.

    Attributes:
        a: Name of the version in the first set.
        b: Name of the version in the second set.
        equal: Number of patches whose pixels are equal.
        psnr: For each protocol the PSNR in dB, a mean over the patches that differ under it; None if none differs.
    """

    a: str
    b: str
    equal: int
    psnr: dict[str, float | None]


@dataclass(frozen=True)
class DiffResult:
    """Result of `diff`.

    Attributes:
        a: Facts about the first set.
        b: Facts about the second set.
        recipe: For each recipe key that differs its two values; None where a recipe does not have the key.
        only_a: Ids of the photographs that only the first set has.
        only_b: Ids of the photographs that only the second set has.
        hr: The HR versions compared; empty if the LR patches differ or no version is in both sets.
    """

    a: DiffSide
    b: DiffSide
    recipe: dict[str, list[Any]]
    only_a: list[str]
    only_b: list[str]
    hr: list[HRDifference]


def diff(a: str | Path, b: str | Path, *, token: str | None = None, progress: Reporting = True) -> DiffResult:
    """Compare two sets: recipes, photographs, LR patches, and the pixels of their HR versions.

    HR versions can be compared only if the LR patches are the same. If `a` or `b` names a version, that one is
    compared with the other's named or default version; otherwise all versions that both sets have are compared.

    Args:
        a: A Run, a repository folder, or a Hub repository, which is downloaded to a temporary folder. `org/name@v1.0.0`
            is a revision of a repository, `RUN:version` an HR version of a set.
        b: The same.
        token: Access token; None: HF_TOKEN, or the login of `hf auth login`.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        What differs. PSNR is measured in RGB and in luma, with a border as wide as the scale.

    Raises:
        RunError: There is no set or no such HR version, or a file is damaged.
        HubError: A repository cannot be downloaded.
    """
    with ExitStack() as stack:
        first, version_a = _open(str(a), token, stack)
        second, version_b = _open(str(b), token, stack)
        photographs_a, photographs_b = (set(read_index(side.lr)["weight_map"]) for side in (first, second))
        recipe_a, recipe_b = (dict(_flat(side.recipe)) for side in (first, second))
        keys = [key for key in recipe_a | recipe_b if recipe_a.get(key) != recipe_b.get(key)]
        if version_a or version_b:
            pairs = [(first.hr_version(version_a), second.hr_version(version_b))]
        else:
            pairs = [(name, name) for name in first.manifest.hr_versions if name in second.manifest.hr_versions]
        same_lr = first.manifest.lr_digest == second.manifest.lr_digest
        return DiffResult(
            a=_side(str(a), first),
            b=_side(str(b), second),
            recipe={key: [recipe_a.get(key), recipe_b.get(key)] for key in keys},
            only_a=sorted(photographs_a - photographs_b),
            only_b=sorted(photographs_b - photographs_a),
            hr=[_compare(first, second, *pair, progress) for pair in pairs] if same_lr else [],
        )


def _open(text: str, token: str | None, stack: ExitStack) -> tuple[CondensedSet, str | None]:
    """The set that a text names, and the HR version if it names one. A set from the Hub goes when the stack closes."""
    place, version = text, None
    if not Path(text).exists() and ":" in text:
        place, _, version = text.rpartition(":")
    if Path(place).exists():
        return CondensedSet.open(place), version
    repo_id, _, revision = place.partition("@")
    folder = stack.enter_context(TemporaryDirectory(prefix="idc-diff-"))
    pull(repo_id, run_dir=folder, only=version, revision=revision or None, token=token)
    return CondensedSet.open(folder), version


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _side(place: str, condensed: CondensedSet) -> DiffSide:
    manifest = condensed.manifest
    return DiffSide(
        place=place,
        name=manifest.name,
        lr_recipe_hash=manifest.lr_recipe_hash,
        lr_digest=manifest.lr_digest,
        photographs=manifest.instances,
        patches=manifest.patches,
        default=manifest.default,
        hr_versions={name: version.teacher.name for name, version in manifest.hr_versions.items()},
    )


def _compare(first: CondensedSet, second: CondensedSet, a: str, b: str, progress: Reporting) -> HRDifference:
    """Compare all HR patches of two versions, one pair in memory at a time."""
    scale, total, equal = first.manifest.scale, first.manifest.patches, 0
    found: dict[Protocol, list[float]] = {Protocol("rgb", scale, scale): [], Protocol("y", scale, scale): []}
    with counting(f"comparing {a} with {b}", progress) as count:
        for done, (one, other) in enumerate(zip(first.rows(a), second.rows(b), strict=True), start=1):
            if one.name != other.name:
                raise RunError(f"{first.data(a)} and {second.data(b)} have other rows: {one.name}, {other.name}.")
            pixels = decode_png(one.hr_png), decode_png(other.hr_png)
            equal += bool((pixels[0] == pixels[1]).all())
            for protocol, values in found.items():
                values.append(psnr(*pixels, protocol))
            if count:
                count(done, total)
    means = {}
    for protocol, values in found.items():
        finite = [value for value in values if value != math.inf]
        means[str(protocol)] = math.fsum(finite) / len(finite) if finite else None
    return HRDifference(a, b, equal, means)
