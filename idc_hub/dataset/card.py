"""The card of a condensed set: README.md, generated offline from idc.json, recipe.yaml and the parquet files.

The card has two authors. idc-hub generates some metadata keys and the section between two markers. Everything else
belongs to the user who publishes the set, and every update keeps it character by character.
"""

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import yaml
from datasets import Image

from idc_hub.atomic import write_text_atomically
from idc_hub.dataset.card_section import Version, escape, hub_source, mostly_copied, read_versions, render_section
from idc_hub.dataset.condensed_set import CARD, CondensedSet
from idc_hub.dataset.licenses import License
from idc_hub.dataset.manifest import is_version_name
from idc_hub.dataset.parquet import FEATURES
from idc_hub.errors import RunError

BEGIN = "<!-- idc:begin -->"
END = "<!-- idc:end -->"

_NOTE = "<!-- idc-hub generates everything between these two markers; the rest is yours and is kept. ({}) -->"
_SEAL = re.compile(re.escape(_NOTE).replace(r"\{\}", "([0-9a-f]{16})"))
_OWN_CONFIGS = "<!-- Configs that idc-hub did not make: -->"
_REPLACED_KEYS = ("license", "license_name", "license_link", "size_categories", "model-index")  # must match the files
_CONFIG_KEYS = ("configs", "dataset_info")  # an owner's own entries are kept
_REMOVED_KEYS = ("model-index",)  # removed if not generated: results of other weights must not stay
_UNITED_KEYS = ("tags",)
_PLAIN_YAML = "Write it as plain `key: value` lines between two lines of ---."
_MARKER = re.compile(r"^<!-- idc:(begin|end) -->[ \t]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A\s*^---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
_DTYPES = {name: "image" if isinstance(feature, Image) else feature.dtype for name, feature in FEATURES.items()}


def write_card(condensed: CondensedSet, *, repo_id: str | None = None, license: License | None = None) -> None:
    """Write README.md into a repository folder, keeping the user's keys and text; see `render_card`."""
    path = condensed.folder / CARD
    existing = read_card(path)
    card = render_card(condensed, repo_id=repo_id, license=license, existing=existing)
    keep_edited_section(condensed.folder, existing)
    write_text_atomically(path, card)


def read_card(path: Path) -> str:
    """The text of a README.md; empty if there is none.

    Raises:
        RunError: It is not UTF-8.
    """
    try:
        return path.read_bytes().decode() if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error


def read_metadata(card: str) -> dict[str, Any]:
    """The metadata at the top of a card; empty if there is none.

    Raises:
        RunError: It is not a plain YAML mapping.
    """
    return _parse(_split(card)[0])[1]


def managed(section: str) -> str:
    """A generated section between its markers, with a digest that shows later whether somebody edited it."""
    section = section.strip()
    return f"{BEGIN}\n{_NOTE.format(_digest(section))}\n\n{section}\n\n{END}"


def _digest(section: str) -> str:
    return hashlib.sha256(section.encode()).hexdigest()[:16]


def keep_edited_section(folder: Path, card: str) -> None:
    """Before a card is replaced: if a user edited its generated section, keep a copy beside `folder` and warn.

    Args:
        folder: The repository folder, or a network's folder.
        card: The present card; it can be empty.
    """
    found = list(_MARKER.finditer(_split(card)[1]))
    if [marker[1] for marker in found] != ["begin", "end"]:
        return
    section = _split(card)[1][found[0].end() : found[1].start()].strip()
    seal = _SEAL.search(section)
    text = _SEAL.sub("", section).strip()
    if not text or (seal and _digest(text) == seal[1]):
        return
    digest = hashlib.sha256(card.encode()).hexdigest()[:8]
    copy = folder.absolute().parent / f"{folder.absolute().name}-README-{digest}.md"
    write_text_atomically(copy, card)
    lines = card.replace("\r\n", "\n").split("\n")
    first, last = lines.index(BEGIN) + 2, lines.index(END)
    warnings.warn(
        f"Lines {first} to {last} of {CARD} were edited, but idc-hub generates them and now writes them again. The "
        f"edited card is kept as {copy}: move your text outside the markers.",
        stacklevel=2,
    )


def render_card(
    condensed: CondensedSet,
    *,
    repo_id: str | None = None,
    license: License | None = None,
    revision: str | None = None,
    existing: str | None = None,
) -> str:
    """The card of a condensed set.

    Args:
        condensed: The set; its recipe.yaml may be missing.
        repo_id: Its id on the Hub, for the commands on the card; None: a local folder.
        license: The license to name; None: the license in `existing`, if any.
        revision: The tag whose files the card describes; None: there is none yet.
        existing: The present card, whose user's keys and text are kept; None: there is none.

    Returns:
        YAML front matter and Markdown.

    Raises:
        RunError: An HR version or recipe.yaml is damaged, or `existing` cannot be parsed.
    """
    versions = read_versions(condensed)
    front = _front_matter(condensed, versions, license)
    if existing:
        front["pretty_name"] = _parse(_split(existing)[0])[1].get("pretty_name") or front["pretty_name"]
    section = render_section(condensed, versions, repo_id, str(front["pretty_name"]), revision)
    generated = f"---\n{_dump(front)}---\n\n{managed(section)}\n"
    return merge_card(existing, generated) if existing else generated


def merge_card(existing: str, generated: str) -> str:
    """Update the generated part of a user's card. Merging twice gives the same card as merging once.

    `license`, `size_categories` and `model-index` come from `generated` if it has them; `model-index` is removed
    otherwise, and so are the name and link of a license that `generated` replaces. `configs` and `dataset_info` keep
    the owner's own configs and splits beside the generated ones, and the generated section names those configs. Tags
    are united, and other generated keys are added if missing. Everything else is kept, including comments. In a card
    without markers the generated section comes first.

    Args:
        existing: Any card, with or without front matter and markers.
        generated: A card that `render_card` made without `existing`.

    Returns:
        The merged card, with Unix line ends.

    Raises:
        RunError: The front matter of `existing` is not a plain YAML mapping, or its markers do not match.
    """
    front, body = _split(existing)
    generated_front, generated_body = _split(generated)
    texts, values = _parse(front)
    new_values = _parse(generated_front)[1]
    removed = set(_REMOVED_KEYS)
    if new_values.get("license", values.get("license")) != values.get("license"):
        removed |= {"license_name", "license_link"}
    own = _own_configs(values, new_values)
    new_values |= _unite_configs(values, new_values, own)
    for key in values.keys() & removed - new_values.keys():
        texts[key] = _trailing_comments(texts[key])
        del values[key]
    for key, value in new_values.items():
        if key in _UNITED_KEYS and key in values:
            before = values[key] if isinstance(values[key], list) else [values[key]]
            value = [*before, *(item for item in value if item not in before)]
        elif key not in (*_REPLACED_KEYS, *_CONFIG_KEYS) and key in values:
            continue
        if key not in values or values[key] != value:
            texts[key] = _dump({key: value}) + _trailing_comments(texts.get(key, ""))
            values = {**values, key: value}
    merged = "".join(texts.values())
    if _parse(merged)[1] != values:  # a YAML anchor, for example, can tie a generated key to one of the user's
        raise RunError("The metadata at the top of README.md cannot be merged.", _PLAIN_YAML)
    return f"---\n{merged}---\n{_merge_body(body, _name_configs(generated_body, own))}"


def _entries(values: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The entries of `configs` or `dataset_info` by config name; those without a name are called "default"."""
    entries = values.get(key)
    entries = entries if isinstance(entries, list) else [entries]
    return {str(entry.get("config_name", "default")): entry for entry in entries if isinstance(entry, dict)}


def _own_configs(values: dict[str, Any], new_values: dict[str, Any]) -> list[str]:
    """Names of the configs that an owner added: those that are no HR version, present or former."""

    def is_former_version(name: str, config: dict[str, Any]) -> bool:
        return _paths(config).get("train") == f"data/{name}/train-*"

    ours = _entries(new_values, "configs")
    found = _entries(values, "configs") if ours else {}
    return [name for name, config in found.items() if name not in ours and not is_former_version(name, config)]


def _paths(config: dict[str, Any]) -> dict[str, Any]:
    """The paths of a config's data files by split."""
    files = config.get("data_files")
    if isinstance(files, dict):
        return files
    files = files if isinstance(files, list) else [files]
    return {
        str(item["split"]) if isinstance(item, dict) and "split" in item else "train": (
            item.get("path") if isinstance(item, dict) else item
        )
        for item in files
        if item
    }


def _unite_configs(values: dict[str, Any], new_values: dict[str, Any], own: list[str]) -> dict[str, Any]:
    """The generated `configs` and `dataset_info` with the owner's own configs, splits and keys."""
    configs, infos = _entries(values, "configs"), _entries(values, "dataset_info")
    united: dict[str, list[dict[str, Any]]] = {"configs": [], "dataset_info": []}
    for name, config in _entries(new_values, "configs").items():
        info = _entries(new_values, "dataset_info")[name]
        before, known = configs.get(name, {}), infos.get(name, {})
        splits = {split: path for split, path in _paths(before).items() if split != "train"}
        config = {key: value for key, value in before.items() if key not in ("default", *config)} | config
        config["data_files"] = [*config["data_files"], *({"split": s, "path": path} for s, path in splits.items())]
        counts = [split for split in known.get("splits") or [] if split.get("name") in splits]
        if splits and len(counts) == len(splits):
            info = info | {"splits": [*info["splits"], *counts]}
            for key in ("download_size", "dataset_size"):
                info[key] = known.get(key, info[key])
        elif splits:  # `load_dataset` refuses a split that the counts leave out
            info = {key: info[key] for key in ("config_name", "features")}
        united["configs"].append(config)
        united["dataset_info"].append(info)
    for name in own:
        united["configs"].append({key: value for key, value in configs[name].items() if key != "default"})
        united["dataset_info"] += [infos[name]] if name in infos else []
    return {key: entries for key, entries in united.items() if entries}


def _name_configs(body: str, own: list[str]) -> str:
    """The generated body, which says which configs idc-hub did not make."""
    if not own or _OWN_CONFIGS not in body:
        return body
    names = ", ".join(f"`{name}`" if is_version_name(name) else escape(name) for name in own)
    sentence = f"The owner of this repository added these configs; idc-hub neither made nor checked them: {names}."
    begin, end = _MARKER.finditer(body)
    section = _SEAL.sub("", body[begin.end() : end.start()]).replace(_OWN_CONFIGS, f"{_OWN_CONFIGS}\n\n{sentence}")
    return body[: begin.start()] + managed(section) + body[end.end() :]


def _split(card: str) -> tuple[str, str]:
    """Front matter without its fences, and body, without byte order mark and carriage returns."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    match = _FRONT_MATTER.match(card)
    return (match[1], card[match.end() :]) if match else ("", "\n" + card.lstrip("\n"))


def _parse(front: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The text and the value of each top-level key of front matter; the text before the first key has the key "".

    Kept keys are copied as text: loading and dumping YAML loses comments and can change its meaning.
    """
    try:
        values = yaml.safe_load(front) or {}
        node = yaml.compose(front, Loader=yaml.SafeLoader)
    except Exception as error:  # PyYAML raises nearly every class there is
        raise RunError(f"The metadata at the top of README.md is not YAML ({error}).", _PLAIN_YAML) from error
    if node is None:
        return {"": front}, {}
    if not isinstance(node, yaml.MappingNode) or node.flow_style or len(node.value) != len(values):
        raise RunError("The metadata at the top of README.md is not a list of distinct keys.", _PLAIN_YAML)
    starts = [key.start_mark.index for key, _ in node.value]
    texts = {"": front[: starts[0]]}
    for (key, _), start, end in zip(node.value, starts, [*starts[1:], len(front)], strict=True):
        texts[key.value] = front[start:end]
    return texts, values


def _trailing_comments(block: str) -> str:
    """Comments and empty lines at the end of a key's text, which belong to the next key."""
    match = re.search(r"(?:^[ \t]*(?:#.*)?\n)*\Z", block, re.MULTILINE)
    return match[0] if match else ""


def _merge_body(body: str, generated: str) -> str:
    found = list(_MARKER.finditer(body))
    kinds = [marker[1] for marker in found]
    if kinds not in ([], ["begin", "end"]):
        raise RunError(
            f"README.md contains {BEGIN} {kinds.count('begin')} times and {END} {kinds.count('end')} times.",
            "Keep one of each, the first before the second, or delete all of them.",
        )
    if not kinds:
        rest = body.strip("\n")
        return generated + (f"\n{rest}\n" if rest else "")
    begin, end = _MARKER.finditer(generated)
    return body[: found[0].start()] + generated[begin.start() : end.end()] + body[found[1].end() :]


def _front_matter(condensed: CondensedSet, versions: list[Version], license: License | None) -> dict[str, Any]:
    manifest = condensed.manifest
    front: dict[str, Any] = license.metadata() if license else {}
    is_drawn = condensed.recipe.get("method") == "leaves"
    if is_drawn:
        made, kind = "drawn", ["synthetic"]
    elif condensed.is_selection:
        made, kind = "selected", ["coreset-selection"]
    else:
        synthetic = [] if mostly_copied(manifest) else ["synthetic"]
        made, kind = "condensed", ["dataset-condensation", "dataset-distillation", *synthetic]
    has_teacher = not versions or any(not version.is_real for version in versions)
    front |= {
        "pretty_name": f"{manifest.name} ({made} super-resolution set)",
        "task_categories": ["image-to-image"],
        "tags": ["super-resolution", *kind, "idc-hub", f"x{manifest.scale}"],
        "size_categories": [_size_category(manifest.patches)],
        "source_datasets": ["original" if is_drawn else hub_source(condensed.recipe) or "extended"],
        "annotations_creators": ["machine-generated" if has_teacher else "found"],
    }
    if versions:
        # Without explicit configs `load_dataset` would concatenate all HR versions.
        front["configs"] = [
            {
                "config_name": version.name,
                **({"default": True} if version.default else {}),
                "data_files": [{"split": "train", "path": f"data/{version.name}/train-*"}],
            }
            for version in versions
        ]
        front["dataset_info"] = [
            {
                "config_name": version.name,
                "features": [{"name": column, "dtype": _DTYPES[column]} for column in version.size.columns],
                "splits": [{"name": "train", "num_bytes": version.size.data_bytes, "num_examples": version.size.rows}],
                "download_size": version.size.file_bytes,
                "dataset_size": version.size.data_bytes,
            }
            for version in versions
        ]
    return front


def _size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for power, bound in enumerate(bounds):
        if rows < 10 ** (power + 3):
            return f"{bounds[power - 1]}<n<{bound}" if power else "n<1K"
    return "n>1B"


def _dump(front: dict[str, Any]) -> str:
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
