"""The architecture: imports go down only, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "idc_hub"
FLOORS = ["images", "networks", "condensation", "judging", "storage", "running", "publishing"]
ALLOWED_THIRD_PARTIES = {
    "typer": {"cli"},
    "rich": {"cli", "running"},
    "accelerate": {"judging", "running"},
    "filelock": {"storage", "running"},
    "diffusers": {"networks"},
    "pyarrow": {"storage"},
    "huggingface_hub": {"images", "networks", "publishing", "recipe_reader", "cli"},
    "datasets": {"images", "storage", "publishing", "cli"},
}


def floor_of(parts: tuple[str, ...]) -> int:
    """0 for recipe and errors, 1.. for the rooms, above them api and the package's own __init__."""
    if len(parts) < 2 or parts[1] == "api":
        return len(FLOORS) + 1
    return FLOORS.index(parts[1]) + 1 if parts[1] in FLOORS else 0


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


# The package's own __init__ hands out the public names of all rooms and stands above them.
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
            assert floor_of(parts) <= floor_of(here), f"{'.'.join(here)} imports {name}, which lies above it"
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


def test_idc_help_imports_neither_torch_nor_datasets() -> None:
    code = (
        "import sys\nfrom idc_cli.main import main\nsys.argv = ['idc', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'datasets') if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "condense" in result.stdout
    assert result.stderr.strip() == "[]"
