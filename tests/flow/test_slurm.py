"""`idc launch slurm` on a real SLURM: a controller and the daemons of two nodes, on loopback."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flow.test_condense_flow import idc, lr_bytes, metrics, photographs, recipe, under_way, undisturbed, wait_for

__all__ = ["photographs", "undisturbed"]

DAEMONS = ("sbatch", "slurmctld", "slurmd", "munged")
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=10
MinJobAge=600
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SLURM of two nodes with one core each; yields the environment of its clients."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    missing = [name for name in DAEMONS if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"needs SLURM and munge: no {', '.join(missing)}")
    folder = tmp_path / "slurm"
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(user=getpass.getuser(), folder=folder, ports=free_ports(3)))
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
    daemons = []
    with (folder / "daemons.log").open("wb") as log:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command is munge:
                wait_for((folder / "munge.socket").exists)
        try:
            wait_for(
                lambda: (
                    subprocess.run(
                        ["sinfo", "-h", "-t", "idle", "-o", "%D"],
                        env=environment,
                        capture_output=True,
                        text=True,
                        check=False,
                    ).stdout.strip()
                    == "2"
                )
            )
            yield environment
            subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=True)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(timeout=30)


def state_of(job: str, environment: dict[str, str]) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], env=environment, capture_output=True, text=True)
    return dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)


def launch(run: Path, spec: Path, environment: dict[str, str], *options: object) -> dict[str, str]:
    said = idc("launch", "slurm", spec, "--run-dir", run, "--quiet", "--json", *options, env=environment)
    return json.loads(said.stdout)


def test_a_requeued_array_makes_the_bytes_of_one_worker_and_the_last_job_makes_hr(
    slurm: dict[str, str], photographs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a run"  # paths in scripts are quoted
    spec = recipe(tmp_path, photographs, steps=250)
    jobs = launch(run, spec, slurm, "--array", 2)
    first = f"{jobs['workers']}_0"
    wait_for(lambda: len(under_way(run)) == 2, seconds=400)  # one for each of them
    subprocess.run(["scontrol", "requeue", first], env=slurm, check=True)
    wait_for(lambda: state_of(first, slurm).get("Restarts") == "1")
    wait_for(lambda: any(line["event"] == "stop" for line in metrics(run)))
    wait_for(lambda: state_of(jobs["finish"], slurm).get("JobState") == "COMPLETED", seconds=400)
    assert lr_bytes(run) == lr_bytes(undisturbed)
    assert (run / "repo" / "idc.json").is_file()
    assert {"slurm/finish.log"} < set(json.loads(idc("logs", run, "--json").stdout)["logs"])
    idc("verify", run)
    assert state_of(first, slurm)["JobState"] == "COMPLETED"


def test_a_worker_that_slurm_signals_before_its_end_saves_and_is_requeued(
    slurm: dict[str, str], photographs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spec = recipe(tmp_path, photographs, steps=4000)
    jobs = launch(run, spec, slurm, "--array", 1)
    worker = f"{jobs['workers']}_0"
    wait_for(lambda: under_way(run))
    # What SLURM does when the time is nearly up; `--signal` itself is exact to a minute only.
    subprocess.run(["scancel", "--signal=USR1", worker], env=slurm, check=True)
    wait_for(lambda: state_of(worker, slurm).get("Restarts") == "1")
    assert [line["event"] for line in metrics(run) if line["event"] in ("stop", "end", "fail")] == ["stop"]


def test_a_refusal_of_sbatch_is_a_sentence(slurm: dict[str, str], photographs: Path, tmp_path: Path) -> None:
    command = ("launch", "slurm", recipe(tmp_path, photographs), "--run-dir", tmp_path / "run", "--quiet")
    refused = idc(*command, "--array", 1, "--partition", "absent", env=slurm, check=False)
    assert refused.returncode == 1
    assert "sbatch refused" in refused.stderr
    assert "partition" in refused.stderr.lower()
