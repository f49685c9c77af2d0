"""idc condense, select, work, report, quality, verify: make a set and inspect it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from idc_cli import completion
from idc_cli.options import (
    ColumnOption,
    ConfigOption,
    DryRunOption,
    ExcludeOption,
    HRVersionOption,
    IncludeOption,
    JsonOption,
    OverridesArgument,
    ProgressOption,
    QuietOption,
    RecipeArgument,
    RunArgument,
    RunDirOption,
    ScaleOption,
    SplitOption,
    TrackerOption,
    TrustRecipeOption,
    examples,
)
from idc_cli.output import Sink
from idc_hub.baselines import SelectionMethod
from idc_hub.errors import first_few

app = typer.Typer()


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc condense quickstart",
        "idc condense small-x4 source.path=photos patches.ratio=0.05",
        "idc condense my.yaml --num-processes 4 --run-dir /scratch/mine",
        "idc condense org/condensed-div2k-x4 source.path=DIV2K_train_HR --dry-run --price-per-hour 2.50",
    ),
)
def condense(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    run_dir: RunDirOption = None,
    num_processes: Annotated[
        int | None,
        typer.Option(min=1, help="Number of workers.", show_default="one per GPU, or as many as the CPU cores allow"),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete the Run directory and start again.")] = False,
    trust_recipe: TrustRecipeOption = False,
    tracker: TrackerOption = None,
    dry_run: DryRunOption = False,
    price_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="What a worker costs an hour; --dry-run adds the price.", show_default="no price"),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Condense photographs: optimize LR patches, make their HR with the recipe's teacher, prepare the repository.

    If interrupted, run the same command again to continue.
    """
    import idc_hub

    if price_per_hour is not None and not dry_run:
        raise typer.BadParameter("only --dry-run predicts a price.", param_hint="--price-per-hour")
    sink = Sink(as_json, quiet, progress)
    checked = idc_hub.Recipe.load(recipe, overrides or (), trust_recipe=trust_recipe)
    result = idc_hub.condense(
        checked,
        run_dir=run_dir,
        num_processes=num_processes,
        restart=restart,
        dry_run=dry_run,
        trackers=tracker or (),
        price_per_hour=price_per_hour,
        progress=sink.reporting,
    )
    show_condensed(sink, result, checked.name, dry_run)


def show_condensed(sink: Sink, result: Any, name: str, dry_run: bool) -> None:
    """Print the result of `condense` or `launch_ray`."""
    for warning in getattr(result, "warnings", ()):
        sink.warn(f"{warning}.")
    sink.result(result, leave_out=("quality", "warnings"))
    if dry_run:
        sink.hint("\nStart      the same command without --dry-run")
    else:
        done = f"Condensed {result.real_patches:,} patches of {result.photographs:,} photographs to {result.patches:,}"
        _summarize(sink, done, result, name)


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc select random photos --ratio 0.05",
        "idc select hardness photos selection.hardness=edsr-small selection.drop_top=0",
        "idc select leaves photos --teacher edsr-small",
        "idc select cf-greedy DIV2K_train_HR --ratio 0.01 --teacher edsr-small --run-dir runs/cf-greedy",
        "idc select k-center org/photographs --seed 1 patches.size=48 patches.stride=24 name=far-apart",
    ),
)
def select(
    method: Annotated[
        SelectionMethod,
        typer.Argument(
            help="The baseline. herding-deepcore: herding with the sign error of DeepCore's code. hardness: what "
            "upscaling gets most wrong. filtered: random without technical defects. leaves: drawn, of no photograph.",
            metavar="METHOD",
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(help="A folder or zip of photographs, or a dataset on the Hub.", metavar="SOURCE"),
    ],
    overrides: OverridesArgument = None,
    ratio: Annotated[float, typer.Option(help="Fraction of the patches to choose; whole takes all.")] = 0.1,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    column: ColumnOption = None,
    scale: ScaleOption = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
    teacher: Annotated[
        str, typer.Option(help="Source of HR: real, for the photographs' own pixels, or a teacher (`idc teachers ls`).")
    ] = "real",
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Choose real patches by a baseline, or draw dead leaves, to compare a condensed set with.

    If interrupted, run the same command again to continue.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    chosen = {"include": include, "exclude": exclude, "config": config, "split": split, "column": column}
    options = [f"source.{key}={json.dumps(value)}" for key, value in chosen.items() if value]
    recipe = idc_hub.selection_recipe(
        method, source, ratio=ratio, scale=scale, seed=seed, teacher=teacher, overrides=[*options, *(overrides or ())]
    )
    result = idc_hub.select(recipe, run_dir=run_dir, progress=sink.reporting)
    sink.result(result, leave_out=("quality",))
    done = f"Chose {result.patches:,} of {result.real_patches:,} patches of {result.photographs:,} photographs"
    _summarize(sink, done, result, Path(result.run).name)


def _summarize(sink: Sink, done: str, result: Any, name: str) -> None:
    """Say what was made, how long it took, where to look, and what to do next."""
    run = result.run
    sink.note(
        f"\n{done}, and made HR version {result.hr_version}; this call took {result.seconds:,.1f} s.\n"
        f"Look at    {run}/repo/report/patches.png and {run}/repo/README.md"
    )
    sink.hint(
        f"""\
Quality    idc quality {run}
Load       load_dataset("{run}/repo", split="train")  # {result.patches} pairs; checked
Publish    idc push {run} YOUR_NAME/{name} --license LICENSE
Remake HR  idc regenerate {run} --teacher bicubic --name bicubic"""
    )


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc work runs/div2k-x4",
        "idc work runs/div2k-x4 --rank 1 --world-size 2",
    ),
)
def work(
    run: RunArgument,
    rank: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of this worker: picks its GPU and where it begins.", show_default="RANK, or 0"
        ),
    ] = None,
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help="How many workers are started together.", show_default="WORLD_SIZE, or 1"),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Condense photographs of a Run as one worker, beside any number of others.

    Start one for each GPU, on every machine that sees the Run. Then `idc condense` makes HR and the repository.
    Launchers of Python modules start it too: `torchrun --nproc-per-node 4 -m idc_cli.main work RUN`.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    sink.result(idc_hub.work(run, rank=rank, world_size=world_size, progress=sink.reporting))
    sink.hint(f"\nMake HR    idc condense {run} --run-dir {run}")


