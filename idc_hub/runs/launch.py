"""Start workers on this machine: one in this process, or several through Accelerate's launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idc_hub.errors import IncompleteError, Interrupted
from idc_hub.runs.run import Run
from idc_hub.runs.worker import end_with_parent, work

if TYPE_CHECKING:
    from idc_hub.recipe import Recipe

LOG_NAME = "workers.log"


def default_num_processes(recipe: Recipe, photographs: int) -> int:
    """The visible GPUs; on a machine without, as many workers as its cores can feed with `workers.threads` each."""
    import torch

    workers = torch.cuda.device_count() or (os.cpu_count() or 1) // recipe.workers.threads
    return max(1, min(workers, photographs))


def launch(run: Run, num_processes: int) -> None:
    """Work on a Run with several processes until nothing is left, or until they are stopped.

    Args:
        run: The Run.
        num_processes: Workers; a single one works in this process.

    Raises:
        Interrupted: If a signal stopped the work; what was under way is saved.
        IncompleteError: If workers died; what they had finished or checkpointed is kept.
    """
    if num_processes == 1:
        import torch

        work(run, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
        return
    log, threads = run.path / LOG_NAME, run.recipe.workers.threads
    status = run_processes("idc_hub.runs.worker", [str(run.path)], num_processes, log=log, threads=threads)
    if status != 0:
        left = sum(not run.is_settled(instance) for instance in run.instances)
        raise IncompleteError(
            f"The workers ended with status {status}; {left} of {len(run.instances)} photographs are not "
            f"finished. The last words of the workers are in {log}.",
            "Run the same command again: it continues where they ended.",
        )


def run_processes(module: str, arguments: Sequence[str], num_processes: int, *, log: Path, threads: int) -> int:
    """Run `python -m module arguments` in several processes through Accelerate's launcher, until all have ended.

    Args:
        module: The module, which finds its rank in the environment.
        arguments: Its arguments.
        num_processes: How many.
        log: Gets all that they and the launcher print.
        threads: CPU threads of each.

    Returns:
        The launcher's exit status.

    Raises:
        Interrupted: If a signal stopped them.
    """
    command = [sys.executable, "-m", "idc_hub.runs.launch", str(num_processes), module, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        received = _wait(process)
    if received:
        raise Interrupted(received)
    return process.returncode


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the launcher; hand a signal on to it and return its number, 0 if there was none."""
    received = 0

    def forward(number: int, frame: object) -> None:
        nonlocal received
        received = number
        # SIGINT reaches the launcher from the terminal too; SIGTERM asks its workers to save and end in any case.
        process.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return received


def main(argv: list[str]) -> None:
    """Accelerate's launcher in a process that dies with the one that started it; the module sees to its own end."""
    end_with_parent()
    from accelerate.commands.launch import launch_command, launch_command_parser

    num_processes, module, *arguments = argv
    options = ["--multi_gpu", "--num_processes", num_processes, "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "--module"]
    launch_command(launch_command_parser().parse_args([*options, module, *arguments]))


if __name__ == "__main__":
    main(sys.argv[1:])
