"""The card of a condensed set: README.md, generated offline from idc.json, recipe.yaml and the parquet files.

The card has two authors. idc-hub generates some metadata keys and the section between two markers. Everything else
belongs to the user who publishes the set, and every update keeps it character by character.
"""

import re
from typing import Any

import yaml

from idc_hub.atomic import write_text_atomically
from idc_hub.dataset.card_section import Version, read_versions, render_section
from idc_hub.dataset.condensed_set import CARD, CondensedSet
from idc_hub.errors import RunError

BEGIN = "<!-- idc:begin -->"
END = "<!-- idc:end -->"
NOTE = "<!-- idc-hub generates everything between these two markers; the rest is yours and is kept. -->"

_REPLACED_KEYS = ("license", "size_categories", "configs", "dataset_info", "model-index")  # must match the files
_REMOVED_KEYS = ("model-index",)  # removed if not generated: results of other weights must not stay
_UNITED_KEYS = ("tags",)
_PLAIN_YAML = "Write it as plain `key: value` lines between two lines of ---."
_MARKER = re.compile(r"^<!-- idc:(begin|end) -->[ \t]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A\s*^---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
_FEATURES = [
    {"name": "instance_id", "dtype": "string"},
    {"name": "patch_index", "dtype": "int32"},
    {"name": "lr", "dtype": "image"},
    {"name": "hr", "dtype": "image"},
]


def write_card(condensed: CondensedSet, *, repo_id: str | None = None, license: str | None = None) -> None:
    """Write README.md into a repository folder, keeping the user's keys and text; see `render_card`."""
    path = condensed.folder / CARD
    existing = path.read_text(encoding="utf-8") if path.is_file() else None
    write_text_atomically(path, render_card(condensed, repo_id=repo_id, license=license, existing=existing))


def render_card(
    condensed: CondensedSet, *, repo_id: str | None = None, license: str | None = None, existing: str | None = None
) -> str:
    """The card of a condensed set.

    Args:
        condensed: The set; its recipe.yaml may be missing.
        repo_id: Its id on the Hub, for the commands on the card; None: a local folder.
        license: The license to name; None: the license in `existing`, if any.
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
    section = render_section(condensed, versions, repo_id, str(front["pretty_name"]))
    generated = f"---\n{_dump(front)}---\n\n{BEGIN}\n{NOTE}\n\n{section}\n\n{END}\n"
    return merge_card(existing, generated) if existing else generated


def merge_card(existing: str, generated: str) -> str:
    """Update the generated part of a user's card. Merging twice gives the same card as merging once.

    `license`, `size_categories`, `configs`, `dataset_info` and `model-index` come from `generated` if it has them;
    `model-index` is removed otherwise. Tags are united, and other generated keys are added if missing. Everything else
    is kept, including comments. In a card without markers the generated section comes first.

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
    for key in values.keys() & set(_REMOVED_KEYS) - new_values.keys():
        texts[key] = _trailing_comments(texts[key])
        del values[key]
    for key, value in new_values.items():
        if key in _UNITED_KEYS and key in values:
            before = values[key] if isinstance(values[key], list) else [values[key]]
            value = [*before, *(item for item in value if item not in before)]
        elif key not in _REPLACED_KEYS and key in values:
            continue
        if key not in values or values[key] != value:
            texts[key] = _dump({key: value}) + _trailing_comments(texts.get(key, ""))
            values = {**values, key: value}
    merged = "".join(texts.values())
    if _parse(merged)[1] != values:  # a YAML anchor, for example, can tie a generated key to one of the user's
        raise RunError("The metadata at the top of README.md cannot be merged.", _PLAIN_YAML)
    return f"---\n{merged}---\n{_merge_body(body, generated_body)}"


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
    except (yaml.YAMLError, ValueError) as error:
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


def _front_matter(condensed: CondensedSet, versions: list[Version], license: str | None) -> dict[str, Any]:
    manifest, is_selection = condensed.manifest, condensed.is_selection
    front: dict[str, Any] = {"license": license} if license else {}
    kind = ["coreset-selection"] if is_selection else ["dataset-condensation", "dataset-distillation", "synthetic"]
    has_teacher = not versions or any(not version.is_real for version in versions)
    front |= {
        "pretty_name": f"{manifest.name} ({'selected' if is_selection else 'condensed'} super-resolution set)",
        "task_categories": ["image-to-image"],
        "tags": ["super-resolution", *kind, "idc-hub", f"x{manifest.scale}"],
        "size_categories": [_size_category(manifest.patches)],
        "source_datasets": ["extended"],
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
                "features": [dict(feature) for feature in _FEATURES],
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