@app.command(
    rich_help_panel="Make a set", epilog=examples("idc report runs/quickstart", "idc report runs/quickstart --json")
)
def report(
    run: RunArgument, as_json: JsonOption = False, quiet: QuietOption = False, progress: ProgressOption = "text"
) -> None:
    """Write a page to look at: patches beside real ones and HR versions, losses, quality figures, outliers first.

    The page is report.html in the Run. It needs no network, shows real photographs, and is never pushed.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    result = idc_hub.report(run, progress=sink.reporting)
    sink.result(result)
    sink.hint(f"\nOpen {result.path} in a browser.")


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc quality runs/quickstart",
        "idc quality runs/quickstart --hr-version bicubic --teacher bicubic --json",
    ),
)
def quality(
    run: RunArgument,
    hr_version: HRVersionOption = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="The teacher that made it.", show_default="the recipe's teacher")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Compare patches with random real patches of the same photographs.

    Figures go to the Run, its idc.json and its card. Figures that fail are warnings: the exit code is still 0.
    """
    import idc_hub
    from idc_hub.dataset.judgment import table

    sink = Sink(as_json, quiet, progress)
    result = idc_hub.quality(run, hr_version=hr_version, teacher=teacher, progress=sink.reporting)
    for warning in result.warnings:
        sink.warn(f"{warning}.")
    sink.result(result, leave_out=("warnings", "figures", "lr_digest", "spectra"))
    sink.text()
    sink.table(("figure", "set", "random real", "wanted", "verdict"), table(result.figures))
    sink.hint(f"\nLook at it  idc report {run}")


@app.command(
    rich_help_panel="Make a set",
    epilog=examples("idc verify runs/quickstart", "idc verify runs/quickstart/repo --json"),
)
def verify(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_REPO", help="A Run, or a repository's folder.", autocompletion=completion.runs),
    ],
    as_json: JsonOption = False,
) -> None:
    """Check digests, counts and pairing, and load every HR version; exit code 1 if a check fails."""
    import idc_hub

    sink = Sink(as_json)
    result = idc_hub.verify(path)
    one_color = result.one_color or []
    sink.result(result, leave_out=("checked", "one_color"))
    sink.table(("file", "checked"), list((result.checked or {}).items()))
    if one_color:
        sink.warn(f"Pairs of one single color: {first_few(one_color)}. Do their photographs have such areas?")
    sink.note("All checks passed.")
    if result.name:
        sink.hint(f"\nPublish    idc push {path} YOUR_NAME/{result.name} --license LICENSE")
