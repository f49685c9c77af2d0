"""What the shell completes: recipes, Runs and HR versions. Nothing heavy is imported, and files are read leniently."""

import json
import os
from pathlib import Path

import typer


def recipes(incomplete: str) -> list[str]:
    """Names of the recipes that come with idc-hub."""
    from idc_hub.recipe_reader import bundled_recipes

    return [name for name in bundled_recipes() if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Paths of the Runs in $IDC_RUNS, or in ./runs."""
    found = Path(os.environ.get("IDC_RUNS", "runs")).glob("*/")
    names = (str(run) for run in sorted(found) if (run / "run.json").is_file() or (run / "repo").is_dir())
    return [name for name in names if name.startswith(incomplete)]


def hr_versions(context: typer.Context, incomplete: str) -> list[str]:
    """HR versions of the Run, or the repository's folder, that the command line names."""
    # While an option has no value yet, the parser leaves the arguments before it in `args`.
    given = [*(context.params.get(key) for key in ("run", "run_or_repo", "data")), *context.args]
    for path in (Path(place) / below for place in given if place for below in ("repo", "")):
        try:
            names = json.loads((path / "idc.json").read_bytes())["hr_versions"]
            return [name for name in names if name.startswith(incomplete)]
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return []
