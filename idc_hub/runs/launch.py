"""Start workers on this machine: one in this process, or several, each by an Accelerate launch of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idc_hub.atomic import writing
from idc_hub.background import in_background
from idc_hub.errors import IncompleteError, Interrupted
from idc_hub.runs.run import Run
from idc_hub.runs.worker import PARENT, SIGNALS, end_with_parent, work

if TYPE_CHECKING:
    import torch

    from idc_hub.recipe import Recipe

LOG_NAME = "workers.log"
CONFIGURATION = Path(__file__).with_name("accelerate.yaml")
WAIT_SECONDS = 0.1
_DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_num_processes(recipe: Recipe, photographs: int) -> int:
    """One worker for each visible GPU; without a GPU, as many as the CPU cores allow at `workers.threads` each.

    One of several processes that a launcher such as `torchrun` started is a single worker.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return 1
    workers = torch.cuda.device_count() or cores() // recipe.workers.threads
    return max(1, min(workers, photographs))


def worker_device(rank: int) -> torch.device:
    """The device of a worker: the GPUs of this machine in turn, or the CPU."""
    import torch

    gpus = torch.cuda.device_count()
    return torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")


def launch(run: Run, num_processes: int) -> None:
    """Condense all photographs of a Run with one or several workers.

    A worker that dies ends alone: the others take over what it had.

    Args:
        run: The Run.
        num_processes: Number of workers; a single one works in this process.

    Raises:
        Interrupted: A signal stopped the work; photographs under way were checkpointed.
        IncompleteError: All workers died, or the Run cannot be written; what was finished or checkpointed is kept.
        NetworkError: The extractor cannot be loaded.
        ImageError: The source is gone.
    """
    left = run.unsettled(run.instances)
    if not left:
        return
    workers = min(num_processes, len(left))
    if workers == 1:
        work(run, worker_device(int(os.environ.get("LOCAL_RANK") or 0)))
        return
    log = run.path / LOG_NAME
    with writing(log):
        output = log.open("ab")
    with output, _following(log, output.tell()):
        # Signals are caught before the first worker starts, so that none is left behind.
        processes: list[subprocess.Popen[bytes]] = []
        with _forwarding(processes) as received:
            for command, environment in [_worker_command(run, rank, workers) for rank in range(workers)]:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
                )
                if received:
                    processes[-1].terminate()
            _wait_for_all(processes)
    if received:
        raise Interrupted(received[0])
    for instance in run.unsettled(left):
        if run.was_tried(instance):
            with run.claim(instance.id):
                pass  # records whose process died with it
    if left := run.unsettled(left):
        failed = [f"\n  {instance.id}: {error}" for instance in left if (error := run.failure(instance))]
        raise IncompleteError(
            f"All workers ended, and {len(left)} of {len(run.instances)} photographs are not finished. "
            f"The output of the workers is in {log}.{''.join(failed)}",
            "Run the same command again to continue.",
        )


def _worker_command(run: Run, rank: int, world_size: int) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a worker, as `accelerate launch --num_processes 1` starts it.

    Accelerate's launcher prepares them, and this process starts them itself: no further process stands between this
    one and a worker, no configuration file is read, and no temporary folder is made.
    """
    import torch
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import prepare_simple_launcher_cmd_env

    options = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        options += ["--gpu_ids", visible.split(",")[rank % gpus]]
    worker = ["work", str(run.path), "--rank", str(rank), "--world-size", str(world_size), "--quiet"]
    arguments = launch_command_parser().parse_args([*options, "--module", "idc_cli.main", *worker])
    arguments.use_cpu = False  # only a configuration file has this key
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    kept = {name: value for name, value in environment.items() if name not in _DISTRIBUTED}
    return command, {**kept, "OMP_NUM_THREADS": str(run.recipe.workers.threads), PARENT: str(os.getpid())}


def _wait_for_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until all workers have ended; says which died while others went on."""
    left = dict(enumerate(processes))
    while left:
        for rank, process in list(left.items()):
            status = process.poll()
            if status is None:
                continue
            del left[rank]
            if status < 0 and left:
                name = signal.Signals(-status).name
                others = "another takes" if len(left) == 1 else f"the other {len(left)} take"
                warnings.warn(f"Worker {rank} was killed ({name}); {others} over what it had.", stacklevel=1)
        time.sleep(WAIT_SECONDS)


@contextmanager
def _following(log: Path, begin: int) -> Iterator[None]:
    """Print the warnings and errors that workers write into their log from `begin` on, each sentence once."""

    def follow(over: threading.Event) -> None:
        said: set[str] = set()
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(begin)
            ending = False
            rest = ""
            while not ending:
                ending = over.wait(5 * WAIT_SECONDS)
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    if line.startswith(("warning: ", "error: ")) and "interrupted (" not in line and line not in said:
                        said.add(line)
                        print(line, file=sys.stderr, flush=True)

    with in_background(follow):
        yield


@contextmanager
def _forwarding(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Stop the processes on a signal; yields the list of received signals.

    The first signal makes workers save and exit. A second SIGINT (Ctrl-C) kills them, and this process with them.
    """
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        at_once = number == signal.SIGINT and signal.SIGINT in received
        received.append(number)
        for process in processes:
            # In a terminal they get SIGINT too; SIGTERM stops them in any case.
            process.kill() if at_once else process.terminate()
        if at_once:
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [n for n in SIGNALS if n == signal.SIGINT or before[n] != signal.SIG_IGN]
    for number in caught:
        signal.signal(number, forward)
    try:
        yield received
    finally:
        for number in caught:
            signal.signal(number, before[number])


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
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())}
    processes: list[subprocess.Popen[bytes]] = []
    with writing(log):
        output = log.open("wb")
    with output, _forwarding(processes) as received:
        # In a session of its own: Ctrl-C would reach the processes from the terminal and again through the launcher.
        options: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "env": environment}
        processes.append(subprocess.Popen(command, start_new_session=True, **options))
        if received:
            processes[0].terminate()
        status = processes[0].wait()
    if received:
        raise Interrupted(received[0])
    return status


def main(argv: list[str]) -> None:
    """Run Accelerate's launcher in a process that ends with its parent; `module` must watch its own parent."""
    end_with_parent()
    from accelerate.commands.launch import launch_command, launch_command_parser

    num_processes, module, *arguments = argv
    options = [
        "--config_file",
        str(CONFIGURATION),
        "--multi_gpu",
        "--num_processes",
        num_processes,
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    # Without logs of its own: it would leave their folder behind.
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "--log_dir", os.devnull, "--module"]
    launch_command(launch_command_parser().parse_args([*options, module, *arguments]))


if __name__ == "__main__":
    main(sys.argv[1:])
