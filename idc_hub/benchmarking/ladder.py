"""Carry out a benchmark plan: make every set, HR version, student and evaluation that is missing.

```
sets/<set>-<ratio>-s<seed>/                 a Run with the plan's HR versions
students/<set>-…/<hr>/<student>-s<seed>/    a network, its metrics.jsonl and its results.json
ladder.csv  ladder.md                       rewritten after every single run
```

Finished parts are not made again, so a benchmark can be interrupted and continued at any time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from idc_hub.atomic import write_text_atomically, writing
from idc_hub.benchmarking.plan import Cell, Plan
from idc_hub.benchmarking.plots import draw
from idc_hub.benchmarking.statistics import Result
from idc_hub.benchmarking.tables import METRICS, Findings, protocol, to_csv, to_markdown
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import IDCError, Interrupted, RunError, one_line
from idc_hub.images.sources import open_source
from idc_hub.networks import create, load
from idc_hub.networks.registry import WEIGHTS, read_config
from idc_hub.runs.claims import claim
from idc_hub.runs.run import Run, whole_lines
from idc_hub.training.evaluation import evaluate, read_results, save_result
from idc_hub.training.launch import train_network
from idc_hub.training.loop import CHECKPOINT, FACTS
from idc_hub.training.loop import METRICS as METRICS_FILE
from idc_hub.training.pairing import set_name
from idc_hub.training.pairs import read_version

if TYPE_CHECKING:
    from idc_hub.recipe import Source

DONE, BEGUN, NOT_BEGUN = "done", "begun", "to do"

Make = Callable[[Cell, Path], object]


@dataclass
class Ladder:
    """A plan and the folder that it is carried out in.

    Attributes:
        plan: The plan.
        folder: The folder of sets, students and tables.
        make_set: Called with a cell and a Run directory; makes the cell's set there, with the cell's HR version.
        add_version: Called with a cell and a Run directory; adds the cell's HR version to that Run.
        say: Called with a message, the number of the single run that it is about, and the number of single runs.
    """

    plan: Plan
    folder: Path
    make_set: Make
    add_version: Make
    say: Callable[[str, int, int], None]
    _digests: dict[Source, dict[str, str]] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)
    _lost_sets: dict[str, str] = field(default_factory=dict)

    @property
    def csv(self) -> Path:
        """The table of single runs."""
        return self.folder / "ladder.csv"

    @property
    def report(self) -> Path:
        """The table of means."""
        return self.folder / "ladder.md"

    def states(self) -> dict[Cell, dict[str, str]]:
        """The state (done, begun, to do) of the `set`, `hr`, `student` and `evaluation` of each single run.

        If a single run cannot be made, its only key is `problem`, a sentence. Nothing is changed.

        Raises:
            ImageError: There is no such test set.
            HubError: A test set on the Hub cannot be loaded.
        """
        for testset in self.plan.testsets:  # otherwise a missing one is noticed only after the first training
            open_source(testset)
        states = {}
        for cell in self.plan.cells():
            try:
                states[cell] = self._state(cell)
            except IDCError as error:
                states[cell] = {"problem": str(error)}
        return states

    def run(self) -> Findings:
        """Carry out all unfinished single runs. If one fails, its error is recorded and the others continue.

        Returns:
            Results and failures of all single runs.

        Raises:
            RunError: Another benchmark is running in the folder.
            Interrupted: A signal stopped the benchmark.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with claim(self.folder, ".benchmark") as is_mine:
            if not is_mine:
                raise RunError(
                    f"Another benchmark is running in {self.folder}.", "Wait for it, or choose another --out."
                )
            return self._run()

    def _run(self) -> Findings:
        findings = Findings(self.plan)
        pending = []
        for cell, state in self.states().items():
            if set(state.values()) == {DONE}:
                self._collect(cell, findings)
            else:
                pending.append(cell)
        begun, total = time.monotonic(), len(self.plan.cells())
        for number, cell in enumerate(pending):
            left = (time.monotonic() - begun) / number * (len(pending) - number) if number else None
            position = total - len(pending) + number + 1
            self.say(f"{cell}{_eta(left)}", position, total)
            try:
                self._finish(cell)
                self._collect(cell, findings)
            except Interrupted:
                raise
            except Exception as error:  # no failure of one run may stop the others
                sentence = str(error) if isinstance(error, IDCError) else f"{type(error).__name__}: {error}"
                findings.failures[str(cell)] = sentence
                self.say(f"{cell} failed: {sentence}", position, total)
            self._write(findings)
        self._write(findings)
        return findings

    def _write(self, findings: Findings) -> None:
        write_text_atomically(self.csv, to_csv(findings.results))
        write_text_atomically(self.report, to_markdown(findings))

    def _finish(self, cell: Cell) -> None:
        """Carry out the unfinished stages of a single run."""
        if cell.run_name in self._lost_sets:
            raise RunError(self._lost_sets[cell.run_name])
        run_dir, student = self.run_dir(cell), self.student_dir(cell)
        state = self._state(cell)
        if state["set"] != DONE:
            try:
                self.make_set(cell, run_dir)
                self._check_set(cell)
            except IDCError as error:
                self._lost_sets[cell.run_name] = str(error)
                raise
            state = self._state(cell)
        if state["hr"] != DONE:
            self.add_version(cell, run_dir)
        if state["student"] != DONE:
            pairs = read_version(CondensedSet.open(run_dir), self.plan.scale, cell.hr)
            train_network(
                self.plan.network_of(cell),
                pairs,
                student,
                self.plan.training_of(cell),
                arguments=self.plan.students[cell.student].arguments,
            )
        if cell.learning_rate is None:
            self._evaluate(student)

    def _evaluate(self, student: Path) -> None:
        """Evaluate a student on the test sets that it has no results for."""
        network = load(student, scale=self.plan.scale).to("cuda" if torch.cuda.is_available() else "cpu")
        protocols = list({protocol(metric, self.plan.scale): None for metric in METRICS})
        results = self._results(student)
        for testset in self.plan.testsets:
            if set_name(testset) not in results:
                save_result(student, evaluate(network, testset, protocols))

    def curves(self) -> dict[str, dict[float, dict[str, list[tuple[int, float]]]]]:
        """Training curves, as (step, loss): by student, then learning rate, then set."""
        curves: dict[str, dict[float, dict[str, list[tuple[int, float]]]]] = {}
        for cell in self.plan.cells():
            path = self.student_dir(cell) / METRICS_FILE
            if cell.learning_rate is not None and path.is_file():
                lines = whole_lines(path.read_bytes())
                rates = curves.setdefault(cell.student, {}).setdefault(cell.learning_rate, {})
                rates[cell.set] = [(line["step"], line["loss"]) for line in lines]
        return curves

    def run_dir(self, cell: Cell) -> Path:
        """The Run directory of a cell's set."""
        return self.folder / "sets" / cell.run_name

    def student_dir(self, cell: Cell) -> Path:
        """The folder of a cell's student."""
        return self.folder / "students" / cell.student_path

    def _state(self, cell: Cell) -> dict[str, str]:
        """The state of a single run; see `states`.

        Raises:
            RunError: Its set or its student belongs to another plan.
        """
        run_dir, student = self.run_dir(cell), self.student_dir(cell)
        state = dict.fromkeys(("set", "hr", "student", "evaluation"), NOT_BEGUN)
        if cell.learning_rate is not None:
            del state["evaluation"]
        if not (run_dir / "repo" / MANIFEST).is_file():
            return state | ({"set": BEGUN} if run_dir.exists() else {})
        self._check_set(cell)
        manifest = Manifest.load(run_dir / "repo")
        # Measuring the quality, if it is, is the last thing that `condense`, `select` and `regenerate` do.
        measured = manifest.condensation.get("quality", {}) if self.plan.has_gate(cell) else manifest.hr_versions
        state["set"] = DONE if measured else BEGUN
        if cell.hr not in manifest.hr_versions:
            return state
        state["hr"] = DONE if cell.hr in measured else BEGUN
        if (student / CHECKPOINT).is_file():
            return state | {"student": BEGUN}
        if not (student / WEIGHTS).is_file():
            return state
        self._check_student(cell, manifest)
        state["student"] = DONE
        if cell.learning_rate is None:
            missing = {set_name(testset) for testset in self.plan.testsets} - self._results(student).keys()
            state["evaluation"] = NOT_BEGUN if len(missing) == len(self.plan.testsets) else BEGUN if missing else DONE
        return state

    def _check_set(self, cell: Cell) -> None:
        """Check that the scale, method, ratio and photographs of a finished Run are those of the plan."""
        if cell.run_name in self._checked:
            return
        run = Run.open(self.run_dir(cell))
        method = self.plan.sets[cell.set].method or "idc"
        planned = {"scale": self.plan.scale, "method": method, "ratio": cell.ratio}
        recipe = run.recipe
        actual = {"scale": recipe.scale, "method": recipe.method, "ratio": recipe.patches.ratio}
        differing = _differing(actual, planned)
        source = recipe.source.model_copy(update={"path": self.plan.source})
        if {instance.id: instance.sha256 for instance in run.instances} != self._photographs(source):
            differing.append(f"other photographs than {self.plan.source}")
        if differing:
            raise RunError(
                f"{run.path} is another set: {', '.join(differing)}.", "Move it away, or choose another --out."
            )
        self._checked.add(cell.run_name)

    def _photographs(self, source: Source) -> dict[str, str]:
        """SHA-256 of every photograph of a source, by instance id."""
        if source not in self._digests:
            photographs = open_source(**source.model_dump())
            self._digests[source] = {
                entry.id: hashlib.sha256(photographs.read(entry)).hexdigest() for entry in photographs.entries
            }
        return self._digests[source]

    def _check_student(self, cell: Cell, manifest: Manifest) -> None:
        """Check that a student is the plan's network, trained with its training recipe on the set's present patches."""
        path = self.student_dir(cell) / FACTS
        try:
            training = yaml.safe_load(path.read_text(encoding="utf-8"))
            differing = _differing(training["recipe"], self.plan.training_of(cell).model_dump(mode="json"))
            if training["data"].get("lr_digest") != manifest.lr_digest:
                differing.append("on other patches")
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} is missing or damaged ({one_line(error)}).", f"Delete {path.parent} to train again."
            ) from error
        with torch.device("meta"):  # costs no memory
            name, arguments = self.plan.network_of(cell), self.plan.students[cell.student].arguments
            planned = create(name, scale=self.plan.scale, arguments=arguments)
        differing += _differing(read_config(self.student_dir(cell))["arguments"], planned.arguments)
        if differing:
            raise RunError(
                f"{self.student_dir(cell)} was trained differently: {', '.join(differing)}.",
                "Delete it to train again, or choose another --out.",
            )

    def _results(self, student: Path) -> dict[str, dict[str, Any]]:
        """Results of the student's present weights: figures by protocol, by name of the test set."""
        results: dict[str, dict[str, Any]] = {}
        for result in read_results(student):
            results.setdefault(result["testset"], {}).update(result["protocols"])
        return results

    def _collect(self, cell: Cell, findings: Findings) -> None:
        """Add the results of a finished single run to the findings."""
        manifest = Manifest.load(self.run_dir(cell) / "repo")
        findings.sets[cell.run_name] = {
            "set": cell.set,
            "ratio": cell.ratio,
            "patches": manifest.patches,
            "seconds": manifest.condensation.get("worker_seconds"),
            "device": manifest.condensation.get("device", "unknown"),
        }
        teacher = manifest.hr_versions[cell.hr].teacher
        digest = f", weights {teacher.weights_sha256[:12]}" if teacher.weights_sha256 else ""
        findings.teachers[cell.hr] = teacher.name + digest
        if cell.learning_rate is not None:
            return
        results = self._results(self.student_dir(cell))
        for testset in findings.testsets:
            figures = (
                results[testset][str(protocol(metric, self.plan.scale))][metric.partition("_")[0]] for metric in METRICS
            )
            findings.results.append(Result(cell.set, cell.hr, cell.student, cell.seed, cell.ratio, testset, *figures))


def _differing(actual: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    """A phrase for each planned value that differs from the actual one."""
    return [f"{key} {actual.get(key)} instead of {value}" for key, value in planned.items() if actual.get(key) != value]


def draw_plots(ladder: Ladder, findings: Findings) -> list[str] | str:
    """Draw the plots into `plots/`; returns their paths, or a sentence if matplotlib is not installed."""
    try:
        return [str(path) for path in draw(findings, ladder.curves(), ladder.folder / "plots")]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return "left out: matplotlib is not installed. Run `pip install 'idc-hub[report]'` and the same command again."


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f" (about {seconds / 60:.0f} min left)"
