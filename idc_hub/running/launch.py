"""Start workers on this machine: one in this process, or several through Accelerate's launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from idc_hub.errors import IncompleteError
from idc_hub.running.worker import Interrupted, end_with_parent, work
from idc_hub.storage.run import Run

LOG_NAME = "workers.log"


def default_num_processes(run: Run) -> int:
    """The visible GPUs; on a machine without, as many workers as its cores can feed with `workers.threads` each."""
    import torch

    workers = torch.cuda.device_count() or (os.cpu_count() or 1) // run.recipe.workers.threads
    return max(1, min(workers, len(run.shares)))


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
    log = run.path / LOG_NAME
    command = [sys.executable, "-m", "idc_hub.running.launch", str(num_processes), str(run.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.recipe.workers.threads)}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        received = _wait(process)
    if received:
        raise Interrupted(received)
    if process.returncode != 0:
        left = sum(not run.is_settled(share) for share in run.shares)
        raise IncompleteError(
            f"The workers ended with status {process.returncode}; {left} of {len(run.shares)} photographs are not "
            f"finished. The last words of the workers are in {log}.",
            "Run the same command again: it continues where they ended.",
        )


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
    """Accelerate's launcher in a process that dies with the one that started it, and its workers with it."""
    end_with_parent()
    from accelerate.commands.launch import launch_command, launch_command_parser

    num_processes, run_dir = argv
    options = ["--multi_gpu", "--num_processes", num_processes, "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "--module"]
    launch_command(launch_command_parser().parse_args([*options, "idc_hub.running.worker", run_dir]))


if __name__ == "__main__":
    main(sys.argv[1:])
