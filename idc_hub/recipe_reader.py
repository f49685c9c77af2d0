"""Find a recipe and read it: lenient about spelling, strict about meaning.

This module knows no keys: `recipe.py` declares them and passes its model in. A `Draft` remembers where each value was
written, so that every error message names its line or override.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from idc_hub.errors import HubError, RecipeError, one_line

Model = TypeVar("Model", bound=BaseModel)

_NUMERAL = r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?)([kKM]?)\s*"
_FACTOR = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}
_KEBAB = "[a-z0-9][a-z0-9-]*"
_DIGEST = "[0-9a-f]{64}"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""`package.module:build`, a network that code of an installed package builds."""
_MAX_BYTES = 100_000
_MAX_DEPTH = 8
_MAX_BASES = 4


def _number(value: object) -> Decimal:
    """Read 3, 0.5, "1e-2" (a string to PyYAML) or "300k"; booleans are not numbers."""
    if isinstance(value, str) and (match := re.fullmatch(_NUMERAL, value)):
        return Decimal(match[1]) * _FACTOR[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(str(value))
    raise ValueError("should be a number")


def whole(value: object) -> int:
    """Read a whole number in any spelling: 20000, 2e4, "20k"."""
    exact = _number(value)
    if not exact.is_finite() or exact != exact.to_integral_value():
        raise ValueError("should be a whole number")
    return int(exact)


def real(value: object) -> float:
    """Read a number in any spelling: 0.01, 1e-2, "1e-2"."""
    return float(_number(value))


def _text(value: object) -> str:
    """Accept text unchanged; reject what YAML reads as a number or a date, since its spelling is lost."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, list | dict):
        raise ValueError("should be text")
    raise ValueError(f'should be text: put it in quotes, "{format_value(value)}"')


def as_list(value: object) -> object:
    """Wrap a single value in a list, so that `source.include=*.png` works."""
    return value if isinstance(value, list | tuple) else [value]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("should be odd")
    return value


def _kebab(value: str) -> str:
    if not re.fullmatch(_KEBAB, value):
        raise ValueError("should consist of lower case letters, digits and hyphens, and start with a letter or digit")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(_DIGEST, value):
        raise ValueError("should be 64 hexadecimal digits")
    return value


# What JSON schema says of a type is what the reader accepts, not what it makes of it: 20k is a valid number.
Numeral = Annotated[str, Field(pattern=f"^{_NUMERAL}$")]
Whole = Annotated[int, BeforeValidator(whole, json_schema_input_type=int | Numeral)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000_000)]
Odd = Annotated[Count, AfterValidator(_odd)]
Real = Annotated[float, BeforeValidator(real, json_schema_input_type=float | Numeral)]
Weight = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(gt=0, lt=1)]
Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str), Field(min_length=1)]
Name = Annotated[Text, AfterValidator(_kebab), Field(max_length=96, json_schema_extra={"pattern": f"^{_KEBAB}$"})]
Sha256 = Annotated[Text, AfterValidator(_sha256), Field(json_schema_extra={"pattern": f"^{_DIGEST}$"})]


def format_value(value: object) -> str:
    """A value as error messages print it: as YAML writes it, cut to 80 characters."""
    try:
        written = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # Python writes out no integer of more than 4300 digits
        written = f"a {type(value).__name__} that is too large to print"
    return written if len(written) <= 80 else f"{written[:77]}..."


def bundled_recipes() -> dict[str, Path]:
    """The recipes that ship with idc-hub, then the paper's ablations: name to YAML file."""
    packaged = Path(str(files("idc_hub"))) / "recipes"
    folder = packaged if packaged.is_dir() else packaged.parent.parent / "recipes"
    found = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("ablations/*.yaml"))]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find_recipe(name: str | Path) -> Path:
    """Find the YAML file of a recipe.

    Args:
        name: A bundled name, a YAML file, a folder that holds recipe.yaml (a Run or a repository), or the id
            of a dataset repository on the Hub.

    Raises:
        RecipeError: If there is no such recipe.
        HubError: If the Hub does not answer or refuses.
    """
    bundled = bundled_recipes()
    if str(name) in bundled:
        return bundled[str(name)]
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        for candidate in (path / "recipe.yaml", path / "repo" / "recipe.yaml"):
            if candidate.is_file():
                return candidate
        raise RecipeError(f"The folder {path} holds no recipe.yaml.", "Name a Run or a recipe file.")
    ours = path.parts[:1] == ("ablations",)  # do not look for a misspelled ablation on the Hub
    if _HUB_ID.fullmatch(str(name)) and path.suffix not in (".yaml", ".yml") and not ours:
        return _download(str(name))
    raise RecipeError(f"There is no recipe {name}: no bundled name, file or folder.", _near(str(name)))


