"""README.md of a repository, written from idc.json, recipe.yaml and the parquet files alone; never needs a network.

The card has two owners. Ours are a few metadata keys and the section between two marks; every other key and every
other paragraph belongs to whoever publishes the set and survives each update as it was written.
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
NOTE = "<!-- idc-hub writes what stands between these two marks; everything else is yours and stays. -->"

_REPLACED_KEYS = ("license", "size_categories", "configs", "dataset_info", "model-index")  # must fit the files
_UNITED_KEYS = ("tags",)
_OURS_ALONE = ("model-index",)  # figures that other weights reached must not stay
_PLAIN_YAML = "Write it as plain `key: value` lines between two lines of ---."
_MARK = re.compile(r"^<!-- idc:(begin|end) -->[ \t]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A\s*^---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
_FEATURES = [
    {"name": "instance_id", "dtype": "string"},
    {"name": "patch_index", "dtype": "int32"},
    {"name": "lr", "dtype": "image"},
    {"name": "hr", "dtype": "image"},
]


def write_card(condensed: CondensedSet, *, repo_id: str | None = None, license: str | None = None) -> None:
    """Write README.md into a set's folder, keeping what its user wrote there; see `render_card`."""
    path = condensed.folder / CARD
    existing = path.read_text(encoding="utf-8") if path.is_file() else None
    write_text_atomically(path, render_card(condensed, repo_id=repo_id, license=license, existing=existing))


def render_card(
    condensed: CondensedSet, *, repo_id: str | None = None, license: str | None = None, existing: str | None = None
) -> str:
    """The card of a repository tree.

    Args:
        condensed: The set; its recipe.yaml may be missing.
        repo_id: Where it stands or will stand on the Hub, for the commands; None: this folder.
        license: The license to name; None: the one of `existing`, or none.
        existing: The card as it is, of which the user's keys and paragraphs are kept.

    Returns:
        YAML front matter and Markdown.

    Raises:
        RunError: The tree is damaged, or `existing` cannot be taken apart.
    """
    versions = read_versions(condensed)
    front = _front_matter(condensed, versions, license)
    if existing:
        front["pretty_name"] = _parse(_split(existing)[0])[1].get("pretty_name") or front["pretty_name"]
    section = render_section(condensed, versions, repo_id, str(front["pretty_name"]))
    ours = f"---\n{_dump(front)}---\n\n{BEGIN}\n{NOTE}\n\n{section}\n\n{END}\n"
    return merge_card(existing, ours) if existing else ours


def merge_card(existing: str, ours: str) -> str:
    """The user's card with our part brought up to date; merging twice gives the same as once.

    `license`, `size_categories`, `configs`, `dataset_info` and `model-index` are taken from `ours` where it has them,
    and `model-index` goes where it has none; tags are united, our other keys are added where they are missing.
    Everything else, comments included, stays as it stands; a card without our marks gets our section first.

    Args:
        existing: Any card, with or without front matter or our marks.
        ours: A card that `render_card` made without `existing`.

    Returns:
        The merged card; its lines end as on Linux.

    Raises:
        RunError: The front matter of `existing` is not a plain YAML mapping, or its marks do not match.
    """
    front, body = _split(existing)
    our_front, our_body = _split(ours)
    texts, theirs = _parse(front)
    fresh = _parse(our_front)[1]
    for key in theirs.keys() & set(_OURS_ALONE) - fresh.keys():
        texts[key] = _trailing_comments(texts[key])
        del theirs[key]
    for key, value in fresh.items():
        if key in _UNITED_KEYS and key in theirs:
            had = theirs[key] if isinstance(theirs[key], list) else [theirs[key]]
            value = [*had, *(item for item in value if item not in had)]
        elif key not in _REPLACED_KEYS and key in theirs:
            continue
        if key not in theirs or theirs[key] != value:
            texts[key] = _dump({key: value}) + _trailing_comments(texts.get(key, ""))
            theirs = {**theirs, key: value}
    merged = "".join(texts.values())
    if _parse(merged)[1] != theirs:  # an anchor, for one, can tie a key of ours to one of theirs
        raise RunError("The metadata at the top of README.md cannot be merged.", _PLAIN_YAML)
    return f"---\n{merged}---\n{_merge_body(body, our_body)}"


def _split(card: str) -> tuple[str, str]:
    """Front matter, without its fences, and body; a byte order mark and carriage returns go."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    match = _FRONT_MATTER.match(card)
    return (match[1], card[match.end() :]) if match else ("", "\n" + card.lstrip("\n"))


def _parse(front: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The top-level keys of front matter: the text of each as it is written (what comes first is ""), and its value.

    Only texts survive untouched: YAML that is loaded and dumped again loses its comments and can change its meaning.
    """
    try:
        values = yaml.safe_load(front) or {}
        node = yaml.compose(front, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise RunError(f"The metadata at the top of README.md is not YAML ({error}).", _PLAIN_YAML) from error
    if node is None:
        return {"": front}, {}
    if not isinstance(node, yaml.MappingNode) or node.flow_style or len(node.value) != len(values):
        raise RunError("The metadata at the top of README.md is not a list of different keys.", _PLAIN_YAML)
    starts = [key.start_mark.index for key, _ in node.value]
    texts = {"": front[: starts[0]]}
    for (key, _), start, end in zip(node.value, starts, [*starts[1:], len(front)], strict=True):
        texts[key.value] = front[start:end]
    return texts, values


def _trailing_comments(block: str) -> str:
    """Comment and empty lines at the end of a key's text: they belong to what follows."""
    match = re.search(r"(?:^[ \t]*(?:#.*)?\n)*\Z", block, re.MULTILINE)
    return match[0] if match else ""


def _merge_body(body: str, ours: str) -> str:
    marks = list(_MARK.finditer(body))
    kinds = [mark[1] for mark in marks]
    if kinds not in ([], ["begin", "end"]):
        raise RunError(
            f"README.md has {kinds.count('begin')} times {BEGIN} and {kinds.count('end')} times {END}.",
            "Leave one of each, the first before the second, or delete all of them.",
        )
    if not kinds:
        rest = body.strip("\n")
        return ours + (f"\n{rest}\n" if rest else "")
    own = list(_MARK.finditer(ours))
    return body[: marks[0].start()] + ours[own[0].start() : own[1].end()] + body[marks[1].end() :]


def _front_matter(condensed: CondensedSet, versions: list[Version], license: str | None) -> dict[str, Any]:
    manifest, is_selection = condensed.manifest, condensed.is_selection
    front: dict[str, Any] = {"license": license} if license else {}
    kind = ["coreset-selection"] if is_selection else ["dataset-condensation", "dataset-distillation", "synthetic"]
    by_machine = not versions or any(not version.is_real for version in versions)
    front |= {
        "pretty_name": f"{manifest.name} ({'selected' if is_selection else 'condensed'} super-resolution set)",
        "task_categories": ["image-to-image"],
        "tags": ["super-resolution", *kind, "idc-hub", f"x{manifest.scale}"],
        "size_categories": [_size_category(manifest.patches)],
        "source_datasets": ["extended"],
        "annotations_creators": ["machine-generated" if by_machine else "found"],
    }
    if versions:
        # Without explicit configs `load_dataset` would concatenate all HR versions into one set.
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
    """The Hub's name for a number of rows."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for power, bound in enumerate(bounds):
        if rows < 10 ** (power + 3):
            return f"{bounds[power - 1]}<n<{bound}" if power else "n<1K"
    return "n>1B"


def _dump(front: dict[str, Any]) -> str:
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
