"""benchmark: sets against each other, by the students that they train."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from idc_hub.benchmarking.ladder import DONE, Ladder, draw_plots
from idc_hub.benchmarking.plan import REAL, Cell, Plan
from idc_hub.errors import IncompleteError
from idc_hub.runs.progress import Progress, Reporting
from idc_hub.selection.pool import selection_recipe
from idc_hub.verbs.condense import condense
from idc_hub.verbs.regenerate import regenerate
from idc_hub.verbs.select import select


@dataclass(frozen=True)
class BenchmarkPlan:
    """What `benchmark(dry_run=True)` found out.

    Attributes:
        runs: Single runs of the plan.
        finished: How many of them are finished.
        states: For each single run its `set`, `hr`, `student` and `evaluation`: done, begun or to do.
    """

    runs: int
    finished: int
    states: dict[str, dict[str, str]]


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark` made.

    Attributes:
        runs: Single runs of the plan.
        finished: How many of them are finished: all.
        report: The table of means, Markdown.
        csv: The table of single runs.
        plots: The pictures; a sentence where matplotlib is not installed.
    """

    runs: int
    finished: int
    report: str
    csv: str
    plots: list[str] | str


def benchmark(
    plan: str | Path, *, out: str | Path, dry_run: bool = False, progress: Reporting = True
) -> BenchmarkResult | BenchmarkPlan:
    """Compare sets: make them, train students on them, measure, and write tables and pictures.

    Call it again to continue an interrupted benchmark; what is finished is left alone.

    Args:
        plan: A YAML file; see `benchmarking.plan.Plan`.
        out: Folder for the sets, the students, `ladder.csv`, `ladder.md` and `plots/`.
        dry_run: Only say what is there and what is to be done.
        progress: True prints what is done on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        What was made; with `dry_run`, what is to be done.

    Raises:
        RecipeError: With every problem of the plan.
        RunError: Another benchmark works in the folder.
        IncompleteError: Single runs failed; the others are finished, and the same call tries again.
    """
    checked = Plan.load(Path(plan))

    def make_set(cell: Cell, run_dir: Path) -> None:
        entry = checked.sets[cell.set]
        if entry.method is None:
            condense(checked.recipe_of(cell), run_dir=run_dir, progress=progress)
            return
        version = [] if cell.hr == REAL else [f"teacher.hr_version={cell.hr}"]
        recipe = selection_recipe(
            entry.method,
            checked.source,
            ratio=cell.ratio,
            scale=checked.scale,
            seed=cell.set_seed,
            teacher=checked.hr[cell.hr],
            overrides=(*checked.set, *entry.set, *version),
        )
        select(recipe, run_dir=run_dir, progress=progress)

    def add_version(cell: Cell, run_dir: Path) -> None:
        if cell.hr == REAL:  # only the call that chose the patches knows where in the photographs they lie
            make_set(cell, run_dir)
        else:
            regenerate(run_dir, teacher=checked.hr[cell.hr], name=cell.hr, set_default=False, progress=progress)

    def say(line: str, done: int, total: int) -> None:
        if progress is True:
            print(f"[{done}/{total}] {line}", file=sys.stderr, flush=True)
        elif progress:
            progress(Progress(line, done, total))

    ladder = Ladder(checked, Path(out), make_set, add_version, say)
    if dry_run:
        states = ladder.states()
        done = sum(set(state.values()) == {DONE} for state in states.values())
        return BenchmarkPlan(len(states), done, {str(cell): state for cell, state in states.items()})
    findings, runs = ladder.run(), len(checked.cells())
    plots = draw_plots(ladder, findings)
    if findings.failures:
        listed = "\n".join(f"  {cell}: {sentence}" for cell, sentence in findings.failures.items())
        raise IncompleteError(
            f"{len(findings.failures)} of {runs} single runs failed:\n{listed}\n",
            f"The others are finished: {ladder.report}. Run the same command again to retry.",
        )
    return BenchmarkResult(runs, runs, str(ladder.report), str(ladder.csv), plots)
