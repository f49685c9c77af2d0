"""idc launch slurm, ray: condense on other machines."""

from typing import Annotated

import typer

from idc_cli.condensing import show_condensed
from idc_cli.options import (
    DryRunOption,
    JsonOption,
    OverridesArgument,
    QuietOption,
    RecipeArgument,
    RunDirOption,
    TrustRecipeOption,
    examples,
)
from idc_cli.output import Sink

app = typer.Typer()
launch = typer.Typer(no_args_is_help=True, help="Condense on a cluster: SLURM, Ray.")
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
    trust_recipe: TrustRecipeOption = False,
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
        idc_hub.Recipe.load(recipe, overrides or (), trust_recipe=trust_recipe),
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
        sink.note(f"\nWatch  idc status {result.run}\nStop   scancel {result.workers} {result.finish}")


@launch.command(
    epilog=examples(
        "idc launch ray div2k-x4 source.path=DIV2K_train_HR --workers 8 --gpus-per-worker 1 --address auto",
        "idc launch ray small-x4 source.path=photos --workers 4",
    ),
)
def ray(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    workers: Annotated[int, typer.Option(min=1, help="Photographs condensed at once.", show_default=False)] = ...,  # type: ignore[assignment]
    run_dir: RunDirOption = None,
    address: Annotated[
        str | None,
        typer.Option(help="Address of the cluster.", show_default="RAY_ADDRESS, `ray start`, or a new one here"),
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="GPUs of each worker; a fraction lets several share one.")
    ] = 0,
    trust_recipe: TrustRecipeOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Condense on a Ray cluster, then make HR and the repository on this machine, which must be one of its nodes.

    No shared file system is needed. A photograph whose node dies continues on another one.
    """
    import idc_hub

    checked = idc_hub.Recipe.load(recipe, overrides or (), trust_recipe=trust_recipe)
    result = idc_hub.launch_ray(
        checked,
        workers=workers,
        run_dir=run_dir,
        address=address,
        gpus_per_worker=gpus_per_worker,
        dry_run=dry_run,
        progress=not quiet,
    )
    show_condensed(Sink(as_json, quiet), result, checked.name, dry_run)
