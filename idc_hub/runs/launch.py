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
    """One worker for each visible GPU; without a GPU, as many as the CPU cores allow at `workers.threads` each."""
    import torch

    workers = torch.cuda.device_count() or (os.cpu_count() or 1) // recipe.workers.threads
    return max(1, min(workers, photographs))


def launch(run: Run, num_processes: int) -> None:
    """Condense all photographs of a Run with one or several workers.

    Args:
        run: The Run.
        num_processes: Number of workers; a single one works in this process.

    Raises:
        Interrupted: A signal stopped the work; photographs under way were checkpointed.
        IncompleteError: Workers died; what they finished or checkpointed is kept.
        NetworkError: The extractor cannot be loaded.
        ImageError: The source is gone.
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
            f"The workers ended with status {status}; {left} of {len(run.instances)} photographs are not finished. "
            f"Their output is in {log}.",
            "Run the same command again to continue.",
        )


def run_processes(module: str, arguments: Sequence[str], num_processes: int, *, log: Path, threads: int) -> int:
    """Run `python -m module arguments` in several processes through Accelerate's launcher and wait for all of them.

    Args:
        module: The module; it reads its rank from the environment.
        arguments: Its command line arguments.
        num_processes: Number of processes.
        log: File for the output of the processes and the launcher; overwritten.
        threads: CPU threads of each process.

    Returns:
        The launcher's exit status.

    Raises:
        Interrupted: A signal stopped them.
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
    """Wait for the launcher and forward signals to it; returns the number of the last signal, or 0."""
    received = 0

    def forward(number: int, frame: object) -> None:
        nonlocal received
        received = number
        # A terminal sends SIGINT to the launcher too; SIGTERM makes its workers save and exit in any case.
        process.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return received


def main(argv: list[str]) -> None:
    """Run Accelerate's launcher in a process that ends with its parent; `module` must watch its own parent."""
    end_with_parent()
    from accelerate.commands.launch import launch_command, launch_command_parser

    num_processes, module, *arguments = argv
    options = ["--multi_gpu", "--num_processes", num_processes, "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "--module"]
    launch_command(launch_command_parser().parse_args([*options, module, *arguments]))


if __name__ == "__main__":
    main(sys.argv[1:])
