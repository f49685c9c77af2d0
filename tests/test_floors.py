"""The architecture: rooms import only from their own floor and below, and heavy packages are imported late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "idc_hub"
FLOORS = {
    "images": 1,
    "networks": 2,
    "condensation": 3,
    "runs": 4,
    "dataset": 5,
    "selection": 6,
    "training": 6,
    "benchmarking": 7,
    "hub": 8,
    "clusters": 8,
    "verbs": 9,
}
"""The floor of each room. Modules outside rooms (errors, atomic, machine, recipe) are on the ground floor."""
NEIGHBORS = {("selection", "training"), ("training", "selection"), ("hub", "clusters"), ("clusters", "hub")}
"""Rooms on the same floor that may not import each other."""
ALLOWED_THIRD_PARTIES = {
    "typer": {"cli"},
    "rich": {"cli", "runs"},
    "accelerate": {"runs", "training"},
    "filelock": {"runs"},
    "diffusers": {"networks"},
    "pyarrow": {"dataset"},
    "ray": {"clusters"},
    "huggingface_hub": {"images", "networks", "dataset", "hub", "clusters", "hub_errors", "recipe_reader", "cli"},
    "datasets": {"images", "dataset", "training"},
}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module; empty on the ground floor."""
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else ""


def floor_of(parts: tuple[str, ...]) -> int:
    """The floor of a module; the package's own __init__, which exports the verbs, is above all rooms."""
    return 10 if len(parts) < 2 else FLOORS.get(parts[1], 0)


def imported(path: Path) -> list[str]:
    names = []
    package = path.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


LIBRARY = sorted(PACKAGE.rglob("*.py"))
CLI = sorted((REPOSITORY / "cli" / "idc_cli").rglob("*.py"))


# The package's own __init__ exports names of all rooms and is above them.
@pytest.mark.parametrize(
    "path",
    [path for path in LIBRARY if path != PACKAGE / "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_module_imports_only_from_its_own_floor_and_those_below(path: Path) -> None:
    here = path.relative_to(REPOSITORY).with_suffix("").parts
    for name in imported(path):
        parts = tuple(name.split("."))
        if parts[0] == "idc_hub":
            assert floor_of(parts) <= floor_of(here), f"{'.'.join(here)} imports {name}, which is above it"
            assert (room_of(here), room_of(parts)) not in NEIGHBORS, f"{'.'.join(here)} imports {name}, its neighbor"
        assert parts[0] != "idc_cli", f"{'.'.join(here)} imports the command line"


@pytest.mark.parametrize("path", [*LIBRARY, *CLI], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_third_parties_stay_on_their_floors(path: Path) -> None:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    room = parts[0] if parts[0] == "cli" else parts[1]
    for name in imported(path):
        allowed = ALLOWED_THIRD_PARTIES.get(name.split(".")[0])
        assert allowed is None or room in allowed, f"{'/'.join(parts)} imports {name}"


@pytest.mark.parametrize("command", ["import idc_hub", "import idc_hub, idc_cli.main"])
def test_importing_costs_no_heavy_package(command: str) -> None:
    code = f"{command}\nimport sys\nprint([m for m in ('torch', 'datasets', 'pyarrow', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def heavy_packages_of(*arguments: object) -> list[str]:
    """torch, datasets and scipy, as far as a command imports them."""
    code = (
        f"import sys\nfrom idc_cli.main import main\nsys.argv = {['idc', *map(str, arguments)]}\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([m for m in ('torch', 'datasets', 'scipy') if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(result.stderr.splitlines()[-1])


def test_help_and_a_look_at_a_run_import_no_heavy_package(tmp_path: Path) -> None:
    photograph = Instance("a", "a.png", "0" * 64, 256, 256, patches=1, count=1)
    recipe = Recipe.from_dict({"name": "far", "source": {"path": "away"}})
    run = Run.create(tmp_path / "run", recipe, [photograph], {})
    run.write_patches(photograph, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), {"steps": 200})
    assert heavy_packages_of("--help") == []
    assert heavy_packages_of("status", run.path) == []
