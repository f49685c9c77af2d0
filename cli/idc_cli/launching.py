"""idc launch slurm, ray, hf-jobs: condense on other machines."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from idc_cli.condensing import show_condensed
from idc_cli.options import (
    DryRunOption,
    JsonOption,
    OverridesArgument,
    ProgressOption,
    QuietOption,
    RecipeArgument,
    RunDirOption,
    TokenOption,
    TrustRecipeOption,
    examples,
)
from idc_cli.output import Sink

app = typer.Typer()
launch = typer.Typer(no_args_is_help=True, help="Condense on a cluster: SLURM, Ray, Hugging Face Jobs.")
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
    progress: ProgressOption = "text",
) -> None:
    """Submit an array of workers to SLURM, and a job that makes HR and the repository when they have ended.

    A worker whose time is nearly up saves, leaves and is requeued. --dry-run prints the scripts.
    """
    import idc_hub

    named = {"partition": partition, "time": time, "gpus": str(gpus) if gpus else None}
    options = {name: value for name, value in named.items() if value}
    options |= {name: value for name, _, value in (option.partition("=") for option in sbatch or ())}
    sink = Sink(as_json, quiet, progress)
    result = idc_hub.launch_slurm(
        idc_hub.Recipe.load(recipe, overrides or (), trust_recipe=trust_recipe),
        array=array,
        run_dir=run_dir,
        options=options,
        dry_run=dry_run,
        progress=sink.reporting,
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
    progress: ProgressOption = "text",
) -> None:
    """Condense on a Ray cluster, then make HR and the repository on this machine, which must be one of its nodes.

    No shared file system is needed. A photograph whose node dies continues on another one.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    checked = idc_hub.Recipe.load(recipe, overrides or (), trust_recipe=trust_recipe)
    result = idc_hub.launch_ray(
        checked,
        workers=workers,
        run_dir=run_dir,
        address=address,
        gpus_per_worker=gpus_per_worker,
        dry_run=dry_run,
        progress=sink.reporting,
    )
    show_condensed(sink, result, checked.name, dry_run)


@launch.command(
    epilog=examples(
        "idc launch hf-jobs my.yaml source.path=OWNER/DIV2K --flavor a10g-small --count 8 --dry-run",
        "idc launch hf-jobs my.yaml source.path=OWNER/DIV2K --flavor a100-large --timeout 2d --namespace my-lab",
    ),
)
def hf_jobs(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    flavor: Annotated[str, typer.Option(help="Hardware of a job (`hf jobs hardware`).", show_default=False)] = ...,  # type: ignore[assignment]
    count: Annotated[int, typer.Option(min=1, help="Number of jobs.")] = 1,
    timeout: Annotated[str, typer.Option(help="Time limit of a job.")] = "12h",
    image: Annotated[str | None, typer.Option(help="Docker image that has uv.", show_default="that of uv")] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Who pays for the jobs and owns the results.", show_default="the token's account")
    ] = None,
    upload_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Minutes between a job's uploads of finished photographs.", show_default="5"),
    ] = None,
    run_dir: RunDirOption = None,
    trust_recipe: TrustRecipeOption = False,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = "text",
) -> None:
    """Condense photographs of a Hub dataset on Hugging Face Jobs, then make HR and the repository on this machine.

    Run the same command again to download what is finished, to submit jobs for what dead ones left, and, when nothing
    is left, to make HR. Results go through a private dataset repository. --dry-run prints the jobs.
    """
    import idc_hub

    sink = Sink(as_json, quiet, progress)
    checked = idc_hub.Recipe.load(recipe, overrides or (), trust_recipe=trust_recipe)
    result: Any = idc_hub.launch_hf_jobs(
        checked,
        flavor=flavor,
        count=count,
        timeout=timeout,
        image=image,
        namespace=namespace,
        upload_minutes=upload_minutes,
        run_dir=run_dir,
        dry_run=dry_run,
        token=token,
        progress=sink.reporting,
    )
    if not hasattr(result, "jobs"):
        show_condensed(sink, result, checked.name, dry_run)
        return
    sink.result(result, leave_out=("jobs", "specifications"))
    if result.jobs:
        sink.text()
        columns = ("id", "name", "stage", "message")
        sink.table(columns, [[job[column] for column in columns] for job in result.jobs])
    if result.specifications:
        sink.text(json.dumps(result.specifications, indent=2))
    elif not dry_run:
        sink.hint(f"\nCollect  the same command again\nLogs     idc logs {result.run}\nStop     hf jobs cancel ID")


@launch.command(
    hidden=True,
    epilog=examples(
        "idc launch hf-jobs-worker /idc OWNER/idc-run-1 --rank 0 --world-size 4 --upload-minutes 5",
    ),
)
def hf_jobs_worker(
    mount: Annotated[Path, typer.Argument(help="Folder of the launch.")],
    repository: Annotated[str, typer.Argument(help="Dataset repository that gets the results.")],
    rank: Annotated[int, typer.Option(help="This job's number.", show_default=False)] = ...,  # type: ignore[assignment]
    world_size: Annotated[int, typer.Option(help="Number of jobs.", show_default=False)] = ...,  # type: ignore[assignment]
    upload_minutes: Annotated[float, typer.Option(help="Minutes between uploads.")] = 5,
) -> None:
    """Be one of the jobs that `idc launch hf-jobs` submits."""
    from idc_hub.clusters.hf_jobs import condense_share

    condense_share(mount, repository, rank=rank, world_size=world_size, upload_minutes=upload_minutes)
