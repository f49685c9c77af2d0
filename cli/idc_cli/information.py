"""idc recipes, teachers, env: show available recipes and teachers, and this machine."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

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


@recipes.command("ls", epilog=examples("idc recipes ls", "idc recipes ls --json"))
def list_recipes(as_json: JsonOption = False) -> None:
    """List the recipes that come with idc-hub."""
    from idc_hub.recipe_reader import bundled_recipes

    found = [
        {"name": name, "description": path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")}
        for name, path in bundled_recipes().items()
    ]
    sink = Sink(as_json)
    sink.result(found)
    sink.table(("recipe", "description"), [(entry["name"], entry["description"]) for entry in found])


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
    Sink().note(f"Edit {target}, then: idc condense {target}")


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
        sink.result({"lr_recipe_hash": checked.lr_recipe_hash, "recipe": checked.model_dump(mode="json")})
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
    """Show versions, devices and Hub settings for a bug report, without secrets."""
    import torch
    from huggingface_hub import constants, get_token

    from idc_hub.machine import PACKAGES

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "hub": constants.ENDPOINT,
        "offline": constants.is_offline_mode(),
        "token": get_token() is not None,
        "runs": os.environ.get("IDC_RUNS", "runs"),
        "packages": {package: _version(package) for package in PACKAGES},
    }
    Sink(as_json).result(facts)


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
