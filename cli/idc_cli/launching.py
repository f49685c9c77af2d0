"""idc launch slurm: condense on other machines."""

from typing import Annotated

import typer

from idc_cli.options import (
    DryRunOption,
    JsonOption,
    OverridesArgument,
    QuietOption,
    RecipeArgument,
    RunDirOption,
    examples,
)
from idc_cli.output import Sink

app = typer.Typer()
launch = typer.Typer(no_args_is_help=True, help="Condense on a cluster: SLURM.")
app.add_typer(launch, name="launch", rich_help_panel="Make a set")


@launch.command(
    epilog=examples(
        "idc launch slurm div2k-x4 source.path=/data/DIV2K --array 16 --partition gpu --gpus 1 --time 12:00:00",
        "idc launch slurm div2k-x4 --array 16 --sbatch account=sr --sbatch constraint=a100 --dry-run",
    ),
)
def slurm(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    array: Annotated[int, typer.Option(min=1, help="Number of workers.", show_default=False)] = ...,  # type: ignore[assignment]
    run_dir: RunDirOption = None,
    partition: Annotated[str | None, typer.Option(help="Partition.", show_default="the cluster's")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of a job.", show_default="the cluster's")] = None,
    gpus: Annotated[int, typer.Option(min=0, max=1, help="GPUs of each worker.")] = 0,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another option of sbatch; may be repeated.", show_default=False),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Submit an array of workers to SLURM, and a job that makes HR and the repository when they have ended.

    A worker whose time is nearly up saves, leaves and is requeued. --dry-run prints the scripts.
    """
    import idc_hub

    named = {"partition": partition, "time": time, "gpus": str(gpus) if gpus else None}
    options = {name: value for name, value in named.items() if value}
    options |= {name: value for name, _, value in (option.partition("=") for option in sbatch or ())}
    sink = Sink(as_json, quiet)
    result = idc_hub.launch_slurm(
        idc_hub.Recipe.load(recipe, overrides or ()),
        array=array,
        run_dir=run_dir,
        options=options,
        dry_run=dry_run,
        progress=not quiet,
    )
    sink.result(result, leave_out=("scripts",))
    if dry_run:
        for name, script in result.scripts.items():
            sink.text(f"\n# {name}\n{script}")
    else:
        sink.note(f"\nWatch  idc status {result.run} --watch\nStop   scancel {result.workers} {result.finish}")
