"""benchmark: compare sets by the students that they train."""

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
    """Result of `benchmark(dry_run=True)`.

    Attributes:
        runs: Number of single runs in the plan.
        finished: Number of finished ones.
        states: For each single run the state (done, begun, to do) of its `set`, `hr`, `student` and `evaluation`; or
            `problem`, a sentence, if the run cannot be made.
    """

    runs: int
    finished: int
    states: dict[str, dict[str, str]]


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of `benchmark`.

    Attributes:
        runs: Number of single runs in the plan, all of them finished.
        finished: The same number.
        report: Path of the table of means (Markdown).
        csv: Path of the table of single runs.
        plots: Paths of the plots; a sentence if matplotlib is not installed.
    """

    runs: int
    finished: int
    report: str
    csv: str
    plots: list[str] | str


def benchmark(
    plan: str | Path, *, out: str | Path, dry_run: bool = False, progress: Reporting = True
) -> BenchmarkResult | BenchmarkPlan:
    """Compare sets: make them, train students on them, evaluate the students, and write tables and plots.

    If interrupted, call it again: finished parts are not made again.

    Args:
        plan: A YAML file; its keys are the fields of `benchmarking.plan.Plan`.
        out: Folder for the sets, the students, `ladder.csv`, `ladder.md` and `plots/`.
        dry_run: Only report the state of every single run; write nothing.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        Paths of the tables and plots; with `dry_run`, the state of every single run.

    Raises:
        RecipeError: The plan is invalid; the message names every problem.
        ImageError: There is no such test set.
        RunError: Another benchmark is running in the folder.
        HubError: A test set on the Hub cannot be loaded.
        IncompleteError: Some single runs failed; the others are finished. The same call retries.
        Interrupted: A signal stopped the benchmark; the same call continues.
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
        select(recipe, run_dir=run_dir, gate=checked.gate, progress=progress)

    def add_version(cell: Cell, run_dir: Path) -> None:
        if cell.hr == REAL:  # `select` adds it: the Run knows the places of its patches
            make_set(cell, run_dir)
        else:
            gate = checked.has_gate(cell)
            teacher = checked.hr[cell.hr]
            regenerate(run_dir, teacher=teacher, name=cell.hr, set_default=False, gate=gate, progress=progress)

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
        failed = "\n".join(f"  {cell}: {sentence}" for cell, sentence in findings.failures.items())
        raise IncompleteError(
            f"{len(findings.failures)} of {runs} single runs failed:\n{failed}\n",
            f"The others are finished: {ladder.report}. Run the same command again to retry.",
        )
    return BenchmarkResult(runs, runs, str(ladder.report), str(ladder.csv), plots)