def _near(name: str) -> str:
    bundled = bundled_recipes()
    if near := difflib.get_close_matches(name, bundled, 1) or difflib.get_close_matches(Path(name).stem, bundled, 1):
        return f"Did you mean {near[0]}?"
    return f"Bundled recipes: {', '.join(name for name in bundled if '/' not in name)}, and ablations/."


def _find_base(base: object, beside: Path) -> Path:
    """The file that `base:` names in the recipe `beside`; raises a ValueError that says what is wrong with the name."""
    if beside.name == "recipe.yaml":
        raise ValueError("recipe.yaml records how a Run or a published set was made, with every key written out")
    if not isinstance(base, str):
        raise ValueError("it should be the name of a bundled recipe or of a YAML file")
    if Path(base).suffix not in (".yaml", ".yml"):
        if base not in bundled_recipes():
            raise ValueError(f"there is no bundled recipe of that name. {_near(base)} File names end in .yaml")
        return bundled_recipes()[base]
    folder = beside.parent.resolve()
    path = (folder / base).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"the file is not in the folder of {beside.name} or below it")
    if not path.is_file():
        raise ValueError(f"there is no such file beside {beside.name}")
    if is_strangers(path):
        raise ValueError("the file came with a dataset; read it, and copy it to another folder")
    return path


def is_strangers(path: Path) -> bool:
    """Whether a recipe's file came with a dataset repository, pulled or in the Hub's cache."""
    return path.name == "recipe.yaml" and (
        (path.parent / "idc.json").is_file() or path.parent.parent.name == "snapshots"
    )


def label_of(path: Path) -> str:
    """The name of a recipe's file in error messages."""
    return path.name if path in bundled_recipes().values() else str(path)


def _download(repo_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, "recipe.yaml", repo_type="dataset"))
    except RemoteEntryNotFoundError as error:
        raise RecipeError(f"The dataset {repo_id} has no recipe.yaml: it is not a condensed set.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise RecipeError(
            f"There is no recipe {repo_id}: no local file or folder, and no Hub dataset that you can read.",
            "Check the spelling; a private dataset needs `hf auth login`.",
        ) from error
    except OSError as error:  # the base class of all Hub and network errors
        raise HubError(
            f"The recipe of {repo_id} could not be fetched from the Hub ({type(error).__name__}).",
            "Check the connection and try again; recipes that were fetched before work offline.",
        ) from error


def read_yaml(content: str, label: str) -> tuple[yaml.Node | None, Any]:
    """Read YAML without aliases and deep nesting, with which a small file could cost much memory or time.

    Args:
        content: The text.
        label: The file's name in error messages.

    Returns:
        The root node, and the plain values.

    Raises:
        RecipeError: It is not YAML, or too costly.
    """
    depth = 0
    try:
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise RecipeError(f"{label} is nested more deeply than a recipe can be.")
            if isinstance(event, yaml.AliasEvent):
                raise RecipeError(f"{label} uses a YAML alias (*name).", "Write the value out.")
        return yaml.compose(content, Loader=yaml.SafeLoader), yaml.safe_load(content)
    except RecipeError:
        raise
    except Exception as error:  # PyYAML raises IndexError, TypeError and others for values like !!float ''
        mark = getattr(error, "problem_mark", None)
        place = f"{label}:{mark.line + 1}" if mark else label
        raise RecipeError(f"{place}  is not YAML: {getattr(error, 'problem', None) or one_line(error)}.") from error


