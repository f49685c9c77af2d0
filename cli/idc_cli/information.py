"""idc recipes, teachers, env, schema: show available recipes and teachers, this machine, and formats."""

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from idc_cli.options import JsonOption, OverridesArgument, RecipeArgument, ScaleOption, examples
from idc_cli.output import Sink

app = typer.Typer()
recipes = typer.Typer(no_args_is_help=True, help="List, show, copy and check recipes.")
teachers = typer.Typer(no_args_is_help=True, help="List and show teachers, which make HR patches.")

SCHEMA_FILE = "idc-recipe.schema.json"
_MODELINE = "# yaml-language-server: $schema="
app.add_typer(recipes, name="recipes", rich_help_panel="Look around")
app.add_typer(teachers, name="teachers", rich_help_panel="Look around")


@dataclass(frozen=True)
class BundledRecipe:
    """An entry of `idc recipes ls`.

    Attributes:
        name: The name to give to `idc condense`.
        description: The first line of its file.
    """

    name: str
    description: str


@dataclass(frozen=True)
class CheckedRecipe:
    """Result of `idc recipes check`.

    Attributes:
        lr_recipe_hash: Hash of the keys that determine the LR patches.
        recipe: Every key of the recipe (`idc recipes schema`).
    """

    lr_recipe_hash: str
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Environment:
    """Result of `idc env`.

    Attributes:
        packages: Versions of idc-hub and of the packages that influence results; None if one is not installed.
        python: Version of Python.
        system: Operating system and its version, and the processor.
        cpus: Number of processors.
        gpus: Names of the GPUs that torch sees.
        cuda: Version of CUDA that torch was built for.
        hub: Address of the Hub.
        offline: Whether the Hub is never asked (HF_HUB_OFFLINE).
        token: Whether there is an access token.
        runs: Folder of Runs.
    """

    packages: dict[str, str | None]
    python: str
    system: str
    cpus: int | None
    gpus: list[str]
    cuda: str | None
    hub: str
    offline: bool
    token: bool
    runs: str


@recipes.command("ls", epilog=examples("idc recipes ls", "idc recipes ls --json"))
def list_recipes(as_json: JsonOption = False) -> None:
    """List the recipes that come with idc-hub."""
    from idc_hub.recipe_reader import bundled_recipes

    found = [
        BundledRecipe(name, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
        for name, path in bundled_recipes().items()
    ]
    sink = Sink(as_json)
    sink.result(found)
    sink.table(("recipe", "description"), [(entry.name, entry.description) for entry in found])
    sink.hint("\nCopy one   idc recipes cp NAME my.yaml")


@recipes.command("show", epilog=examples("idc recipes show quickstart", "idc recipes show org/condensed-div2k-x4"))
def show_recipe(recipe: RecipeArgument) -> None:
    """Print the file of a recipe, with its comments."""
    from idc_hub.recipe import find_recipe

    Sink().text(_read(find_recipe(recipe)).rstrip("\n"))


@recipes.command("cp", epilog=examples("idc recipes cp small-x4 my.yaml"))
def copy_recipe(
    recipe: RecipeArgument,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="The new file, or a folder for it.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe to a file, with a JSON schema so that editors complete and describe its keys."""
    from idc_hub.errors import RecipeError
    from idc_hub.recipe import find_recipe, recipe_schema

    path = find_recipe(recipe)
    target = destination / path.name if destination.is_dir() else destination
    if target.exists() and not force:
        raise RecipeError(f"{target} exists already.", "Choose another name, or overwrite it with --force.")
    lines = _read(path).splitlines(keepends=True)
    body = "".join(line for line in lines if not line.startswith(_MODELINE))
    target.parent.mkdir(parents=True, exist_ok=True)
    # The schema is next to the copy, not in the installation, so that the folder can be moved, shared or committed.
    schema = json.dumps(recipe_schema(), indent=2, ensure_ascii=False)
    (target.parent / SCHEMA_FILE).write_text(f"{schema}\n", encoding="utf-8")
    target.write_text(f"{_MODELINE}{SCHEMA_FILE}\n{body}", encoding="utf-8")
    Sink().hint(f"Edit {target}, then: idc condense {target}")


@recipes.command("schema", epilog=examples("idc recipes schema"))
def print_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from idc_hub.recipe import recipe_schema

    Sink(as_json=True).result(recipe_schema())


@recipes.command(
    "check", epilog=examples("idc recipes check my.yaml", "idc recipes check small-x4 source.path=photos --json")
)
def check_recipe(recipe: RecipeArgument, overrides: OverridesArgument = None, as_json: JsonOption = False) -> None:
    """Check a recipe and print it with every key; if it is invalid, list all problems."""
    from idc_hub.recipe import Recipe

    checked = Recipe.load(recipe, overrides or (), trust_recipe=True)  # it is only printed
    sink = Sink(as_json)
    if as_json:
        sink.result(CheckedRecipe(checked.lr_recipe_hash, checked.model_dump(mode="json")))
    sink.text(f"# lr_recipe_hash: {checked.lr_recipe_hash}\n{checked.to_yaml()}".rstrip())


@teachers.command("ls", epilog=examples("idc teachers ls", "idc teachers ls --json"))
def list_teachers(as_json: JsonOption = False) -> None:
    """List the bundled teachers; any trained network can be a teacher too."""
    from idc_hub.errors import NetworkError
    from idc_hub.networks import NETWORKS
    from idc_hub.networks.teachers import KINDS, load_teacher

    found: list[dict[str, Any]] = []
    for name in ("bicubic", *NETWORKS):
        for scale in (2, 3, 4):
            try:
                found.append(load_teacher(name, scale=scale).describe())
            except NetworkError:
                continue  # the package has no weights for this scale
    sink = Sink(as_json)
    sink.result(found)
    sink.table(
        ("teacher", "scale", "kind", "license"),
        [(entry["name"], f"x{entry['scale']}", entry["kind"], entry["license"]) for entry in found],
    )
    sink.note("\n--teacher accepts:")
    for kind, what in KINDS.items():
        sink.note(f"  {kind:<13} {what}")


@teachers.command("show", epilog=examples("idc teachers show edsr-small", "idc teachers show networks/mine --json"))
def show_teacher(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="A name, a folder or a Hub id.", show_default=False)
    ],
    scale: ScaleOption = 4,
    as_json: JsonOption = False,
) -> None:
    """Show a teacher: kind, scale, license and the sha256 of its weights."""
    from idc_hub.networks.teachers import load_teacher

    Sink(as_json).result(load_teacher(teacher, scale=scale).describe())


