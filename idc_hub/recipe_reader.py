"""Finds a recipe and reads what people wrote in it, forgivingly in spelling and strictly in meaning.

Nothing here knows the keys: `recipe.py` declares them and hands its model in. A `Draft` remembers where each
value was written, so that every complaint names its line or its override.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterator
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from idc_hub.errors import HubError, RecipeError

Model = TypeVar("Model", bound=BaseModel)

_SPELLINGS = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?)([kKM]?)")
_FACTOR = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}
_SWITCH = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_BYTES = 100_000
_MAX_DEPTH = 8
_MAX_BASES = 4


def _number(value: object) -> Decimal:
    """Read 3, 0.5, "1e-2" (text for PyYAML) or "300k"; a boolean is no number."""
    if isinstance(value, str) and (match := _SPELLINGS.fullmatch(value.strip())):
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


def _real(value: object) -> float:
    """Read a number in any spelling: 0.01, 1e-2, "1e-2"."""
    return float(_number(value))


def _switch(value: object) -> bool:
    """Read true or false, also as on, off, yes or no."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _SWITCH:
        return _SWITCH[value.lower()]
    raise ValueError("should be true or false")


def _text(value: object) -> str:
    """Take text as it is; what YAML reads as a number or a date is refused rather than respelt."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, list | dict):
        raise ValueError("should be text")
    raise ValueError(f'should be text: put it in quotes, "{shown(value)}"')


def listed(value: object) -> object:
    """One value stands for a list of one, so that `source.include=*.png` works."""
    return value if isinstance(value, list | tuple) else [value]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("should be odd")
    return value


def _kebab(value: str) -> str:
    if not re.fullmatch("[a-z0-9][a-z0-9-]*", value):
        raise ValueError("should be made of lower case letters, digits and hyphens, a letter or digit first")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("should be 64 hexadecimal digits")
    return value


Whole = Annotated[int, BeforeValidator(whole)]
Count = Annotated[Whole, Field(ge=1)]
Odd = Annotated[Count, AfterValidator(_odd)]
Real = Annotated[float, BeforeValidator(_real)]
Weight = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(gt=0, lt=1)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Name = Annotated[Text, AfterValidator(_kebab), Field(max_length=96)]
Sha256 = Annotated[Text, AfterValidator(_sha256)]


def shown(value: object) -> str:
    """A value as messages print it, in YAML's words and cut to 80 characters."""
    written = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    return written if len(written) <= 80 else f"{written[:77]}..."


def bundled_recipes() -> dict[str, Path]:
    """The recipes that ship with idc-hub, and then the paper's ablations: name to YAML file."""
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
        RecipeError: If there is none.
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
    ours = path.parts[:1] == ("ablations",)  # a misspelt row of a table is not looked for on the Hub
    if _HUB_ID.fullmatch(str(name)) and path.suffix not in (".yaml", ".yml") and not ours:
        return _download(str(name))
    raise RecipeError(f"There is no recipe {name}: no bundled name, file or folder.", _near(str(name)))


def _near(name: str) -> str:
    bundled = bundled_recipes()
    if near := difflib.get_close_matches(name, bundled, 1) or difflib.get_close_matches(Path(name).stem, bundled, 1):
        return f"Did you mean {near[0]}?"
    return f"Bundled recipes: {', '.join(name for name in bundled if '/' not in name)}, and ablations/."


def _find_base(base: object, beside: Path) -> Path:
    """The file that `base:` names in the recipe `beside`; a ValueError says what is wrong with it."""
    if beside.name == "recipe.yaml":
        raise ValueError("recipe.yaml is what a Run or a published set was made with, every key written out")
    if not isinstance(base, str):
        raise ValueError("it should be the name of a bundled recipe or of a YAML file")
    if Path(base).suffix not in (".yaml", ".yml"):
        if base not in bundled_recipes():
            raise ValueError(f"there is no bundled recipe of that name. {_near(base)} A file's name ends in .yaml")
        return bundled_recipes()[base]
    folder = beside.parent.resolve()
    path = (folder / base).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"the file is not in the folder of {beside.name}, nor below it")
    if not path.is_file():
        raise ValueError(f"there is no such file beside {beside.name}")
    return path


def label_of(path: Path) -> str:
    """What messages call a recipe's file."""
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
    except OSError as error:  # the class above all errors of the Hub and of the network
        raise HubError(
            f"The recipe of {repo_id} could not be fetched from the Hub ({type(error).__name__}).",
            "Check the connection and try again; what was fetched once is used offline.",
        ) from error