class Draft:
    """A recipe being read: its values, where each was written, and the problems found so far.

    Args:
        label: The file's name in error messages.
        sections: Names of the recipe's sections.
        values: Values to start with; sections are mappings or models.
    """

    def __init__(self, label: str, sections: Collection[str], values: Mapping[str, Any] | None = None) -> None:
        self.label = label
        self.values: dict[str, Any] = {key: _plain(value) for key, value in (values or {}).items()}
        self._sections = sections
        self._places: dict[str, tuple[int, str]] = {}
        self._problems: list[tuple[int, str]] = []

    def complain(self, key: str, sentence: str) -> None:
        """Record a problem at the line or override that wrote `key`, or else its section."""
        written, section = key.partition("[")[0], key.partition(".")[0]
        line, place = self._places.get(written) or self._places.get(section) or (0, self.label)
        self._problems.append((line, f"{place}  {sentence}"))

    def raise_problems(self) -> None:
        """Raise one RecipeError with all problems, in the order of the file, unless there are none."""
        if self._problems:
            raise RecipeError("\n".join(sentence for _, sentence in sorted(self._problems, key=lambda p: p[0])))

    def read(self, path: Path) -> None:
        """Read the values of a YAML file.

        Raises:
            RecipeError: If the file is not readable YAML or is not a mapping of keys.
        """
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise RecipeError(f"{self.label} is larger than a recipe can be ({_MAX_BYTES:,} bytes).")
            root, values = read_yaml(path.read_text(encoding="utf-8"), self.label)
        except OSError as error:
            raise RecipeError(f"{self.label} cannot be read: {error.strerror}.") from error
        except ValueError as error:  # not UTF-8
            raise RecipeError(f"{self.label}  is not YAML: {error}.") from error
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{self.label} holds no recipe keys.", "A recipe begins with `name: ...`.")
        self.values = values
        self._note_lines(root, "")

    def start_from_base(self, path: Path, above: tuple[Path, ...] = ()) -> None:
        """Inherit the values of the recipe that `base:` names, key by key, except its name.

        Args:
            path: The file that was read. A base is a bundled recipe, or a YAML file in the folder of `path` or below.
            above: The files that led here, each the base of the one before.

        Raises:
            RecipeError: If the base does not exist, is circular or cannot be read.
        """
        if "base" not in self.values:
            return
        base, (_, place) = self.values.pop("base"), self._places.get("base", (0, self.label))
        chain = (*above, path.resolve())
        try:
            found = _find_base(base, path)
        except (OSError, ValueError) as error:
            raise RecipeError(f"{place}  base is {format_value(base)}; {error}.") from error
        if found.resolve() in chain:
            way = " -> ".join(step.name for step in (*chain, found))
            raise RecipeError(f"{place}  base {format_value(base)} is circular: {way}.")
        if len(chain) > _MAX_BASES:
            raise RecipeError(f"{place}  base {format_value(base)} is one too many: a chain has at most {_MAX_BASES}.")
        parent = Draft(label_of(found), self._sections)
        parent.read(found)
        parent.start_from_base(found, chain)
        self._merge_base(parent)

    def _merge_base(self, base: "Draft") -> None:
        """Add the base's values where this recipe has none; the base's problems come first."""
        values = {key: value for key, value in base.values.items() if key != "name"}
        for key, value in self.values.items():
            inherited = values.get(key)
            if key in self._sections and isinstance(inherited, dict) and isinstance(value, dict | None):
                values[key] = {**inherited, **(value or {})}
            else:
                values[key] = value
        self.values = values
        # Line numbers of a base sort before those of this file.
        places = {key: (line - _MAX_BYTES, place) for key, (line, place) in base._places.items() if key != "name"}
        self._places = places | self._places
        self._problems = [(line - _MAX_BYTES, sentence) for line, sentence in base._problems] + self._problems

    def _note_lines(self, node: yaml.MappingNode, prefix: str) -> None:
        for key_node, value_node in node.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            first, self._places[key] = self._places.get(key), (line, f"{self.label}:{line}")
            if first:
                self.complain(key, f"{key} is repeated; it was first written in line {first[0]}.")
            if isinstance(value_node, yaml.MappingNode) and not prefix:
                self._note_lines(value_node, f"{key}.")

    def refuse_code(self, overrides: Collection[str]) -> None:
        """Refuse networks that are code, unless an override named them.

        Raises:
            RecipeError: There is one.
        """
        given = {written.partition("=")[0].strip() for written in overrides}
        for section in ("features", "teacher"):
            found = self.values.get(section)
            network = found.get("network") if isinstance(found, Mapping) else None
            if f"{section}.network" not in given and isinstance(network, str) and MODULE.fullmatch(network):
                raise RecipeError(
                    f"{self.label} came with a dataset, and its {section}.network is {network}: code of an installed "
                    "package, which it wants to run.",
                    "If you trust it, repeat the command with --trust-recipe (in Python: trust_recipe=True).",
                )

    def validated(self, model: type[Model]) -> Model:
        """The values as a model without sections, such as a training recipe.

        Raises:
            RecipeError: With every problem, one per line.
        """
        try:
            found = model.model_validate(self.values)
        except ValidationError as error:
            for key, sentence in explain(error, model):
                self.complain(key, sentence)
            self.raise_problems()
            raise
        return found

    def override(self, written: str) -> None:
        """Apply one `section.key=value`."""
        key, equals, value_text = (part.strip() for part in written.partition("="))
        head, _, tail = key.partition(".")
        place = (_MAX_BYTES + len(self._places), f"override {written}")  # sorts after every line of the file
        self._places[key] = place
        if not equals or not key or key in self._sections:
            self.complain(key, "should read section.key=value, or seed=3.")
            return
        value = _read_value(value_text)
        if not tail:
            self.values[head] = value
            return
        self._places.setdefault(head, place)
        if self.values.get(head) is None:
            self.values[head] = {}
        if isinstance(self.values[head], dict):
            self.values[head][tail] = value


