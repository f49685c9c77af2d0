"""report: write a page to look at a Run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from idc_hub.dataset.report import write_report
from idc_hub.runs.progress import Reporting, counting


@dataclass(frozen=True)
class ReportResult:
    """Result of `report`.

    Attributes:
        path: The page.
        photographs: Number of photographs in its table.
        with_sliders: Photographs whose patches are shown beside their HR versions.
        with_thumbnails: Photographs that are shown small.
        bytes: Size of the page.
        outliers: For the five most unusual photographs, what is unusual.
        notes: What is missing from the page, and why.
    """

    path: str
    photographs: int
    with_sliders: int
    with_thumbnails: int
    bytes: int
    outliers: dict[str, str]
    notes: list[str]


def report(run_dir: str | Path, *, progress: Reporting = True) -> ReportResult:
    """Write `report.html` into a Run: patches beside real ones and HR versions, losses, quality figures, the recipe.

    The page needs no network. It shows real photographs, is not part of the repository folder, and is never pushed.

    Args:
        run_dir: A Run, finished or not, or pulled.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        Where the page is, and the outliers.

    Raises:
        RunError: There is no Run, it is damaged, or `run_dir` is a repository folder.
    """
    with counting("photographs drawn", progress) as count:
        made = write_report(Path(run_dir), on_progress=count)
    unusual = [photograph for photograph in made.photographs if photograph.error or photograph.why]
    return ReportResult(
        path=str(made.path),
        photographs=len(made.photographs),
        with_sliders=made.with_sliders,
        with_thumbnails=made.with_thumbnails,
        bytes=made.bytes,
        outliers={photograph.id: photograph.error or photograph.why for photograph in unusual[:5]},
        notes=made.notes,
    )
