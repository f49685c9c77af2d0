"""Hugging Face Jobs: machines of the Hub, each of which condenses its share of the photographs.

Jobs share no file system. A private dataset repository takes their place:

```
launches/<id>/*.whl         this package, which the jobs install
launches/<id>/recipe.yaml   the recipe
launches/<id>/run.json      the photographs that were unfinished at this launch; job R of N makes R, R + N, R + 2 N, ...
finished/<time>-<R>.zip     what job R has finished since its last upload: instances/, metrics/, failed/
```

Each job mounts the folder of its launch read-only. Archives, not single files: the Hub limits the commits of an hour
and the files of a folder. The token is a secret of the jobs; nothing else has it.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, HfApi, Volume
from huggingface_hub.errors import RepositoryNotFoundError

from idc_hub.atomic import write_bytes_atomically, write_text_atomically, writing
from idc_hub.background import in_background
from idc_hub.clusters.wheel import build_wheel
from idc_hub.errors import HubError, RecipeError, RunError, one_line
from idc_hub.hub_errors import LOG_IN, hub_sentences
from idc_hub.images.sources import PACKAGE_PREFIX, Instance
from idc_hub.networks.registry import NETWORKS
from idc_hub.recipe_reader import MODULE
from idc_hub.runs.launch import default_num_processes, launch
from idc_hub.runs.progress import Reporting, show_progress
from idc_hub.runs.run import Run

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""Image of a job; it must have `uv`, which installs this package and all that it needs."""

MOUNT = "/idc"
FOLDER = "hf-jobs"
"""Folder of the Run for the archives that were downloaded and the name of their repository."""

REPOSITORY = "repository"
"""File in this folder with the name of the jobs' repository."""

LABEL = "idc-run"
ACTIVE = ("SCHEDULING", "RUNNING")
COMMITS_PER_HOUR = 100
"""Most commits that all jobs of a launch make; the Hub allows a repository 128."""

WAITS = (10.0, 60.0, 300.0)
"""Seconds before each further try of a job's last upload."""

_ARCHIVE = re.compile(r"finished/(\d+-\d+\.zip)")


@dataclass(frozen=True)
class Launch:
    """Jobs to submit, and what they need in their repository.

    Attributes:
        repo_id: The repository.
        files: Content of each file to upload, by path in the repository.
        specifications: The arguments of `HfApi.run_job` for each job, with the names of the secrets alone.
    """

    repo_id: str
    files: dict[str, bytes]
    specifications: list[dict[str, Any]]


def require_reachable(recipe: Recipe) -> None:
    """Refuse a recipe that needs files of this machine.

    Raises:
        RecipeError: The photographs or the extractor are not on the Hub.
    """
    path, network = recipe.source.path, recipe.features.network
    if path.startswith(PACKAGE_PREFIX) or Path(path).expanduser().exists():
        raise RecipeError(
            f"The photographs of {path} are on this machine, where a job cannot read them.",
            "Upload them as a private dataset (hf upload OWNER/NAME FOLDER --type dataset --private), and set "
            "source.path=OWNER/NAME.",
        )
    if network not in NETWORKS and (MODULE.fullmatch(network) or Path(network).expanduser().exists()):
        raise RecipeError(
            f"The extractor {network} is on this machine, where a job cannot load it.",
            "Push it to the Hub, and set features.network=OWNER/NAME.",
        )


def repository_of(owner: str, recipe: Recipe, instances: Sequence[Instance]) -> str:
    """The name of a Run's repository: always the same for equal LR recipes and photographs."""
    digest = hashlib.sha256(recipe.lr_recipe_hash.encode())
    for instance in instances:
        digest.update(f"\0{instance.id}\0{instance.sha256}".encode())
    return f"{owner}/idc-run-{recipe.name[:40].rstrip('-')}-{digest.hexdigest()[:8]}"