class Draft:
    """A recipe on its way in: its values, where each was written, and what is wrong with it so far.

    Args:
        label: What messages call the file.
        sections: Names of the recipe's sections.
    """

    def __init__(self, label: str, sections: Collection[str]) -> None:
        self.label = label
        self.values: dict[str, Any] = {}
        self._sections = sections
        self._places: dict[str, tuple[int, str]] = {}
        self._problems: list[tuple[int, str]] = []

    def complain(self, key: str, sentence: str) -> None:
        """Note a problem under the line or the override that wrote `key`, else its section."""
        written, section = key.partition("[")[0], key.partition(".")[0]
        line, place = self._places.get(written) or self._places.get(section) or (0, self.label)
        self._problems.append((line, f"{place}  {sentence}"))

    def raise_problems(self) -> None:
        """Raise one RecipeError with all problems, in the order of the file, if there are any."""
        if self._problems:
            raise RecipeError("\n".join(sentence for _, sentence in sorted(self._problems, key=lambda p: p[0])))

    def read(self, path: Path) -> None:
        """Take the values of a YAML file.

        Raises:
            RecipeError: If the file cannot be read as YAML or holds something other than keys.
        """
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise RecipeError(f"{self.label} is larger than a recipe can be ({_MAX_BYTES:,} bytes).")
            content = path.read_text(encoding="utf-8")
            self._refuse_what_no_recipe_needs(content)
            root, values = yaml.compose(content, Loader=yaml.SafeLoader), yaml.safe_load(content)
        except OSError as error:
            raise RecipeError(f"{self.label} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{self.label}:{mark.line + 1}" if mark else self.label
            raise RecipeError(f"{place}  is not YAML: {getattr(error, 'problem', None) or error}.") from error
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{self.label} holds no recipe keys.", "A recipe begins with `name: ...`.")
        self.values = values
        self._note_lines(root, "")

    def start_from_base(self, path: Path, above: tuple[Path, ...] = ()) -> None:
        """Take what the recipe that `base:` names says and this one does not, but its name, key by key.

        Args:
            path: The file that was read. A base is a bundled recipe, or a YAML file in the folder of `path`.
            above: The files that led here, each being the base of the one before it.

        Raises:
            RecipeError: If there is no such base, if it leads back, or if it cannot be read.
        """
        if "base" not in self.values:
            return
        base, (_, place) = self.values.pop("base"), self._places.get("base", (0, self.label))
        chain = (*above, path.resolve())
        try:
            found = _find_base(base, path)
        except (OSError, ValueError) as error:
            raise RecipeError(f"{place}  base is {shown(base)}; {error}.") from error
        if found.resolve() in chain:
            way = " -> ".join(step.name for step in (*chain, found))
            raise RecipeError(f"{place}  base {shown(base)} leads back to where it came from: {way}.")
        if len(chain) > _MAX_BASES:
            raise RecipeError(f"{place}  base {shown(base)} is one too many: {_MAX_BASES} can stand upon each other.")
        below = Draft(label_of(found), self._sections)
        below.read(found)
        below.start_from_base(found, chain)
        self._lie_over(below)

    def _lie_over(self, below: "Draft") -> None:
        """Put this recipe's values over those of another, and its places and problems after the other's."""
        values = {key: value for key, value in below.values.items() if key != "name"}
        for key, value in self.values.items():
            under = values.get(key)
            if key in self._sections and isinstance(under, dict) and isinstance(value, dict | None):
                values[key] = {**under, **(value or {})}
            else:
                values[key] = value
        self.values = values
        before = {key: (line - _MAX_BYTES, place) for key, (line, place) in below._places.items() if key != "name"}
        self._places = before | self._places
        self._problems = [(line - _MAX_BYTES, sentence) for line, sentence in below._problems] + self._problems

    def _refuse_what_no_recipe_needs(self, content: str) -> None:
        """Aliases and deep nesting, which make a small file from the Hub cost a lot of memory or time."""
        depth = 0
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise RecipeError(f"{self.label} is nested more deeply than a recipe can be.")
            if isinstance(event, yaml.AliasEvent):
                raise RecipeError(f"{self.label} uses a YAML alias (*name).", "Write the value out.")

    def _note_lines(self, node: yaml.MappingNode, prefix: str) -> None:
        for key_node, value_node in node.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            first, self._places[key] = self._places.get(key), (line, f"{self.label}:{line}")
            if first:
                self.complain(key, f"{key} stands here again; the first is in line {first[0]}.")
            if isinstance(value_node, yaml.MappingNode) and not prefix:
                self._note_lines(value_node, f"{key}.")

    def validated(self, model: type[Model]) -> Model:
        """The values as a model of one level, such as a training recipe.

        Raises:
            RecipeError: With every problem, one a line.
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
        """Take one `section.key=value`."""
        key, equals, value_text = (part.strip() for part in written.partition("="))
        head, _, tail = key.partition(".")
        place = (_MAX_BYTES + len(self._places), f"override {written}")  # after every line of the file
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


def _read_value(written: str) -> object:
    """The value of an override: YAML where that makes sense, else the text: `*.png`, `photos #1`, `a: b`."""
    try:
        value = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError):
        return written
    has_comment = " #" in f" {written}" and written[0] not in "'\"["
    return written if isinstance(value, dict) or has_comment else value


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Say in one sentence each what pydantic refused in a recipe.

    Args:
        error: From validating values against `model`.
        model: The recipe's model; the models among its fields are the sections.

    Yields:
        The key ("loss.alpha", "source.include[0]") and the sentence, but for errors of the model as a whole.
    """
    for entry in error.errors():
        if not entry["loc"]:
            continue
        key = ".".join(str(part) for part in entry["loc"][:2])
        key += "".join(f"[{part}]" for part in entry["loc"][2:])
        found = f"{key} is {shown(entry['input'])}; it"
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
    """The fields of a model that are models themselves."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def _description(key: str, model: type[BaseModel]) -> str:
    section, _, name = key.rpartition(".")
    fields = (sections_of(model)[section] if section else model).model_fields
    return " ".join((fields[name].description or "").split())


def _suggestion(key: str, model: type[BaseModel]) -> str:
    """The most similar key of the same section, else of the whole recipe, else the keys that there are."""
    section, _, name = key.partition(".") if "." in key else ("", "", key)
    sections = sections_of(model)
    siblings = list(sections[section].model_fields if section in sections else model.model_fields)
    if near := difflib.get_close_matches(name, siblings, 1):
        return f"Did you mean {section + '.' if section else ''}{near[0]}?"
    everywhere = {k: f"{name}.{k}" for name in reversed(sections) for k in sections[name].model_fields}
    if near := difflib.get_close_matches(name, everywhere, 1):
        return f"Did you mean {everywhere[near[0]]}?"
    return f"Keys{' of ' + section if section else ''}: {', '.join(siblings)}."
