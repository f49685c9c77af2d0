"""SLURM: an array of workers, and a job that packs and makes HR when the array has ended.

Before a worker's time is up, SLURM sends it SIGUSR1: it saves, leaves, and is requeued. SLURM itself requeues a worker
that is preempted or whose node fails. The Run directory must be on a file system that all nodes share.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idc_hub.atomic import write_text_atomically
from idc_hub.errors import ClusterError, one_line

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

FOLDER = "slurm"
"""Folder of the scripts and the logs in the Run directory."""

SAVE_SECONDS = 120
"""Seconds before a worker's end at which SLURM sends it SIGUSR1."""

_REQUEUE_STATUS = 128 + signal.SIGUSR1


@dataclass(frozen=True)
class Scripts:
    """The batch scripts of a Run.

    Attributes:
        workers: The array of workers.
        finish: The job that packs and makes HR.
    """

    workers: str
    finish: str


def scripts(path: Path, recipe: Recipe, array: int, options: Mapping[str, str]) -> Scripts:
    """Write the batch scripts; nothing is submitted.

    Args:
        path: The Run directory.
        recipe: Its recipe.
        array: Number of workers.
        options: Options of `sbatch` for every job by name, such as `{"partition": "gpu"}`; they replace ours.
    """
    folder = path.resolve() / FOLDER
    common = {
        "job-name": f"idc-{recipe.name}",
        "cpus-per-task": str(recipe.workers.threads),
        "open-mode": "append",
        "requeue": "",
        "signal": f"USR1@{SAVE_SECONDS}",
    }
    idc = shlex.join([sys.executable, "-m", "idc_cli.main"])
    run = shlex.quote(str(path.resolve()))
    condense = f"condense {run}/recipe.yaml --run-dir {run} --num-processes 1"
    return Scripts(
        workers=_script(
            {**common, "array": f"0-{array - 1}", "output": f"{folder}/worker-%a.log", **options},
            f"{idc} work {run} --quiet --rank $SLURM_ARRAY_TASK_ID --world-size {array}",
            "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
        ),
        finish=_script({**common, "output": f"{folder}/finish.log", **options}, f"{idc} {condense}", "$SLURM_JOB_ID"),
    )


def _script(directives: Mapping[str, str], command: str, job: str) -> str:
    lines = [f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "") for name, value in directives.items()]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
            f'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {command}',
            "status=$?",
            "# It has saved because its time was nearly up: continue later.",
            f'if [ $status -eq {_REQUEUE_STATUS} ]; then scontrol requeue "{job}" && sleep 60; fi',
            "exit $status",
            "",
        ]
    )


def submit(path: Path, wanted: Scripts) -> tuple[str, str]:
    """Write the scripts into the Run directory and submit them.

    Returns:
        The ids of the array and of the job that depends on it.

    Raises:
        ClusterError: There is no `sbatch`, or it refused.
    """
    folder = path / FOLDER
    folder.mkdir(exist_ok=True)
    write_text_atomically(folder / "workers.sbatch", wanted.workers)
    write_text_atomically(folder / "finish.sbatch", wanted.finish)
    workers = _sbatch(folder / "workers.sbatch")
    # `afterany`: what a worker leaves unfinished, for example when it is out of memory, the last job makes.
    return workers, _sbatch(folder / "finish.sbatch", f"--dependency=afterany:{workers}")


def _sbatch(script: Path, *options: str) -> str:
    command = ["sbatch", "--parsable", *options, str(script)]
    # Options of an interactive job must not leak into the jobs; `sbatch` reads its own from SBATCH_*.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    try:
        answer = subprocess.run(command, env=environment | kept, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError("This machine has no sbatch.", "Run the command on a node that submits to SLURM.") from error
    if answer.returncode:
        raise ClusterError(
            f"sbatch refused {script}: {one_line(answer.stderr)}",
            "Change the options of `idc launch slurm`, or edit the script and submit it by hand.",
        )
    return answer.stdout.strip().partition(";")[0]
