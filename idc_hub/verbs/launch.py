"""launch_slurm, launch_ray: condense on a cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from idc_hub.clusters import ray, slurm
from idc_hub.recipe import Recipe
from idc_hub.runs.launch import cores
from idc_hub.runs.progress import Reporting, show_progress
from idc_hub.verbs.condense import CondensePlan, CondenseResult, finish, prepare


@dataclass(frozen=True)
class SlurmLaunch:
    """Result of `launch_slurm`.

    Attributes:
        run: The Run directory.
        photographs: Number of photographs.
        patches: Number of synthetic LR patches.
        workers: Job id of the array of workers; None if nothing was submitted.
        finish: Job id of the job that packs and makes HR.
        scripts: The text of both scripts, by file name.
    """

    run: str
    photographs: int
    patches: int
    workers: str | None
    finish: str | None
    scripts: dict[str, str]


def launch_slurm(
    recipe: Recipe | str | Path,
    *,
    array: int,
    run_dir: str | Path | None = None,
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
    trust_recipe: bool = False,
    progress: Reporting = True,
) -> SlurmLaunch:
    """Submit a condensation to SLURM: an array of workers, and a job that makes HR and the repository afterwards.

    Submit it again to continue: finished photographs are kept.

    Args:
        recipe: As in `condense`.
        array: Number of workers.
        run_dir: As in `condense`; all nodes must see it under the same path, and the photographs and weights too.
        options: Options of `sbatch` by name, such as `{"partition": "gpu", "gpus": "1"}`.
        dry_run: Check everything and return the scripts; submit and write nothing.
        trust_recipe: As in `condense`.
        progress: As in `condense`.

    Returns:
        The ids of the jobs and their scripts.

    Raises:
        RecipeError, ImageError, NetworkError, RunError, HubError: As in `condense`.
        ClusterError: SLURM is missing or refused.
    """
    prepared = prepare(recipe, run_dir=run_dir, trust_recipe=trust_recipe, progress=progress)
    scripts = slurm.scripts(prepared.path, prepared.recipe, array, options or {})
    workers = finish = None
    if not dry_run:
        run = prepared.make_run()
        workers, finish = slurm.submit(run.path, scripts)
    return SlurmLaunch(
        run=str(prepared.path),
        photographs=len(prepared.instances),
        patches=sum(instance.count for instance in prepared.instances),
        workers=workers,
        finish=finish,
        scripts={"workers.sbatch": scripts.workers, "finish.sbatch": scripts.finish},
    )


def launch_ray(
    recipe: Recipe | str | Path,
    *,
    workers: int,
    run_dir: str | Path | None = None,
    address: str | None = None,
    gpus_per_worker: float = 0,
    dry_run: bool = False,
    trust_recipe: bool = False,
    progress: Reporting = True,
) -> CondenseResult | CondensePlan:
    """Condense photographs on a Ray cluster, then make HR and the repository on this machine.

    The nodes need no shared file system. On CPUs the LR patches are those of `condense`, byte for byte. If interrupted,
    call it again.

    Args:
        recipe: As in `condense`.
        workers: How many photographs are condensed at once.
        run_dir: As in `condense`; on this machine.
        address: Address of the cluster; None: that of `RAY_ADDRESS` or of `ray start`, or a new one on this machine.
        gpus_per_worker: GPUs of each worker; a fraction lets several share one.
        dry_run: As in `condense`; the time is predicted for workers like this machine.
        trust_recipe: As in `condense`.
        progress: As in `condense`.

    Returns:
        As `condense`.

    Raises:
        RecipeError, ImageError, NetworkError, RunError, HubError, IncompleteError, Interrupted: As in `condense`.
        ClusterError: Ray is not installed or cannot be reached.
    """
    begun = time.monotonic()
    prepared = prepare(recipe, run_dir=run_dir, trust_recipe=trust_recipe, progress=progress)
    if dry_run:
        return prepared.plan(workers)
    run = prepared.make_run()
    with show_progress(run, progress):
        ray.condense_by_ray(run, prepared.network, workers, address=address, gpus_per_worker=gpus_per_worker)
    return finish(prepared, run, cores(), begun, progress)
