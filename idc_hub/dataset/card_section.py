"""The generated section of the card: facts from the repository folder, rendered with `card_template.md`.

idc.json and recipe.yaml can come from anybody, so every value is checked or escaped before it reaches the card.
"""

import json
import math
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from idc_hub.dataset import parquet
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.judgment import FIGURES, judge, table
from idc_hub.dataset.manifest import Manifest, TeacherRecord
from idc_hub.dataset.pictures import PICTURE, is_drawable
from idc_hub.dataset.shards import read_index
from idc_hub.errors import RunError
from idc_hub.images.figures import COPIED
from idc_hub.recipe import Recipe
from idc_hub.recipe_reader import sections_of

_REMEDY = "Pull the repository again."
_SHOWN_ELSEWHERE = (
    "photographs",
    "real_patches",
    "conversions",
    "steps",
    "worker_seconds",
    "held_out",
    "held_out_random",
    "results",
    "quality",
)


@dataclass(frozen=True)
class Version:
    """An HR version on the card."""

    name: str
    default: bool
    teacher: TeacherRecord
    date: str
    size: parquet.Size

    @property
    def is_real(self) -> bool:
        """Whether its HR patches were cut from the photographs rather than made by a teacher."""
        return self.teacher.kind == "photographs"


def read_versions(condensed: CondensedSet) -> list[Version]:
    """The HR versions of a set: the default first, then the newest.

    Raises:
        RunError: A version is damaged, or its number of rows contradicts idc.json.
    """
    versions = []
    manifest = condensed.manifest
    for name, version in sorted(manifest.hr_versions.items()):
        size = parquet.size_of_version(condensed.data(name))
        if size.rows != manifest.patches:
            raise RunError(f"{condensed.data(name)} has {size.rows} rows, not {manifest.patches}.", _REMEDY)
        versions.append(Version(name, name == manifest.default, version.teacher, version.date, size))
    return sorted(versions, key=lambda version: (version.default, version.date), reverse=True)


_METHODS = {
    "whole": "without leaving any out",
    "random": "at random",
    "herding": "by herding (Welling 2009), so that their mean feature is close to that of all patches",
    "herding-deepcore": "by herding as in DeepCore's released code, which inverts a sign and so takes the farthest "
    "patch instead of the nearest",
    "k-center": "by k-center greedy (Sener & Savarese 2018), so that no patch is far from all of them",
    "dcsr": "as in DCSR (Ding et al. 2023), with equal numbers of each kind of texture among the patches with strong "
    "edges; local binary patterns replace its texture network",
    "cf-greedy": "separately in each photograph, so that their local features are distributed like those of all its "
    "patches",
    "hardness": "as those that upscaling gets most wrong, without the very hardest (SamplingAug, arXiv 2111.15185; "
    "Moser et al., arXiv 2403.17083)",
    "filtered": "at random among those without technical defects: JPEG blocks, blur, low contrast, aliasing",
    "leaves": "",
}
"""How each method of selection chooses, to follow "were chosen" in a sentence; dead leaves are not chosen."""


_MADE = {"idc": "Condensed", "leaves": "Drawn"}