def plan(
    repo_id: str,
    recipe: Recipe,
    left: Sequence[Instance],
    *,
    count: int,
    flavor: str,
    timeout: str,
    image: str | None = None,
    upload_minutes: float | None = None,
) -> Launch:
    """Prepare jobs; nothing is sent.

    Args:
        repo_id: The repository.
        recipe: The recipe, with the extractor's digest.
        left: The photographs to make.
        count: Number of jobs; never more than photographs.
        flavor: Hardware of each job.
        timeout: Time limit of each job, such as "90m" or "12h".
        image: Docker image that has `uv`; None: `IMAGE`.
        upload_minutes: Minutes between a job's uploads; None: 5, or more where the Hub limits the commits.

    Raises:
        RecipeError: The time limit is none.
        ClusterError: The package is not installed.
    """
    if not re.fullmatch(r"\d+(\.\d+)?[smhd]?", timeout):
        raise RecipeError(f"{timeout!r} is no time limit.", "Write seconds, or a number with s, m, h or d: 90m, 12h.")
    name, wheel = build_wheel()
    count = min(count, len(left))
    minutes = upload_minutes or max(5.0, 60 * count / COMMITS_PER_HOUR)
    with tempfile.TemporaryDirectory() as folder:
        Run.create(Path(folder) / "run", recipe, list(left), {})
        described = {file: (Path(folder) / "run" / file).read_bytes() for file in ("recipe.yaml", "run.json")}
    digest = hashlib.sha256(wheel + described["recipe.yaml"])
    digest.update("\0".join([str(count), *(instance.id for instance in left)]).encode())
    at = f"launches/{digest.hexdigest()[:12]}"
    worker = ["idc", "launch", "hf-jobs-worker", MOUNT, repo_id, "--world-size", str(count)]
    specifications = [
        {
            "image": image or IMAGE,
            "command": [
                *("uv", "run", "--no-project", "--with", f"{MOUNT}/{name}"),
                *(*worker, "--upload-minutes", f"{minutes:g}", "--rank", str(rank)),
            ],
            "env": {"OMP_NUM_THREADS": str(recipe.workers.threads)},
            "secrets": ["HF_TOKEN"],
            "flavor": flavor,
            "timeout": timeout,
            "name": f"idc-{recipe.name}-{rank}",
            "labels": {LABEL: repo_id.partition("/")[2]},
            "volumes": [
                Volume(type="dataset", source=repo_id, mount_path=MOUNT, path=at, read_only=True).to_dict(),
            ],
        }
        for rank in range(count)
    ]
    return Launch(repo_id, {f"{at}/{file}": data for file, data in {**described, name: wheel}.items()}, specifications)


