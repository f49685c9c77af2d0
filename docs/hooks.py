"""Hooks of mkdocs: the site has the repository's files under their own paths, so that links are the same in both.

Formulas become MathML when the site is built, and four reference pages are made from the code. Nothing needs a network.
"""

import html
import posixpath
import re
import sys
from collections.abc import Container, Iterator
from inspect import getdoc, isclass
from pathlib import Path
from typing import Any

import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from typer.cli import get_docs_for_click

import idc_hub
from idc_cli.main import app
from idc_hub.benchmarking.plan import Plan, SetPlan
from idc_hub.recipe import PRESETS, Recipe, Section
from idc_hub.recipe_reader import format_value
from idc_hub.training.recipe import TrainingRecipe

REPOSITORY = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
CODE = {".py": "python", ".yaml": "yaml"}
"""Files that are shown as a page of their own where a page links to them."""
KEYS = "docs/reference/training-and-benchmarks.md"
REFERENCES = {
    "idc_hub/recipe.py": "docs/reference/recipe.md",
    "idc_hub/training/recipe.py": KEYS,
    "idc_hub/benchmarking/plan.py": KEYS,
}
"""Files whose place a page that is made from them takes."""
BOUNDS = {"ge": "≥", "minimum": "≥", "gt": ">", "exclusiveMinimum": ">", "le": "≤", "maximum": "≤", "lt": "<"}
BOUNDS["exclusiveMaximum"] = "<"
NO_BOUND = 10**9
"""Bounds from here on only keep numbers out that no computer holds."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace what mkdocs found by the pages of `nav`, the files that they link to, and the reference pages."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    generated = {
        "docs/reference/recipe.md": _recipe_reference(),
        KEYS: _other_models(),
        "docs/reference/cli.md": _cli_reference(),
        "docs/reference/python.md": _python_reference(),
    }
    pages = {path for path in _paths(config.nav) if path not in generated}
    linked = {"docs/site.css"}
    for page in pages:
        files.append(File(page, str(REPOSITORY), config.site_dir, config.use_directory_urls))
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        linked |= {target for link in LINK.findall(text) if (REPOSITORY / (target := _target(page, link))).is_file()}
    for path in sorted(linked - pages - set(REFERENCES)):
        if Path(path).suffix in CODE:
            generated[f"{path}.md"] = _code_page(path)
        else:
            files.append(File(path, str(REPOSITORY), config.site_dir, config.use_directory_urls))
    for path, text in generated.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to code at the pages that show it."""
    here = page.file.src_uri

    def point(link: re.Match[str]) -> str:
        if reference := REFERENCES.get(_target(here, link[1])):
            return f"]({posixpath.relpath(reference, posixpath.dirname(here) or '.')}"
        return f"{link[0]}.md" if Path(link[1]).suffix in CODE else link[0]

    return LINK.sub(point, markdown)


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Render formulas, which pymdownx.arithmatex has marked, as MathML."""

    def render(found: re.Match[str]) -> str:
        formula = html.unescape(found[2])
        if found[1] == "span":
            return convert(formula)
        return f'<div class="formula">{convert(formula, display="block")}</div>'

    return re.sub(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', render, content, flags=re.DOTALL)


def _paths(nav: Any) -> Iterator[str]:
    """All pages of a `nav`."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _paths(entry)


