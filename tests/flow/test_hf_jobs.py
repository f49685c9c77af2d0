"""`idc launch hf-jobs` over HTTP. The test is the platform: it mounts the volumes and runs the jobs' own commands."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.flow.hub_tools import REPOSITORY, Client, files_below
from tests.flow.test_condense_flow import lr_bytes, photographs, wait_for
from tests.hub_server import Account, HubServer, Job

__all__ = ["photographs"]

TOKEN = "s3cret-of-alice"  # unlike hf_..., no pattern finds it
RECIPE = """
name: far
source: {path: alice/walk}
patches: {size: 32, stride: 16, ratio: 0.2, min_per_image: 1}
transform: {kernel_size: 3, channels: 16}
loss: {frequencies: 32, bank_size: 2}
assignment: {groups: 4, events: 4, interval: 0.1}
optimizer: {steps: 150}
"""
UV = f"""#!{sys.executable}
# `uv run --no-project --with WHEEL COMMAND`, except that it installs no dependencies: they are here.
import os, subprocess, sys
run, no_project, with_, wheel, command, *arguments = sys.argv[1:]
assert (run, no_project, with_) == ("run", "--no-project", "--with")
installed = os.environ["INSTALLED"]
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", installed, wheel]
subprocess.run(pip, check=True)
os.environ["PYTHONPATH"] = installed
os.execv(os.path.join(installed, "bin", command), [command, *arguments])
"""


class Desk:
    """Alice's machine, and the machines of the jobs."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder, self.run, self.printed = hub, folder, folder / "run", ""
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "bin").mkdir()
        (folder / "bin" / "uv").write_text(UV)
        (folder / "bin" / "uv").chmod(0o755)
        (folder / "far.yaml").write_text(RECIPE)
        hub.state.accounts[TOKEN] = Account("alice")
        self.inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}

    def idc(self, *arguments: object, token: str = TOKEN, check: bool = True) -> subprocess.CompletedProcess[str]:
        paths = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "cli")]), "OMP_NUM_THREADS": "1"}
        environment = self.inherited | paths | self.hub.environment(token, self.folder / "home")
        done = forked.run([*map(str, arguments)], env=environment)
        assert not check or done.returncode == 0, done.stderr
        self.printed += done.stdout + done.stderr
        return done

    def launch(self, *arguments: object) -> dict[str, Any]:
        options = ("--flavor", "cpu-basic", "--run-dir", self.run, "--quiet", "--json")
        return json.loads(self.idc("launch", "hf-jobs", self.folder / "far.yaml", *options, *arguments).stdout)

    def start(self, job: Job) -> subprocess.Popen[bytes]:
        """What the platform does: mounts, environment, secrets, command."""
        machine = self.folder / job.id
        command = job.specification["command"]
        for volume in job.specification["volumes"]:
            repository = self.hub.dataset(volume["source"])
            for path in repository.tree():
                if path.startswith(f"{volume['path']}/"):
                    file = machine / "mount" / path.removeprefix(f"{volume['path']}/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(repository.read(path))
            here, there = str(machine / "mount"), volume["mountPath"]
            command = [here + w.removeprefix(there) if w.split("/")[:2] == there.split("/") else w for w in command]
        job.stage = "RUNNING"
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        own = {"PATH": path, "INSTALLED": str(machine / "installed"), "TMPDIR": str(machine)}
        environment = self.inherited | self.hub.environment(None, machine / "home") | own
        environment |= job.specification["environment"] | job.secrets
        job.log = machine / "log"
        with job.log.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    def finish(self, job: Job) -> int:
        status = self.start(job).wait(timeout=200)
        job.stage = "ERROR" if status else "COMPLETED"
        return status


@pytest.fixture
def desk(hub: HubServer, make_client: Callable[..., Client], photographs: Path, tmp_path: Path) -> Iterator[Desk]:
    """Alice's desk, and her private dataset with three photographs."""
    hub.jobs.clear()
    if hub.state.find("dataset", "alice/walk") is None:
        alice = make_client("hf_alice")
        alice("api", method="create_repo", repo_id="alice/walk", repo_type="dataset", private=True)
        alice("api", method="upload_folder", folder_path=str(photographs), repo_id="alice/walk", repo_type="dataset")
    made = Desk(hub, tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_jobs_make_the_bytes_of_one_worker_though_one_is_killed_and_nothing_has_the_token(desk: Desk) -> None:
    alone = desk.folder / "alone"
    one = desk.idc("condense", desk.folder / "far.yaml", "--run-dir", alone, "--num-processes", 1, "--quiet", "--json")

    planned = desk.launch("--count", 1, "--upload-minutes", 0.01, "--timeout", "90m", "--dry-run")
    repository, specification = planned["repository"], planned["specifications"][0]
    assert repository.startswith("alice/idc-run-far-")
    assert planned["predicted_seconds"] > 0
    assert not desk.run.exists()
    assert not desk.hub.jobs
    assert desk.hub.state.find("dataset", repository) is None

    # A job that is killed after its first upload
    launched = desk.launch("--count", 1, "--upload-minutes", 0.01, "--timeout", "90m")
    assert (launched["submitted"], launched["finished"], launched["jobs"][0]["stage"]) == (1, 0, "SCHEDULING")
    (job,) = desk.hub.jobs
    assert desk.hub.dataset(repository).meta["private"]
    at = specification["volumes"][0]["path"]
    assert {"recipe.yaml", "run.json"} < {p.removeprefix(f"{at}/") for p in desk.hub.dataset(repository).tree()}
    wheel = next(p for p in desk.hub.dataset(repository).tree() if p.endswith(".whl")).rpartition("/")[2]
    installing = ["uv", "run", "--no-project", "--with", f"/idc/{wheel}"]
    options = ["--world-size", "1", "--upload-minutes", "0.01", "--rank", "0"]
    assert job.specification == {
        "dockerImage": "ghcr.io/astral-sh/uv:python3.12-bookworm",
        "command": [*installing, "idc", "launch", "hf-jobs-worker", "/idc", repository, *options],
        "arguments": [],
        "environment": {"OMP_NUM_THREADS": "1"},
        "flavor": "cpu-basic",
        "timeoutSeconds": 5400,
        "labels": {"idc-run": repository.partition("/")[2], "name": "idc-far-0"},
        "volumes": [
            {"type": "dataset", "source": repository, "mountPath": "/idc", "readOnly": True, "path": at},
        ],
    }
    assert (specification["command"], specification["secrets"]) == (job.specification["command"], ["HF_TOKEN"])
    assert job.secrets == {"HF_TOKEN": TOKEN}
    process = desk.start(job)

    def uploads() -> list[str]:
        return [path for path in desk.hub.dataset(repository).tree() if path.startswith("finished/")]

    wait_for(uploads)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it does not end before the kill
    assert desk.launch()["submitted"] == 0, "a job is active"
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    job.stage = "ERROR"

    # The same command makes what is left, in two jobs
    again = desk.launch("--count", 2)
    assert 0 < again["finished"] < 3, "nothing, or everything, was finished when the job was killed"
    assert again["submitted"] == min(2, 3 - again["finished"])
    assert [line["stage"] for line in again["jobs"]] == ["SCHEDULING"] * again["submitted"] + ["ERROR"]
    before = {path.name for path in desk.run.glob("instances/*")}
    fresh = desk.hub.jobs[: again["submitted"]]
    for job in fresh:
        assert desk.finish(job) == 0, (desk.folder / job.id / "log").read_text()
        condensed = json.loads((desk.folder / job.id / "mount" / "run.json").read_text())["instances"]
        assert not {f"{instance['id']}.safetensors" for instance in condensed} & before

    # And then the set
    made = desk.launch()
    assert lr_bytes(desk.run) == lr_bytes(alone)
    assert made["lr_digest"] == json.loads(one.stdout)["lr_digest"]
    desk.idc("verify", desk.run)
    assert json.loads(desk.idc("status", desk.run, "--json").stdout)["finished"] == 3

    assert TOKEN not in desk.printed
    assert TOKEN not in str([job.described() for job in desk.hub.jobs])
    assert TOKEN not in str(desk.hub.log)
    stored = files_below(desk.hub.dataset(repository).folder)
    for path, content in (stored | files_below(desk.folder)).items():
        assert TOKEN.encode() not in content, path


def test_a_photograph_that_fails_in_a_job_is_named_and_the_others_arrive(
    desk: Desk, make_client: Callable[..., Client], photographs: Path
) -> None:
    alice = make_client("hf_alice")

    def upload(name: str) -> None:
        arguments = {"repo_id": "alice/walk", "repo_type": "dataset", "path_in_repo": "coffee.png"}
        alice("api", method="upload_file", path_or_fileobj=str(photographs / name), **arguments)

    short = ("optimizer.steps=20", "--count", 1)
    desk.launch(*short)
    upload("chelsea.png")  # the dataset changes after the launch
    assert desk.finish(desk.hub.jobs[0]) == 3
    log = (desk.folder / desk.hub.jobs[0].id / "log").read_text()
    assert "1 of 3 photographs failed" in log
    assert "coffee.png in alice/walk is not the file that this run began with" in log
    assert "1 of 3 photographs failed" in desk.idc("logs", desk.run).stdout
    assert desk.idc("logs", desk.run, "--lines", 1).stdout.splitlines()[1:] == [log.splitlines()[-1], ""]
    upload("coffee.png")
    assert desk.launch(*short)["finished"] == 2
    states = json.loads(desk.idc("status", desk.run, "--json").stdout)["instances"]
    assert {line["id"]: line["state"] for line in states}["coffee"] == "failed"
    assert desk.finish(desk.hub.jobs[0]) == 0
    assert desk.launch(*short)["photographs"] == 3


def test_refusals_are_sentences(desk: Desk) -> None:
    def refused(flavor: str, **options: Any) -> tuple[int, str]:
        command = ("launch", "hf-jobs", desk.folder / "far.yaml", "seed=1", "--run-dir", desk.run, "--flavor", flavor)
        done = desk.idc(*command, check=False, **options)
        assert not desk.hub.jobs
        return done.returncode, done.stderr

    code, said = refused("cpu-basic", token="")
    assert (code, "Jobs need a Hugging Face token" in said) == (4, True)
    code, said = refused("abacus")
    assert (code, "Invalid flavor: abacus" in said) == (4, True)
    repository = next(seen.path for seen in desk.hub.seen("POST", "/commit/")).split("/")[4]
    desk.hub.dataset(f"alice/{repository}").update_meta(private=False)
    code, said = refused("cpu-basic")
    assert (code, "is public" in said) == (4, True)
