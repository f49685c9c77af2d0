"""HR versions of a repository tree: what makes one, and all that has to follow it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idc_hub.errors import RunError

if TYPE_CHECKING:
    from idc_hub.dataset.hr import RealHR
    from idc_hub.networks.teachers import Teacher
    from idc_hub.runs.run import Run


def repository(path: Path) -> Path:
    """The repository tree at a path that names a Run or the tree itself.

    Raises:
        RunError: If there is none.
    """
    for folder in (path / "repo", path):
        if (folder / "idc.json").is_file():
            return folder
    raise RunError(
        f"{path} holds no condensed set (no repo/idc.json).",
        "Finish `idc condense`, or fetch a set with `idc pull`.",
    )


def hr_source(path: Path, spec: str, scale: int, settings: Mapping[str, Any]) -> Teacher | RealHR:
    """What `--teacher` names: a teacher, or for a Run of a selection the photographs themselves."""
    from idc_hub.dataset.hr import NAME, RealHR
    from idc_hub.machine import device
    from idc_hub.networks.teachers import load_teacher
    from idc_hub.runs.run import Run

    if spec != NAME:
        return load_teacher(spec, scale=scale, device=device(), **settings)
    if (path / "run.json").is_file():
        return RealHR(Run.open(path))
    raise RunError(
        f"{path} does not say where its patches were cut out: only a Run that `idc select` made here does.",
        "Name that Run, or a teacher (`idc teachers ls`).",
    )


def add_version(repo: Path, maker: Teacher | RealHR, name: str, *, set_default: bool, progress: bool) -> dict[str, Any]:
    """Make an HR version, then the pictures and the card that go with it, and check that all of it loads."""
    from idc_hub.dataset.card import write_card
    from idc_hub.dataset.check import check_repository
    from idc_hub.dataset.pictures import write_report
    from idc_hub.dataset.regenerate import regenerate as make_version
    from idc_hub.runs.progress import counting

    with counting(f"HR version {name}", enabled=progress) as count:
        added = make_version(repo, maker, name, set_default=set_default, on_progress=count)
    write_report(repo)
    write_card(repo)
    check_repository(repo)
    return added


def measure_version(run: Run, name: str, maker: Teacher | RealHR, progress: bool) -> dict[str, Any]:
    """Take the figures of an HR version, keep them, and show them on the card."""
    from idc_hub.dataset.card import write_card
    from idc_hub.dataset.gate import measure, record
    from idc_hub.runs.progress import counting

    with counting("quality: photographs", enabled=progress) as count:
        measured = measure(run, name, maker, on_progress=count)
    record(run, name, measured)
    write_card(run.repo)
    return measured