def _plain(value: object) -> object:
    """A section as a dict of the keys that were given; any other value unchanged."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return dict(value) if isinstance(value, Mapping) else value


def _read_value(written: str) -> object:
    """The value of an override: YAML if that makes sense, else the text itself, as in `*.png`, `photos #1`, `a: b`."""
    try:
        value = yaml.safe_load(written)
    except Exception:  # see `read_yaml`
        return written
    has_comment = " #" in f" {written}" and written[0] not in "'\"["
    return written if isinstance(value, dict) or has_comment else value


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Describe each value that pydantic rejected in one sentence.

    Args:
        error: From validating values against `model`.
        model: The recipe's model; its fields that are models are the sections.

    Yields:
        The key ("loss.alpha", "source.include[0]") and the sentence, except for errors of the model as a whole.
    """
    for entry in error.errors():
        if not entry["loc"]:
            continue
        loc = [part for part in entry["loc"] if part != "[key]"]  # it ends the place of a name that is wrong itself
        key = ".".join(str(part) for part in loc[:2])
        key += "".join(f"[{part}]" for part in loc[2:])
        is_name = len(loc) < len(entry["loc"])
        found = f"{key}: the name" if is_name else f"{key} is {format_value(entry['input'])}; it"
        if entry["type"] in ("extra_forbidden", "invalid_key"):
            yield key, f"{key} is not a recipe key. {_suggestion(key, model)}"
        elif entry["type"] == "missing":
            yield (
                key,
                f"{key} is missing. {_description(key, model)} Write it into the file, or say {key}=...",
            )
        elif entry["type"] == "model_type":
            keys = ", ".join(sections_of(model)[key].model_fields)
            yield key, f"{found} should be a section with the keys {keys}."
        elif entry["type"] == "value_error":
            yield key, f"{found} {entry['ctx']['error']}."
        else:
            yield key, f"{found} {re.sub('^(Input|String) ', '', entry['msg'])}."


def sections_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of a model that are themselves models."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def _description(key: str, model: type[BaseModel]) -> str:
    section, _, name = key.rpartition(".")
    fields = (sections_of(model)[section] if section else model).model_fields
    return " ".join((fields[name].description or "").split())


def _suggestion(key: str, model: type[BaseModel]) -> str:
    """Suggest the most similar key of the section, else of the whole recipe, else list the section's keys."""
    section, _, name = key.partition(".") if "." in key else ("", "", key)
    sections = sections_of(model)
    siblings = list(sections[section].model_fields if section in sections else model.model_fields)
    if near := difflib.get_close_matches(name, siblings, 1):
        return f"Did you mean {section + '.' if section else ''}{near[0]}?"
    everywhere = {k: f"{name}.{k}" for name in reversed(sections) for k in sections[name].model_fields}
    if near := difflib.get_close_matches(name, everywhere, 1):
        return f"Did you mean {everywhere[near[0]]}?"
    return f"Keys{' of ' + section if section else ''}: {', '.join(siblings)}."
