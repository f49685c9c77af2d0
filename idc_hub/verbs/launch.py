"""launch_slurm, launch_ray, launch_hf_jobs: condense on a cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.clusters import hf_jobs, ray, slurm
from idc_hub.hub.revisions import client
from idc_hub.hub_errors import hub_sentences
from idc_hub.recipe import Recipe
from idc_hub.runs.launch import cores
from idc_hub.runs.progress import Reporting, show_progress
from idc_hub.runs.run import Run
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


@dataclass(frozen=True)
class HFJobsLaunch:
    """Result of `launch_hf_jobs` while photographs are unfinished.

    Attributes:
        run: The Run directory.
        repository: The private dataset repository that the results go through.
        photographs: Number of photographs.
        finished: Number of those whose patches are in the Run.
        submitted: Number of jobs that this call submitted; 0 if earlier ones are still active.
        jobs: The jobs of this Run, the newest first: `id`, `name`, `stage`, `message`, and `url` of each.
        predicted_seconds: With `dry_run`, predicted seconds of the jobs if they were like this machine; else None.
        specifications: With `dry_run`, the arguments of `HfApi.run_job` for each job, with the names of the secrets.
    """

    run: str
    repository: str
    photographs: int
    finished: int
    submitted: int
    jobs: list[dict[str, Any]]
    predicted_seconds: float | None
    specifications: list[dict[str, Any]]


def launch_hf_jobs(
    recipe: Recipe | str | Path,
    *,
    flavor: str,
    count: int = 1,
    timeout: str = "12h",
    image: str | None = None,
    namespace: str | None = None,
    upload_minutes: float | None = None,
    run_dir: str | Path | None = None,
    dry_run: bool = False,
    trust_recipe: bool = False,
    token: str | None = None,
    progress: Reporting = True,
) -> HFJobsLaunch | CondenseResult:
    """Condense photographs of a Hub dataset on Hugging Face Jobs, then make HR and the repository on this machine.

    Each call first downloads what the jobs have finished. If no job is active, it submits jobs for the photographs that
    are left; if none is left, it makes HR. So the same call looks, continues, and ends the work.

    Args:
        recipe: As in `condense`; its photographs and its extractor must be on the Hub.
        flavor: Hardware of a job, such as "a10g-small".
        count: Number of jobs.
        timeout: Time limit of a job, such as "90m" or "12h". What a job has not finished by then, the next call
            submits again.
        image: Docker image of the jobs, which must have `uv`; None: Debian with Python and `uv`.
        namespace: Who pays for the jobs and owns the repository of the results; None: the token's account.
        upload_minutes: Minutes between the uploads of a job, which is what a job that dies can lose; None: 5, or more
            where the Hub limits the commits of an hour.
        run_dir: As in `condense`; on this machine.
        dry_run: Check everything and return the specifications and a forecast; submit and write nothing.
        trust_recipe: As in `condense`.
        token: Access token, which the jobs get as a secret; it needs write access. None: HF_TOKEN, or the login of
            `hf auth login`.
        progress: As in `condense`.

    Returns:
        The jobs; when all photographs are finished, as `condense`.

    Raises:
        RecipeError: As in `condense`, or the photographs or the extractor are on this machine only.
        HubError: As in `condense`, or the Hub refused the jobs or the repository.
        ClusterError: The package is not installed, so that the jobs cannot get it.
        ImageError, NetworkError, RunError, IncompleteError, Interrupted: As in `condense`.
    """
    begun = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, trust_recipe=trust_recipe)
    hf_jobs.require_reachable(recipe)
    api = client(token)
    hf_jobs.require_token(api)
    prepared = prepare(recipe, run_dir=run_dir, progress=progress)
    with hub_sentences(namespace or "your account"):
        owner = namespace or api.whoami()["name"]
    repo_id = hf_jobs.repository_of(owner, prepared.recipe, prepared.instances)
    run = Run(prepared.path, prepared.recipe, prepared.instances) if dry_run else prepared.make_run()
    jobs = hf_jobs.list_jobs(api, repo_id)  # before the results: those of a job that has ended are complete
    if not dry_run:
        hf_jobs.collect(api, run, repo_id)
    left = [instance for instance in run.instances if not run.instance_file(instance.id).is_file()]
    if not left and not dry_run:
        return finish(prepared, run, cores(), begun, progress)
    wanted = None
    if not any(job["stage"] in hf_jobs.ACTIVE for job in jobs):
        wanted = hf_jobs.plan(
            *(repo_id, prepared.recipe, left),
            count=count,
            flavor=flavor,
            timeout=timeout,
            image=image,
            upload_minutes=upload_minutes,
        )
    if wanted and not dry_run:
        hf_jobs.submit(api, wanted, run.path)
        jobs = hf_jobs.list_jobs(api, repo_id)
    return HFJobsLaunch(
        run=str(prepared.path),
        repository=repo_id,
        photographs=len(run.instances),
        finished=len(run.instances) - len(left),
        submitted=len(wanted.specifications) if wanted and not dry_run else 0,
        jobs=jobs,
        predicted_seconds=prepared.plan(count).predicted_seconds if dry_run else None,
        specifications=wanted.specifications if wanted and dry_run else [],
    )