def submit(api: HfApi, wanted: Launch, run_dir: Path) -> None:
    """Upload what the jobs need, and submit them.

    Args:
        api: The client, with the token that the jobs get too.
        wanted: The jobs.
        run_dir: The Run, which gets the name of the repository.

    Raises:
        HubError: The repository is public, the Hub refused or could not be reached. Jobs submitted before go on.
    """
    repo_id = wanted.repo_id
    with hub_sentences(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
        if not api.dataset_info(repo_id).private:
            raise HubError(
                f"{repo_id}, where the jobs would upload their results, is public.", "Make it private, or delete it."
            )
        with writing(run_dir / FOLDER):
            (run_dir / FOLDER).mkdir(exist_ok=True)
        write_text_atomically(run_dir / FOLDER / REPOSITORY, f"{repo_id}\n")
        operations = [CommitOperationAdd(path, content) for path, content in wanted.files.items()]
        api.create_commit(repo_id, operations, commit_message="Launch", repo_type="dataset")
        for specification in wanted.specifications:
            api.run_job(
                **{
                    **specification,
                    "secrets": dict.fromkeys(specification["secrets"], api.token),
                    "volumes": [Volume(**volume) for volume in specification["volumes"]],
                },
                namespace=repo_id.partition("/")[0],
            )


def require_token(api: HfApi) -> None:
    """Check that there is a token to give to the jobs.

    Raises:
        HubError: There is none.
    """
    if not api.token:
        raise HubError("Jobs need a Hugging Face token.", LOG_IN)


def list_jobs(api: HfApi, repo_id: str) -> list[dict[str, Any]]:
    """All jobs of a Run, the newest first: `id`, `name`, `stage`, `message`, and `url` of each.

    Raises:
        HubError: The Hub refused or could not be reached.
    """
    owner, _, name = repo_id.partition("/")
    with hub_sentences(repo_id):
        found = list(api.list_jobs(namespace=owner, labels={LABEL: name}))
    found.sort(key=lambda job: str(job.created_at), reverse=True)
    return [
        {
            "id": job.id,
            "name": (job.labels or {}).get("name", ""),
            "stage": str(getattr(job.status.stage, "value", job.status.stage)),
            "message": one_line(job.status.message or ""),
            "url": job.url,
        }
        for job in found
    ]


def recorded_repository(run_dir: Path) -> str | None:
    """The repository of the jobs of a Run; None if it has none."""
    try:
        return (run_dir / FOLDER / REPOSITORY).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def logs(api: HfApi, repo_id: str, lines: int) -> dict[str, list[str]]:
    """The last lines of the newest job of each name, by its name, id and stage.

    Raises:
        HubError: The Hub refused or could not be reached.
    """
    found: dict[str, list[str]] = {}
    newest = {job["name"]: job for job in reversed(list_jobs(api, repo_id))}
    for job in newest.values():
        with hub_sentences(repo_id):
            said = api.fetch_job_logs(job_id=job["id"], namespace=repo_id.partition("/")[0], tail=lines)
            found[f"{job['name']} ({job['id']}, {job['stage']})"] = [line.rstrip("\n") for line in said][-lines:]
    return found


def collect(api: HfApi, run: Run, repo_id: str) -> None:
    """Download what jobs have finished into the Run; archives that were downloaded before are only read again.

    Raises:
        HubError: The Hub refused or could not be reached, or an archive arrived damaged.
        RunError: A finished photograph belongs to another recipe or photograph.
        IncompleteError: The Run cannot be written.
    """
    with hub_sentences(repo_id):
        try:
            found = api.list_repo_files(repo_id, repo_type="dataset")
        except RepositoryNotFoundError:
            return
        names = sorted(match[1] for name in found if (match := _ARCHIVE.fullmatch(name)))
        folder = run.path / FOLDER
        for name in names:
            if not (folder / "finished" / name).is_file():
                api.hf_hub_download(repo_id, f"finished/{name}", repo_type="dataset", local_dir=folder)
    places = {
        f"{kind}/{instance.id}.{suffix}": (kind, instance)
        for instance in run.instances
        for kind, suffix in (("metrics", "jsonl"), ("failed", "json"), ("instances", "safetensors"))
    }
    for name in names:  # in the order of time: a photograph that failed may have succeeded later
        _unpack(run, folder / "finished" / name, places)


def _unpack(run: Run, path: Path, places: dict[str, tuple[str, Instance]]) -> None:
    """Take the members of an archive that belong to unfinished photographs of the Run."""
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [(member, *places[member]) for member in archive.namelist() if member in places]
            done = {instance.id for _, _, instance in wanted if run.instance_file(instance.id).is_file()}
            for member, kind, instance in wanted:
                if instance.id in done:
                    continue
                write_bytes_atomically(run.path / member, archive.read(member))
                if kind == "instances":
                    (run.path / "failed" / f"{instance.id}.json").unlink(missing_ok=True)
                    if damaged := run.drop_damaged(instance):
                        warnings.warn(f"{damaged} It is made again.", stacklevel=1)
    except zipfile.BadZipFile as error:
        path.unlink()
        raise HubError(f"{path.name} arrived damaged ({one_line(error)}).", "Run the same command again.") from error


def condense_share(
    mount: Path, repo_id: str, *, rank: int, world_size: int, upload_minutes: float, progress: Reporting = True
) -> None:
    """A job: condense its share of the photographs, and upload what is finished as it goes.

    Args:
        mount: Folder of the launch.
        repo_id: The repository that gets the results.
        rank: This job's number.
        world_size: Number of jobs of the launch.
        upload_minutes: Minutes between uploads.
        progress: As in `condense`.

    Raises:
        IncompleteError: Photographs failed; the others are uploaded.
        Interrupted: A signal stopped the work; what was finished is uploaded.
        ImageError, NetworkError, HubError: The photographs or the extractor cannot be loaded.
        RunError: The launch is damaged.
    """
    launched = Run.open(mount)
    share = launched.instances[rank::world_size]
    if not share:
        raise RunError(f"Nothing is left for job {rank} of {world_size}.", "Launch fewer jobs.")
    with tempfile.TemporaryDirectory(prefix="idc-") as folder:
        run = Run.create(Path(folder) / "run", launched.recipe, share, {})
        with (
            _uploading(HfApi(library_name="idc-hub"), repo_id, run, rank, upload_minutes),
            show_progress(run, progress),
        ):
            launch(run, default_num_processes(run.recipe, len(share)))
        run.require_finished()


@contextmanager
def _uploading(api: HfApi, repo_id: str, run: Run, rank: int, minutes: float) -> Iterator[None]:
    """Upload finished photographs every few minutes while the block runs, and the rest at its end or after an error."""
    sent: set[str] = set()

    def upload(*, last: bool) -> None:
        # A claimed photograph may still get the last line of its metrics.
        new = [
            instance.id
            for instance in run.instances
            if instance.id not in sent
            and run.instance_file(instance.id).is_file()
            and (last or not run.is_claimed(instance))
        ]
        members = [member for name in new for member in (f"metrics/{name}.jsonl", f"instances/{name}.safetensors")]
        if last:
            members += [f"failed/{path.name}" for path in (run.path / "failed").glob("*.json")]
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for member in members:
                if (run.path / member).is_file():
                    archive.write(run.path / member, member)
        if members:
            with hub_sentences(repo_id):
                api.upload_file(
                    path_or_fileobj=content.getvalue(),
                    path_in_repo=f"finished/{time.time_ns()}-{rank}.zip",
                    repo_id=repo_id,
                    repo_type="dataset",
                    commit_message=f"{len(new)} photographs of job {rank}",
                )
            sent.update(new)

    def keep_uploading(over: threading.Event) -> None:
        while not over.wait(60 * minutes):
            try:
                upload(last=False)
            except HubError as error:
                warnings.warn(f"{error.message} The next upload tries again.", stacklevel=1)

    try:
        with in_background(keep_uploading):
            yield
    finally:
        for wait in (*WAITS, None):
            try:
                upload(last=True)
                break
            except HubError as error:
                if wait is None:
                    raise
                warnings.warn(f"{error.message} Trying again in {wait:g} seconds.", stacklevel=1)
                time.sleep(wait)