def render_section(
    condensed: CondensedSet, versions: list[Version], repo_id: str | None, title: str, revision: str | None
) -> str:
    """The Markdown between the markers.

    Args:
        condensed: The set.
        versions: Its HR versions.
        repo_id: Its id on the Hub, for the commands; None: a local folder.
        title: The heading.
        revision: The tag whose files it describes; None: there is none yet.

    Raises:
        RunError: recipe.yaml is damaged.
    """
    recipe, manifest = condensed.recipe, condensed.manifest
    method = recipe.get("method")
    method = method if isinstance(method, str) and method in _METHODS else None
    facts = manifest.condensation
    source = str(_value_at(recipe, "source", "path") or "")
    packages = {name: version for name, version in manifest.packages.items() if _is_plain(version)}
    template = _environment().get_template("card_template.md")
    text = template.render(
        title=title,
        name=manifest.name,
        scale=manifest.scale,
        patches=manifest.patches,
        real_patches=_number(facts.get("real_patches")),
        photographs=_number(facts.get("photographs")),
        lr_side=manifest.patch_size,
        hr_side=manifest.patch_size * manifest.scale,
        lr_digest=manifest.lr_digest,
        versions=versions,
        has_facts=any("teacher_residual" in version.size.columns for version in versions),
        others=[version for version in versions if not version.default],
        picture=PICTURE.as_posix() if (condensed.folder / PICTURE).is_file() else None,
        results=_results(facts.get("results")),
        gates=_gates(facts.get("quality"), versions),
        copied=copied_share(manifest),
        mostly_copied=mostly_copied(manifest),
        copied_levels=round(COPIED * 255),
        numbered=_has_numbered_names(condensed),
        install=_install(),
        revision=revision,
        held_out=_number(facts.get("held_out")),
        held_out_random=_number(facts.get("held_out_random")),
        facts=_provenance(manifest, recipe, method),
        method=method,
        synthetic=method in (None, "leaves"),
        chosen=_METHODS.get(method or ""),
        real=[version.name for version in versions if version.is_real],
        all_real=bool(versions) and all(version.is_real for version in versions),
        overrides=_overrides(recipe),
        ratio=_number(_value_at(recipe, "patches", "ratio")),
        seed=_number(_value_at(recipe, "seed")),
        initial=_value_at(recipe, "optimizer", "initial"),
        local_photographs=hub_source(recipe) is None and not source.startswith("package:"),
        packages=packages,
        pin=packages.get("idc-hub"),
        repo_id=repo_id,
        source=source,
        place=repo_id or "path/to/this/folder",
        recipe_place=repo_id or "recipe.yaml",
        run_place=f"runs/{manifest.name}",
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def hub_source(recipe: dict[str, Any]) -> str | None:
    """The id of the Hub dataset with the photographs; None if they come from elsewhere.

    A published recipe keeps only the last part of a local path, so that owner/name can only be an id.
    """
    source = str(_value_at(recipe, "source", "path") or "")
    return source if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source, re.ASCII) else None


def copied_share(manifest: Manifest) -> float | None:
    """The measured share of LR patches that are nearly copies of real ones; None if it was not measured."""
    quality = manifest.condensation.get("quality")
    measured = quality.values() if isinstance(quality, dict) else ()
    shares = [_number(_value_at({"of": figures}, "of", "copied", "set")) for figures in measured]
    return next((float(share) for share in shares if share is not None and 0 <= share <= 1), None)


def mostly_copied(manifest: Manifest) -> bool:
    """Whether at least half of the LR patches are nearly copies of real ones."""
    return (copied_share(manifest) or 0) >= 0.5


def _has_numbered_names(condensed: CondensedSet) -> bool:
    """Whether the picture shows a number instead of some photograph's name."""
    return any(not is_drawable(instance_id) for instance_id in read_index(condensed.lr)["weight_map"])


def _install() -> str:
    """The command that installs idc-hub: from the address in its package's metadata, or from a clone."""
    urls = dict(entry.split(", ", 1) for entry in metadata("idc-hub").get_all("Project-URL") or [])
    named = {label.lower(): url for label, url in urls.items() if re.fullmatch(r"https://[\w./~+-]+", url, re.ASCII)}
    address = next((named[label] for label in ("repository", "source", "homepage") if label in named), None)
    return f'pip install "idc-hub @ git+{address}"' if address else "pip install .  # in a clone of idc-hub"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("idc_hub.dataset", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is for HTML; the `text` filter escapes Markdown and HTML alike
    )
    environment.filters |= {
        "text": escape,
        "number": lambda value: f"{value:,}",
        "size": lambda count: f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB",
        "string_literal": lambda value: json.dumps(value, ensure_ascii=False),
        "shell": lambda value: shlex.quote(" ".join(value.split())),
    }
    return environment


def escape(value: object) -> str:
    """`value` as one line of Markdown text that formats nothing, opens no HTML and ends no table cell."""
    line = "".join(letter for letter in " ".join(str(value).split()) if letter.isprintable())
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", line)


