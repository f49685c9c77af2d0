"""Nothing public is undocumented: functions, classes, parameters, options, and the keys of recipes and plans."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from pydantic import BaseModel

import idc_hub
from idc_cli.main import app
from idc_hub.benchmarking.plan import Plan, SetPlan
from idc_hub.recipe import Recipe
from idc_hub.training.recipe import TrainingRecipe

REPOSITORY = Path(__file__).parents[1]
MODULES = sorted([*(REPOSITORY / "idc_hub").rglob("*.py"), *(REPOSITORY / "cli" / "idc_cli").rglob("*.py")])
EXPORTED = {name: getattr(idc_hub, name) for name in idc_hub.__all__}
UNIT = re.compile(
    r"pixels?|steps?|fraction|ratio|share|factor|weight|deviation|number|seed|patch(es)?|photographs?|crops?|groups|events|"
    r"draws|threads|decay|learning rate|step size|scale|seconds|minutes|hours|tiles|filters|parts|workers?|sets?",
    re.IGNORECASE,
)
"""What a number can count or be measured in."""


def undocumented(path: Path) -> Iterator[str]:
    """Public modules, classes, functions, and methods of a file that have no docstring."""

    def search(node: ast.AST, name: str) -> Iterator[str]:
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if ast.get_docstring(node) is None:
            yield name
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in node.body:
                named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                if named and not child.name.startswith("_"):
                    yield from search(child, f"{name}: {child.name}")

    yield from search(ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(REPOSITORY)))


def entries(docstring: str | None, section: str) -> set[str]:
    """The names that a section of a Google-style docstring describes."""
    _, _, text = inspect.cleandoc(docstring or "").partition(f"{section}:\n")
    block = re.match(r"(?:    .*\n|\n)*", f"{text}\n")
    assert block
    return {name.strip() for names in re.findall(r"^    \**(\w[\w, ]*):", block[0], re.M) for name in names.split(",")}


def parameters(function: Any) -> set[str]:
    """Parameters that the docstring describes under Args, or that its sentences name."""
    return entries(function.__doc__, "Args") | set(re.findall(r"`(\w+)`", function.__doc__ or ""))


def functions() -> Iterator[tuple[str, Any]]:
    """Exported functions, and the methods of exported classes."""
    for name, thing in EXPORTED.items():
        if inspect.isfunction(thing):
            yield name, thing
        elif not issubclass(thing, BaseException | BaseModel):
            methods = inspect.getmembers(thing, inspect.isfunction)
            yield from ((f"{name}.{method}", function) for method, function in methods if not method.startswith("_"))


def results() -> Iterator[type]:
    """The dataclasses that exported functions return, and those inside them."""
    waiting = [(function, function.__annotations__["return"]) for _, function in functions()]
    seen = set()
    while waiting:
        owner, hint = waiting.pop()
        for name in re.findall(r"\w+", str(hint)):
            found = getattr(inspect.getmodule(owner), name, None)
            if dataclasses.is_dataclass(found) and isinstance(found, type) and found not in seen:
                seen.add(found)
                waiting += [(found, field.type) for field in dataclasses.fields(found)]
                yield found


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child in getattr(command, "commands", {}).values():
        yield from commands(child, f"{name} {child.name}")


COMMANDS = dict(commands(typer.main.get_command(app), "idc"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert list(undocumented(path)) == []


def test_every_parameter_of_an_exported_function_is_described() -> None:
    missing = {
        name: sorted(lacking)
        for name, function in functions()
        if (lacking := set(inspect.signature(function).parameters) - {"self", "cls"} - parameters(function))
    }
    assert missing == {}


def test_every_field_of_a_result_is_described() -> None:
    found = list(results())
    assert len(found) > 15
    missing = {
        result.__name__: sorted(lacking)
        for result in found
        if (lacking := {field.name for field in dataclasses.fields(result)} - entries(result.__doc__, "Attributes"))
    }
    assert missing == {}


def test_every_argument_and_option_is_described_with_its_default() -> None:
    problems = []
    for name, command in COMMANDS.items():
        if not command.help:
            problems.append(f"{name} has no description")
        if not getattr(command, "commands", None) and not command.epilog and not command.hidden:
            problems.append(f"{name} has no example")
        for option in command.params:
            what = f"{name} {option.opts[0]}"
            if not option.help:
                problems.append(f"{what} has no description")
            if not (option.required or option.multiple or option.nargs == -1 or getattr(option, "is_flag", False)) and (
                not option.show_default or (option.default is None and option.show_default is True)
            ):
                problems.append(f"{what} has no default to read")
    assert problems == []


def test_every_number_on_the_command_line_says_what_it_counts() -> None:
    numbers = {
        f"{name} {option.opts[0]}": option.help
        for name, command in COMMANDS.items()
        for option in command.params
        if re.search(r"\b(int|float)\b", str(get_type_hints(command.callback).get(option.name)))
    }
    assert len(numbers) > 10
    assert {name: text for name, text in numbers.items() if not UNIT.search(text or "")} == {}


def keys() -> Iterator[tuple[str, Any, Any]]:
    """All keys of recipes, training recipes, and plans, with their fields and the values of the JSON schema."""
    sections = [field.annotation for field in Recipe.model_fields.values()]
    sections = [section for section in sections if inspect.isclass(section) and issubclass(section, BaseModel)]
    for model in (Recipe, *sections, TrainingRecipe, Plan, SetPlan):
        properties = model.model_json_schema()["properties"]
        for name, field in model.model_fields.items():
            if field.annotation not in (*sections, TrainingRecipe):
                yield f"{model.__name__}.{name}", field, properties[name]


def test_every_key_is_described_with_its_default() -> None:
    found = list(keys())
    assert len(found) > 60
    assert [name for name, field, _ in found if not field.description] == []
    # A null default means something that only words can say.
    assert [
        name
        for name, field, _ in found
        if not field.is_required() and field.default is None and not re.search(r"null:|either this", field.description)
    ] == []


def test_every_number_of_a_recipe_says_what_it_counts() -> None:
    numbers = [(name, field) for name, field, schema in keys() if re.search(r"'(integer|number)'", str(schema))]
    assert len(numbers) > 30
    assert [name for name, field in numbers if not UNIT.search(field.description)] == []
