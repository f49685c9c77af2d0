"""A benchmark plan, carried out: every set, HR version, student and evaluation that is not there yet.

```
sets/<set>-<ratio>-s<seed>/      a Run, with the plan's HR versions in it
students/<set>-…/<hr>/<student>-s<seed>/    a network, its metrics.jsonl and its results.json
ladder.csv  ladder.md            rewritten after every single run
```

What is finished is left alone, so a benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from filelock import FileLock, Timeout

from idc_hub.atomic import write_text_atomically
from idc_hub.benchmarking.plan import Cell, Plan
from idc_hub.benchmarking.plots import draw
from idc_hub.benchmarking.statistics import Result
from idc_hub.benchmarking.tables import METRICS, Findings, protocol, to_csv, to_markdown
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import IDCError, Interrupted, RunError
from idc_hub.images.sources import open_source
from idc_hub.networks import load, weights_sha256
from idc_hub.networks.registry import WEIGHTS
from idc_hub.runs.run import Run
from idc_hub.training.evaluation import RESULTS, evaluate, save_result
from idc_hub.training.launch import train_network
from idc_hub.training.loop import CHECKPOINT, FACTS
from idc_hub.training.loop import METRICS as METRICS_FILE
from idc_hub.training.pairs import read_version

if TYPE_CHECKING:
    from idc_hub.recipe import Source

DONE, PARTLY, TODO = "done", "begun", "to do"

Make = Callable[[Cell, Path], object]


@dataclass
class Ladder:
    """A plan and the folder that it is carried out in.

    Attributes:
        plan: What to compare.
        folder: Where everything goes.
        make_set: Makes the cell's set with the cell's HR version, in the Run directory that it is given.
        add_version: Adds the cell's HR version to that Run.
        say: Called with what is done next, its number, and the number of single runs.
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
        """For each single run its `set`, `hr`, `student` and `evaluation`: done, begun or to do.

        Where something stands in the way, `problem` says what. Nothing is changed.

        Raises:
            ImageError: There is no such test set.
            HubError: A test set on the Hub cannot be loaded.
        """
        for testset in self.plan.testsets:  # or it would be missed only after the first training
            open_source(testset)
        found = {}
        for cell in self.plan.cells():
            try:
                found[cell] = self._state(cell)
            except IDCError as error:
                found[cell] = {"problem": str(error)}
        return found

    def run(self) -> Findings:
        """Do what is left to do; a single run that fails is noted, and the others go on.

        Raises:
            RunError: Another process works in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return self._run()
        except Timeout:
            raise RunError(
                f"Another benchmark works in {self.folder}.", "Wait for it, or choose another --out."
            ) from None

    def _run(self) -> Findings:
        findings = Findings(self.plan)
        pending = []
        for cell, state in self.states().items():
            if set(state.values()) == {DONE}:
                self._note(cell, findings)
            else:
                pending.append(cell)
        begun, total = time.monotonic(), len(self.plan.cells())
        for number, cell in enumerate(pending):
            left = (time.monotonic() - begun) / number * (len(pending) - number) if number else None
            place = total - len(pending) + number + 1
            self.say(f"{cell}{_eta(left)}", place, total)
            try:
                self._finish(cell)
                self._note(cell, findings)
            except Interrupted:
                raise
            except Exception as error:  # whatever it is, it must not cost the other runs
                sentence = str(error) if isinstance(error, IDCError) else f"{type(error).__name__}: {error}"
                findings.failures[str(cell)] = sentence
                self.say(f"{cell} failed: {sentence}", place, total)
            self._write(findings)
        self._write(findings)
        return findings

    def _write(self, findings: Findings) -> None:
        write_text_atomically(self.csv, to_csv(findings.results))
        write_text_atomically(self.report, to_markdown(findings))

    def _finish(self, cell: Cell) -> None:
        """Take a single run through the stages that it lacks."""
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
            pairs, facts = read_version(CondensedSet.open(run_dir), self.plan.scale, cell.hr)
            recipe = self.plan.training_of(cell)
            train_network(cell.student, pairs, student, recipe, scale=self.plan.scale, data=facts)
        if cell.learning_rate is None:
            self._evaluate(student)

    def _evaluate(self, student: Path) -> None:
        """Measure a student on the test sets that it was not measured on yet."""
        network = load(student, scale=self.plan.scale).to("cuda" if torch.cuda.is_available() else "cpu")
        protocols = list({protocol(metric, self.plan.scale): None for metric in METRICS})
        measured = self._measured(student)
        for testset in self.plan.testsets:
            if Path(testset).name not in measured:
                save_result(student, evaluate(network, testset, protocols))

    def curves(self) -> dict[str, dict[float, dict[str, list[tuple[int, float]]]]]:
        """Steps and losses of the students at several learning rates, by student, learning rate and set."""
        found: dict[str, dict[float, dict[str, list[tuple[int, float]]]]] = {}
        for cell in self.plan.cells():
            path = self.student_dir(cell) / METRICS_FILE
            if cell.learning_rate is not None and path.is_file():
                lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
                rates = found.setdefault(cell.student, {}).setdefault(cell.learning_rate, {})
                rates[cell.set] = [(line["step"], line["loss"]) for line in lines]
        return found

    def run_dir(self, cell: Cell) -> Path:
        """The Run of a cell's set."""
        return self.folder / "sets" / cell.run_name

    def student_dir(self, cell: Cell) -> Path:
        """The folder of a cell's student."""
        return self.folder / "students" / cell.student_path

    def _state(self, cell: Cell) -> dict[str, str]:
        """How far a single run is; see `states`.

        Raises:
            RunError: What is there belongs to another plan.
        """
        run_dir, student = self.run_dir(cell), self.student_dir(cell)
        state = dict.fromkeys(("set", "hr", "student", "evaluation"), TODO)
        if cell.learning_rate is not None:
            del state["evaluation"]
        if not (run_dir / "repo" / MANIFEST).is_file():
            return state | ({"set": PARTLY} if run_dir.exists() else {})
        self._check_set(cell)
        state["set"] = DONE
        manifest = Manifest.load(run_dir / "repo")
        if cell.hr not in manifest.hr_versions:
            return state
        state["hr"] = DONE
        if not (student / WEIGHTS).is_file():
            return state | ({"student": PARTLY} if (student / CHECKPOINT).is_file() else {})
        self._check_student(cell, manifest)
        state["student"] = DONE
        if cell.learning_rate is None:
            missing = {Path(testset).name for testset in self.plan.testsets} - self._measured(student).keys()
            state["evaluation"] = TODO if len(missing) == len(self.plan.testsets) else PARTLY if missing else DONE
        return state

    def _check_set(self, cell: Cell) -> None:
        """Take a finished Run as it is if scale, method, ratio and photographs are the plan's."""
        if cell.run_name in self._checked:
            return
        run = Run.open(self.run_dir(cell))
        method = self.plan.sets[cell.set].method or "idc"
        wanted = {"scale": self.plan.scale, "method": method, "ratio": cell.ratio}
        recipe = run.recipe
        found = {"scale": recipe.scale, "method": recipe.method, "ratio": recipe.patches.ratio}
        differing = [f"{key} {found[key]} instead of {value}" for key, value in wanted.items() if found[key] != value]
        source = recipe.source.model_copy(update={"path": self.plan.source})
        if {instance.id: instance.sha256 for instance in run.instances} != self._photographs(source):
            differing.append(f"other photographs than {self.plan.source}")
        if differing:
            raise RunError(
                f"{run.path} is another set: {', '.join(differing)}.", "Move it away, or choose another --out."
            )
        self._checked.add(cell.run_name)

    def _photographs(self, spec: Source) -> dict[str, str]:
        """Instance id to digest of the photographs of a source."""
        if spec not in self._digests:
            source = open_source(**spec.model_dump())
            self._digests[spec] = {e.id: hashlib.sha256(source.read(e)).hexdigest() for e in source.entries}
        return self._digests[spec]

    def _check_student(self, cell: Cell, manifest: Manifest) -> None:
        """Refuse a student that was trained otherwise, or on patches that are not there any more."""
        facts = yaml.safe_load((self.student_dir(cell) / FACTS).read_text(encoding="utf-8"))
        recipe = self.plan.training_of(cell).model_dump(mode="json")
        found = {key: facts["recipe"].get(key) for key in recipe}
        differing = [f"{key} {found[key]} instead of {value}" for key, value in recipe.items() if found[key] != value]
        if facts["data"].get("lr_digest") != manifest.lr_digest:
            differing.append("on other patches")
        if differing:
            raise RunError(
                f"{self.student_dir(cell)} was trained otherwise: {', '.join(differing)}.",
                "Remove it to train again, or choose another --out.",
            )

    def _measured(self, student: Path) -> dict[str, Mapping[str, Any]]:
        """Test set to figures by protocol, of the student's present weights."""
        path = student / RESULTS
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("weights_sha256") != weights_sha256(student, scale=None):
            return {}
        return {result["testset"]: result["protocols"] for result in kept["results"]}

    def _note(self, cell: Cell, findings: Findings) -> None:
        """Add what is known of a finished single run."""
        manifest = Manifest.load(self.run_dir(cell) / "repo")
        made = manifest.condensation
        findings.sets[cell.run_name] = {
            "set": cell.set,
            "ratio": cell.ratio,
            "patches": manifest.patches,
            "seconds": made.get("worker_seconds"),
            "device": made.get("device", "not known"),
        }
        teacher = manifest.hr_versions[cell.hr]["teacher"]
        digest = f", weights {teacher['weights_sha256'][:12]}" if teacher["weights_sha256"] else ""
        findings.teachers[cell.hr] = teacher["name"] + digest
        if cell.learning_rate is not None:
            return
        measured = self._measured(self.student_dir(cell))
        for testset in findings.testsets:
            figures = (
                measured[testset][str(protocol(metric, self.plan.scale))][metric.partition("_")[0]]
                for metric in METRICS
            )
            findings.results.append(Result(cell.set, cell.hr, cell.student, cell.seed, cell.ratio, testset, *figures))


def draw_plots(ladder: Ladder, findings: Findings) -> list[str] | str:
    """Draw the pictures into `plots/`; returns the files, or a sentence where matplotlib is not installed."""
    try:
        return [str(path) for path in draw(findings, ladder.curves(), ladder.folder / "plots")]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return "left out: matplotlib is not installed; pip install 'idc-hub[report]', and run the same command again"


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f" (about {seconds / 60:.0f} min left)"
