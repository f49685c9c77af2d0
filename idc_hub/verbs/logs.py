"""logs: the last lines that the workers of a Run wrote, wherever they run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from idc_hub.clusters import hf_jobs
from idc_hub.hub.revisions import client
from idc_hub.runs.launch import LOG_NAME
from idc_hub.runs.run import Run


@dataclass(frozen=True)
class LogsResult:
    """Result of `logs`.

    Attributes:
        logs: The last lines of each log, by its name: a file of the Run, or a job.
    """

    logs: dict[str, list[str]]


def logs(run_dir: str | Path, *, lines: int = 20, token: str | None = None) -> LogsResult:
    """The last lines that workers wrote: on this machine, in a SLURM array, or in Hugging Face Jobs.

    Args:
        run_dir: The Run directory.
        lines: Most lines of each log.
        token: Access token for the jobs; None: HF_TOKEN, or the login of `hf auth login`.

    Returns:
        The logs. A worker in the process of `idc condense` or in Ray has none: it writes to its terminal.

    Raises:
        RunError: There is no Run, or it is damaged.
        HubError: The Run has jobs, and the Hub refused or could not be reached.
    """
    path = Run.open(Path(run_dir)).path
    files = [path / LOG_NAME, *sorted((path / "slurm").glob("*.log"))]
    found = {file.relative_to(path).as_posix(): _end_of(file, lines) for file in files if file.is_file()}
    if repo_id := hf_jobs.recorded_repository(path):
        found |= hf_jobs.logs(client(token), repo_id, lines)
    return LogsResult(found)


def _end_of(file: Path, lines: int) -> list[str]:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return [line.rstrip("\n") for line in deque(opened, lines)]