def _provenance(manifest: Manifest, recipe: dict[str, Any], method: str | None) -> list[tuple[str, str]]:
    """How the patches were made, as (label, value), from the recipe and from the facts in idc.json."""
    facts = manifest.condensation
    source = str(_value_at(recipe, "source", "path") or "")
    source = Path(source).name if Path(source).is_absolute() else source  # not the folders of the machine
    real_patches = _number(facts.get("real_patches"))
    rows: dict[str, list[Any]] = {
        "Photographs": [facts.get("photographs"), source and f"(source: {source})"],
        "Conversions": [_conversions(facts.get("conversions"))],
        "Real LR patches": [real_patches, _grid(recipe, manifest.patch_size)],
        f"{_MADE.get(method or 'idc', 'Chosen')} LR patches": [
            manifest.patches,
            real_patches and f"({100 * manifest.patches / real_patches:.3g} %)",
        ],
        "Feature network": [_value_at(recipe, "features", "network"), _digest(recipe)],
        "Preset": [_value_at(recipe, "preset")],
        "First patches": [None if method else _value_at(recipe, "optimizer", "initial")],
        "Steps for each photograph": [facts.get("steps")],
        "Computing time of all workers": [_duration(facts.get("worker_seconds"))],
    }
    for key, value in sorted(facts.items()):
        if key not in _SHOWN_ELSEWHERE and isinstance(value, str | int | float):
            rows[key.replace("_", " ").capitalize()] = [value]
    shown = {label: [_shown(part) for part in parts if part not in (None, "")] for label, parts in rows.items()}
    return [(label, " ".join(parts)) for label, parts in shown.items() if parts]


def _overrides(recipe: dict[str, Any]) -> list[str]:
    """The arguments `key=value` with which `idc select` chooses these LR patches again: values that differ from the
    defaults, except those that its options set.
    """
    overrides = []
    for section in ("source", "patches", "features", "transform", "loss", "selection"):
        for key, field in sections_of(Recipe)[section].model_fields.items():
            value, default = _value_at(recipe, section, key), field.default
            default = list(default) if isinstance(default, tuple) else default
            if f"{section}.{key}" not in ("source.path", "patches.ratio") and value not in (None, default):
                overrides.append(f"{section}.{key}={json.dumps(value)}")
    return overrides


def _grid(recipe: dict[str, Any], size: int) -> str:
    stride = _value_at(recipe, "patches", "stride")
    zooms = _value_at(recipe, "patches", "scales")
    shrunk = isinstance(zooms, list) and zooms != [1] and all(_number(zoom) for zoom in zooms)
    return (
        f"of {size}×{size}"
        + (f", one every {stride} pixels" if stride else "")
        + (f", from the photographs at {', '.join(f'{zoom:g}' for zoom in zooms)} of their size" if shrunk else "")
    )


def _conversions(counts: Any) -> str | None:
    """What reading the photographs changed, such as "gray converted to RGB: 3"; None if nothing."""
    counts = counts.items() if isinstance(counts, dict) else ()
    return ", ".join(f"{kind}: {count:,}" for kind, count in counts if _number(count)) or None


def _digest(recipe: dict[str, Any]) -> str | None:
    digest = _value_at(recipe, "features", "weights_sha256")
    return f"(SHA-256 {str(digest)[:12]}…)" if digest else None


def _duration(seconds: Any) -> str | None:
    if _number(seconds) is None:
        return None
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _number(value: Any) -> int | float | None:
    """`value` if it is a number, else None: anybody can have written the file it comes from."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    return f"{value:,}" if _number(value) is not None else str(value)


def _is_plain(version: str) -> bool:
    return re.fullmatch(r"[\w.+!-]+", str(version)) is not None


def _results(rows: Any) -> list[dict[str, Any]]:
    """The rows of the table of results; the keys of the first row are its columns."""
    return [row for row in rows if isinstance(row, dict) and row] if isinstance(rows, list) else []


def _gates(quality: Any, versions: list[Version]) -> dict[str, dict[str, Any]]:
    """The gate's judgment by HR version. idc.json only supplies the numbers; all text comes from `judgment`."""
    found = {}
    for version in versions:
        measured = _value_at({"quality": quality}, "quality", version.name)
        sides = {side: _figures(measured, side) for side in ("set", "real")} if isinstance(measured, dict) else {}
        gate = judge(sides["set"], [sides["real"]]) if sides else {}
        if gate.get("figures"):
            found[version.name] = gate | {"rows": table(gate["figures"])}
    return found


def _figures(measured: dict[str, Any], side: str) -> dict[str, float]:
    """The figures that are numbers; null means NaN or Inf, which never passes."""
    found = {key: measured[key] for key in FIGURES if isinstance(measured.get(key), dict)}
    numbers = {
        key: math.nan if figure[side] is None else _number(figure[side])
        for key, figure in found.items()
        if side in figure
    }
    return {key: number for key, number in numbers.items() if number is not None}


def _value_at(values: dict[str, Any], *keys: str) -> Any:
    """A value in nested mappings; None if it is missing."""
    value: Any = values
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
