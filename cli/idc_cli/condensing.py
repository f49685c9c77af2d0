"""idc condense, select, status, quality, verify: make a set and look after it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from idc_cli.options import (
    DryRunOption,
    JsonOption,
    OverridesArgument,
    QuietOption,
    RecipeArgument,
    RunArgument,
    RunDirOption,
    ScaleOption,
    examples,
)
from idc_cli.output import Sink

app = typer.Typer()

# A copy of what the recipe knows: pydantic would slow every `idc --help` down. A test compares them.
Selection = Literal["whole", "random", "herding", "herding-deepcore", "k-center", "dcsr", "cf-greedy"]


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc condense quickstart",
        "idc condense small-x4 source.path=photos patches.ratio=0.05",
        "idc condense my.yaml --num-processes 4 --run-dir /scratch/mine",
        "idc condense org/condensed-div2k-x4 source.path=DIV2K_train_HR --dry-run",
    ),
)
def condense(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    run_dir: RunDirOption = None,
    num_processes: Annotated[
        int | None,
        typer.Option(min=1, help="Workers.", show_default="one for each GPU, or what the CPU can feed"),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what the Run directory holds.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Condense photographs: LR patches, HR by the recipe's teacher, and a repository ready to push.

    The same command continues what was interrupted.
    """
    import idc_hub

    sink = Sink(as_json, quiet)
    checked = idc_hub.Recipe.load(recipe, overrides or ())
    result = idc_hub.condense(
        checked,
        run_dir=run_dir,
        num_processes=num_processes,
        restart=restart,
        dry_run=dry_run,
        progress=not quiet,
    )
    for warning in getattr(result, "warnings", ()):
        sink.warn(f"{warning}.")
    sink.result(result, leave_out=("quality", "warnings"))
    if not dry_run:
        sink.note(_next_steps(result.run, checked.name, result.patches))


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc select random photos --ratio 0.05",
        "idc select cf-greedy DIV2K_train_HR --ratio 0.01 --teacher edsr-small --run-dir runs/cf-greedy",
        "idc select k-center org/photographs --seed 1 patches.size=48 patches.stride=24 name=far-apart",
    ),
)
def select(
    method: Annotated[
        Selection,
        typer.Argument(help="How to choose; herding-deepcore has the released code's inverted sign.", metavar="METHOD"),
    ],
    source: Annotated[
        str,
        typer.Argument(help="A folder or zip of photographs, or a dataset on the Hub.", metavar="SOURCE"),
    ],
    overrides: OverridesArgument = None,
    ratio: Annotated[float, typer.Option(help="Which part of the patches to choose; whole takes all.")] = 0.1,
    scale: ScaleOption = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
    teacher: Annotated[
        str, typer.Option(help="What makes HR: real, the photographs' own, or a teacher (`idc teachers ls`).")
    ] = "real",
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Choose real patches by a baseline: the fair rivals of a condensed set, as a Run like any other.

    The same command continues what was interrupted.
    """
    import idc_hub

    sink = Sink(as_json, quiet)
    recipe = idc_hub.selection_recipe(
        method, source, ratio=ratio, scale=scale, seed=seed, teacher=teacher, overrides=overrides or ()
    )
    result = idc_hub.select(recipe, run_dir=run_dir, progress=not quiet)
    sink.result(result, leave_out=("quality",))
    sink.note(_next_steps(result.run, Path(result.run).name, result.patches))


def _next_steps(run: str, name: str, patches: int) -> str:
    return f"""
Look at    {run}/repo/report/patches.png and {run}/repo/README.md
Figures    idc quality {run}
Load it    load_dataset("{run}/repo", split="train") was tried and gives {patches} pairs
Publish    idc push {run} YOUR_NAME/{name} --license LICENSE
Remake HR  idc regenerate {run} --teacher bicubic --name bicubic"""


@app.command(
    rich_help_panel="Make a set",
    epilog=examples("idc status runs/quickstart", "idc status runs/quickstart --json"),
)
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show what of a Run is finished, running, failed or waiting."""
    import idc_hub

    sink = Sink(as_json)
    result = idc_hub.status(run)
    sink.result(result, leave_out=("instances",))
    rows = [
        (entry["id"], entry["state"], entry["patches"], f"{entry['step']}/{entry['steps']}", entry["error"] or "")
        for entry in result.instances
    ]
    sink.text()
    sink.table(("photograph", "state", "patches", "steps", "error"), rows)


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc quality runs/quickstart",
        "idc quality runs/quickstart --hr-version bicubic --teacher bicubic --json",
    ),
)
def quality(
    run: RunArgument,
    hr_version: Annotated[
        str | None, typer.Option("--hr-version", help="Which HR version.", show_default="the default version")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="What made it.", show_default="the recipe's teacher")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure patches beside random real ones of the same photographs; say which figures are not natural.

    The Run, its idc.json and its card keep what was found. The exit code is 0 also where figures fail.
    """
    import idc_hub
    from idc_hub.images.figures import table

    sink = Sink(as_json, quiet)
    result = idc_hub.quality(run, hr_version=hr_version, teacher=teacher, progress=not quiet)
    for warning in result.warnings:
        sink.warn(f"{warning}.")
    sink.result(result, leave_out=("warnings", "figures", "lr_digest", "spectra"))
    sink.text()
    sink.table(("figure", "set", "random real", "wanted", "verdict"), table(result.figures))


@app.command(
    rich_help_panel="Make a set",
    epilog=examples("idc verify runs/quickstart", "idc verify runs/quickstart/repo --json"),
)
def verify(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_REPO", help="A Run, or a repository's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Check digests, counts and pairing, and that every HR version loads; exit code 1 says what is wrong."""
    import idc_hub

    sink = Sink(as_json)
    result = idc_hub.verify(path)
    same = result.one_color or []
    sink.result(result, leave_out=("one_color",))
    if same:
        more = f" and {len(same) - 3} more" if len(same) > 3 else ""
        sink.warn(f"Pairs of one single color: {', '.join(same[:3])}{more}. Do their photographs have such pieces?")
    sink.note("Everything is in order.")