def _target(page: str, link: str) -> str:
    """The path in the repository that a relative link of a page names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _code_page(path: str) -> str:
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n~~~~{CODE[Path(path).suffix]}\n{text}~~~~\n"


def _recipe_reference() -> str:
    parts = [
        "# Recipe keys",
        "Every key of a [recipe](../../recipes/README.md), made from `idc_hub/recipe.py`. Section, appendix, and "
        "equation numbers refer to the [paper](https://arxiv.org/abs/2505.21099). 20000, 20k, and 2e4 are one number.",
        "## Top level",
        *_keys(Recipe),
    ]
    for name, field in Recipe.model_fields.items():
        if isclass(field.annotation) and issubclass(field.annotation, Section):
            parts += [
                f"## `{name}`",
                str(getdoc(field.annotation)),
                *_keys(field.annotation, f"{name}."),
            ]
    return "\n\n".join(parts)


def _other_models() -> str:
    models = {"Training recipe": TrainingRecipe, "Benchmark plan": Plan, "An entry of `sets`": SetPlan}
    parts = [
        "# Training and benchmark keys",
        "Keys of `idc train --recipe` and of the plan of `idc benchmark`, made from `idc_hub/training/recipe.py` and "
        "`idc_hub/benchmarking/plan.py`. 20000, 20k, and 2e4 are one number.",
    ]
    for title, model in models.items():
        parts += [f"## {title}", str(getdoc(model)), *_keys(model)]
    return "\n\n".join(parts)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a model, except those that are sections: name, values, default, and description."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        if isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            continue
        default = "required" if field.is_required() else f"default {_yaml(field.default)}"
        for preset, sections in PRESETS.items():
            values = sections.get(prefix.rstrip("."), {})
            if name in values:
                default += f" ({_yaml(values[name])} with `preset: {preset}`)"
        yield f"#### `{prefix}{name}`"
        yield f"{field.description}  \n*{_values(schema['properties'][name])}; {default}*"


def _values(schema: dict[str, Any]) -> str:
    """The values that a schema allows, in words."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        # The other spellings of a number, such as 20k, are described once.
        kinds = [_values(entry) for entry in schema["anyOf"] if "kKM" not in entry.get("pattern", "")]
        words = " or ".join(dict.fromkeys(kinds))
    elif schema.get("type") == "array":
        words = f"list: {_values(schema['items'])}"
    else:
        names = {"integer": "whole number", "string": "text", "object": "mapping", "null": "null"}
        words = names.get(schema.get("type", ""), str(schema.get("type", "mapping")))
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if abs(schema.get(key, NO_BOUND)) < NO_BOUND]
    return " ".join([words, ", ".join(bounds)]).strip()


def _yaml(value: Any) -> str:
    return f"`{value:g}`" if isinstance(value, float) else f"`{format_value(value)}`"


def _cli_reference() -> str:
    command = typer.main.get_command(app)
    _prepare(command)
    context = typer.Context(command, info_name="idc")
    described = get_docs_for_click(obj=command, ctx=context, name="idc", title="Commands")
    # The table of contents lists the commands; Typer's lists cut their descriptions.
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", described).replace("**Usage**:\n\n", "")


def _prepare(command: Any) -> None:
    """Make Markdown of the epilogs of all commands, which are written for the terminal; leave out hidden commands."""
    lines = (command.epilog or "").splitlines()
    text, fenced = [], False
    for line in lines:
        title = re.fullmatch(r"\[bold\](.*)\[/bold\]", line)
        if title or (line and not fenced):
            text += ["```", ""] if fenced else []
            text += [f"**{title[1]}**:", "", "```console"] if title else ["```console", line]
            fenced = True
        else:
            text.append(line)
    command.epilog = "\n".join([*text, "```"]) if fenced else None
    commands = getattr(command, "commands", {})
    for name, child in list(commands.items()):
        _prepare(child)
        if child.hidden:
            del commands[name]


def _python_reference() -> str:
    """Directives of mkdocstrings for everything public, functions with the classes that they return."""
    exported = {name: getattr(idc_hub, name) for name in idc_hub.__all__}
    errors = [thing for thing in exported.values() if isclass(thing) and issubclass(thing, BaseException)]
    classes = [thing for thing in exported.values() if isclass(thing) and thing not in errors]
    parts = [
        "# Python reference",
        "Made from the docstrings. Import functions, classes, and errors from `idc_hub`. The classes of results follow "
        "the functions that return them. For an introduction see [Python](../python.md).",
        "## Functions",
    ]
    for thing in exported.values():
        if not isclass(thing):
            parts += map(_directive, [thing, *_classes_in(thing, exported)])
    parts += ["## Classes", *map(_directive, classes), "## Errors", *map(_directive, errors)]
    return "\n\n".join(dict.fromkeys(parts))


def _classes_in(thing: Any, exported: Container[str]) -> Iterator[Any]:
    """Classes of the same module that a function returns, and those of their fields; not the exported ones."""
    module = sys.modules[thing.__module__]
    hints = thing.__annotations__ if isclass(thing) else {"": thing.__annotations__["return"]}
    for name in re.findall(r"\w+", " ".join(map(str, hints.values()))):
        found = getattr(module, name, None)
        if isclass(found) and found.__module__ == module.__name__ and name not in exported:
            yield found
            yield from _classes_in(found, exported)


def _directive(thing: Any) -> str:
    return f"::: {thing.__module__}.{thing.__qualname__}"