@app.command(rich_help_panel="Look around", epilog=examples("idc env", "idc env --json"))
def env(as_json: JsonOption = False) -> None:
    """Show versions, devices and Hub settings, without secrets, to paste into a bug report."""
    import torch
    from huggingface_hub import constants, get_token

    from idc_hub.machine import PACKAGES

    facts = Environment(
        packages={package: _version(package) for package in PACKAGES},
        python=platform.python_version(),
        system=platform.platform(),
        cpus=os.cpu_count(),
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        cuda=torch.version.cuda,
        hub=constants.ENDPOINT,
        offline=constants.is_offline_mode(),
        token=get_token() is not None,
        runs=os.environ.get("IDC_RUNS", "runs"),
    )
    sink = Sink(as_json)
    sink.result(facts)
    sink.note("\nIn a bug report, add the command and all that it printed, with IDC_DEBUG=1.")


@app.command(
    rich_help_panel="Look around", epilog=examples("idc schema condense", "idc schema recipes check", "idc schema")
)
def schema(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="A command that has --json.", show_default="all of them"),
    ] = None,
) -> None:
    """Print the JSON schema of what a command prints with --json."""
    found = _schemas()
    name = " ".join(command or ())
    if name and name not in found:
        raise typer.BadParameter(f"{name} has no --json. These have: {', '.join(found)}.", param_hint="COMMAND")
    Sink(as_json=True).result(found[name] if name else found)


def _schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of each command's --json, made from the classes that the commands print."""
    from pydantic import TypeAdapter

    import idc_hub
    from idc_hub.dataset.manifest import TeacherRecord

    kinds: dict[str, Any] = {
        name: get_type_hints(getattr(idc_hub, name.replace("-", "_").replace(" ", "_")))["return"]
        for name in (
            *(verb.replace("_", "-") for verb in idc_hub.VERBS),
            "launch slurm",
            "launch ray",
            "launch hf-jobs",
        )
    }
    kinds |= {"recipes ls": list[BundledRecipe], "recipes check": CheckedRecipe, "env": Environment}
    found = {name: TypeAdapter(kind).json_schema(mode="serialization") for name, kind in kinds.items()}
    # A record leaves out what is missing, which only its schema for reading says.
    found["teachers ls"] = TypeAdapter(list[TeacherRecord]).json_schema()
    return found | {"teachers show": TypeAdapter(TeacherRecord).json_schema()}


def _read(path: Path) -> str:
    """The text of a recipe's file."""
    from idc_hub.errors import RecipeError

    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text.", "A recipe is a YAML file.") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
