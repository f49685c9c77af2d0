"""A benchmark plan: the sets, HR versions, students and seeds to compare, in one YAML file.

`Plan.load` checks the whole file. `Plan.cells` lists its single runs in the order in which they are carried out.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from idc_hub.baselines import SelectionMethod
from idc_hub.errors import IDCError
from idc_hub.networks import create
from idc_hub.recipe import Patches, Recipe, Section
from idc_hub.recipe_reader import Count, Draft, Name, Real, Text, Whole, as_list, explain, sections_of
from idc_hub.training.pairing import set_name
from idc_hub.training.recipe import TrainingRecipe

REAL = "real"


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("should be a list of different values")
    return values


def _names(value: object) -> object:
    return {name: {} for name in value} if isinstance(value, list) else value


Ratio = Annotated[Real, Field(gt=0, le=1)]
Ratios = Annotated[tuple[Ratio, ...], BeforeValidator(as_list), AfterValidator(_distinct)]
Names = Annotated[tuple[Text, ...], BeforeValidator(as_list), AfterValidator(_distinct)]


class SetPlan(Section):
    """How one set of the comparison is made."""

    method: SelectionMethod | None = None
    """A baseline (`idc select`); either this or `recipe`."""
    recipe: Text | None = None
    """A recipe to condense with, a bundled name or a YAML file; either this or `method`."""
    set: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = ()
    """Overrides of the recipe, `section.key=value`, applied after the plan's own."""
    ratios: Ratios | None = None
    """Ratios of this set; null: the plan's. Not for the method `whole`."""
    hr: Names | None = None
    """Names of the HR versions of this set; null: all of the plan's that it can have."""
    seeds: Count | None = None
    """Number of sets to make, with the seeds 0, 1, ...; students with higher seeds reuse them.
    null: one for each of the plan's seeds. Not for the method `whole`."""

    @property
    def is_synthetic(self) -> bool:
        """Whether no photograph shows its patches, so that they have no real HR."""
        return self.recipe is not None or self.method == "leaves"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.method is None) == (self.recipe is None):
            raise ValueError("should name either a method or a recipe")
        if self.method == "whole" and (self.ratios or self.seeds):
            raise ValueError("should have neither ratios nor seeds: the whole is all patches")
        return self


class StudentPlan(Section):
    """A network to train, and how, where it differs from the others."""

    network: Text | None = None
    """Name of the network; null: the student's own name."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of its constructor that replace those of the name, such as {channels: 16}."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Values that replace those of the plan's `training`."""


class Plan(Section):
    """Everything that defines a benchmark."""

    name: Name
    """Name of the benchmark."""
    scale: Literal[2, 3, 4] = 4
    """Super-resolution scale."""
    source: Text
    """The photographs, as `source.path` of a recipe. A relative path starts at the current directory."""
    set: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = ()
    """Overrides of the recipes of all sets, such as patches.size=48."""
    ratios: Ratios = (0.1,)
    """Ratios of the sets: patches of a set divided by all real patches."""
    hr: Annotated[dict[Name, Text], Field(min_length=1)]
    """HR versions: name and teacher. `real: real` takes the HR pixels of the photographs."""
    sets: dict[Name, SetPlan]
    """The sets to compare, by name."""
    students: Annotated[dict[Name, StudentPlan], BeforeValidator(_names), Field(min_length=1)]
    """Networks to train: a list of names of networks, or students by name."""
    training: TrainingRecipe = TrainingRecipe()
    """The training recipe of the students, without `seed`."""
    learning_rates: Annotated[tuple[Real, ...], BeforeValidator(as_list)] = ()
    """Extra trainings for curves: one per learning rate and set, at the first ratio, HR version and seed."""
    seeds: Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], BeforeValidator(as_list), AfterValidator(_distinct)] = (
        0,
        1,
        2,
    )
    """Seeds of the students and of the sets."""
    testsets: Names
    """Folders of HR images to evaluate on."""
    gate: bool = False
    """Whether to measure the figures of the quality gate for selections too, which takes about as long as making one.
    Condensed sets always have them."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a plan.

        Raises:
            RecipeError: The plan is invalid; the message names every problem, one per line.
        """
        draft = Draft(path.name, sections_of(cls))
        draft.read(path)
        for key, kind in (("sets", SetPlan), ("students", StudentPlan)):
            entries = draft.values.get(key)
            if isinstance(entries, dict):
                draft.values[key] = _valid_entries(draft, key, entries, kind)
        plan = draft.validated(cls)
        for key, sentence in plan._contradictions():
            draft.complain(key, sentence)
        draft.raise_problems()
        return plan

    def cells(self) -> list["Cell"]:
        """All single runs, seed by seed, so that all sets can be compared early; training curves last."""
        cells = [
            Cell(name, hr, student, seed, ratio, self._set_seed(entry, seed))
            for seed in self.seeds
            for name, entry in self.sets.items()
            for ratio in self.ratios_of(entry)
            for hr in self.hr_of(entry)
            for student in self.students
        ]
        first = [
            cell
            for cell in cells
            if (cell.seed, cell.hr) == (self.seeds[0], next(iter(self.hr)))
            and cell.ratio == self.ratios_of(self.sets[cell.set])[0]
        ]
        return cells + [replace(cell, learning_rate=rate) for rate in self.learning_rates for cell in first]

    def ratios_of(self, entry: SetPlan) -> tuple[float, ...]:
        """The ratios of a set."""
        return (1.0,) if entry.method == "whole" else entry.ratios or self.ratios

    def hr_of(self, entry: SetPlan) -> tuple[str, ...]:
        """Names of the HR versions of a set; `real` first, because `select` makes it with the set."""
        names = entry.hr or tuple(name for name in self.hr if name != REAL or not entry.is_synthetic)
        return tuple(sorted(names, key=lambda name: name != REAL))

    def has_gate(self, cell: "Cell") -> bool:
        """Whether the figures of the quality gate are measured for a cell's set."""
        return self.gate or self.sets[cell.set].recipe is not None

    def recipe_of(self, cell: "Cell") -> Recipe:
        """The recipe of a set to condense.

        Its `patches` section, except `complexity`, gets the default values that a selection has, so that equal ratios
        mean equally many patches of the same size in every set. The plan's overrides still win.

        Raises:
            RecipeError: It cannot be loaded with these overrides.
            HubError: It is on the Hub and cannot be loaded.
        """
        entry = self.sets[cell.set]
        assert entry.recipe is not None
        shared = Patches().model_dump(mode="json", exclude={"ratio", "complexity"})
        patches = [f"patches.{key}={json.dumps(value)}" for key, value in shared.items()]
        source = [f"scale={self.scale}", f"seed={cell.set_seed}", f"source.path={self.source}"]
        teacher = [f"teacher.network={self.hr[cell.hr]}", f"teacher.hr_version={cell.hr}"]
        return Recipe.load(
            entry.recipe, [*patches, *source, *self.set, *entry.set, f"patches.ratio={cell.ratio}", *teacher]
        )

    def training_of(self, cell: "Cell") -> TrainingRecipe:
        """The training recipe of a cell's student."""
        rate = {} if cell.learning_rate is None else {"learning_rate": cell.learning_rate}
        values = self.training.model_dump() | self.students[cell.student].training | rate | {"seed": cell.seed}
        return TrainingRecipe.model_validate(values)

    def network_of(self, cell: "Cell") -> str:
        """Name of the network of a cell's student."""
        return self.students[cell.student].network or cell.student

    def _set_seed(self, entry: SetPlan, seed: int) -> int:
        if entry.method == "whole":
            return 0
        return seed % entry.seeds if entry.seeds else seed

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Values that are valid on their own but contradict each other: key and sentence."""
        for name, teacher in self.hr.items():
            if (name == REAL) != (teacher == REAL):
                yield (
                    f"hr.{name}",
                    f"hr.{name} is {teacher}; the name real is for the photographs' own pixels: write `real: real`.",
                )
        for name, entry in self.sets.items():
            yield from ((f"sets.{name}", f"sets.{name}: {sentence}") for sentence in self._problems_of(name, entry))
        for name, student in self.students.items():
            sentences = self._problems_of_student(student, student.network or name)
            yield from ((f"students.{name}", f"students.{name}: {sentence}") for sentence in sentences)
        if "seed" in self.training.model_fields_set:
            yield "training", "training.seed is not used: set `seeds` instead."
        names = [set_name(testset) for testset in self.testsets]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield "testsets", f"testsets has two folders called {name}; rename one."

    def _problems_of(self, name: str, entry: SetPlan) -> Iterator[str]:
        unknown = [hr for hr in entry.hr or () if hr not in self.hr]
        if unknown:
            yield f"there is no HR version {', '.join(unknown)}; the plan's `hr` has {', '.join(self.hr)}."
            return
        if entry.is_synthetic and REAL in (entry.hr or ()):
            yield "synthetic patches have no real HR; name an HR version by a teacher."
        elif not self.hr_of(entry):
            yield "synthetic patches have no real HR, and the plan's `hr` names no teacher."
        elif entry.recipe:
            try:
                seed = self._set_seed(entry, self.seeds[0])
                self.recipe_of(Cell(name, self.hr_of(entry)[0], "", 0, self.ratios_of(entry)[0], seed))
            except IDCError as error:
                yield str(error)

    def _problems_of_student(self, student: StudentPlan, network: str) -> Iterator[str]:
        try:
            with torch.device("meta"):  # costs no memory
                create(network, scale=self.scale, arguments=student.arguments)
        except IDCError as error:
            yield str(error)
        if "seed" in student.training:
            yield "training.seed is not used: set `seeds` instead."
        try:
            TrainingRecipe.model_validate({**self.training.model_dump(), **student.training})
        except ValidationError as error:
            yield from (sentence for _, sentence in explain(error, TrainingRecipe))


@dataclass(frozen=True)
class Cell:
    """One single run: one student on one set with one HR version.

    Attributes:
        set: Name of the set.
        hr: Name of the HR version.
        student: Name of the network.
        seed: The student's seed.
        ratio: Patches of the set divided by all real patches.
        set_seed: Seed of the set.
        learning_rate: Learning rate of a training curve; None: that of the training recipe.
    """

    set: str
    hr: str
    student: str
    seed: int
    ratio: float
    set_seed: int
    learning_rate: float | None = None

    @property
    def run_name(self) -> str:
        """Folder name of the set's Run."""
        return f"{self.set}-{self.ratio:g}-s{self.set_seed}"

    @property
    def student_path(self) -> Path:
        """The student's folder, relative to `students/`."""
        rate = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        return Path(self.run_name) / self.hr / f"{self.student}{rate}-s{self.seed}"

    def __str__(self) -> str:
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate:g}"
        return f"{self.run_name} | {self.hr} | {self.student}, seed {self.seed}{rate}"


def _valid_entries(
    draft: Draft, key: str, entries: Mapping[str, Any], kind: type[SetPlan] | type[StudentPlan]
) -> dict[str, SetPlan | StudentPlan]:
    """The entries of a mapping that are valid on their own; the draft gets every problem of the others."""
    valid: dict[str, SetPlan | StudentPlan] = {}
    if not entries:
        example = "random: {method: random}" if kind is SetPlan else "edsr-tiny: {}"
        draft.complain(key, f"{key} is empty; write at least `{example}`.")
    for name, values in entries.items():
        if not isinstance(values, Mapping):
            example = "method: random" if kind is SetPlan else "arguments: {channels: 16}"
            draft.complain(f"{key}.{name}", f"{key}.{name} should be a mapping, such as {{{example}}}.")
            continue
        try:
            valid[name] = kind.model_validate(values)
        except ValidationError as error:
            for sentence in _sentences(error, kind):
                draft.complain(f"{key}.{name}", f"{key}.{name}: {sentence}")
    return valid


def _sentences(error: ValidationError, kind: type[Section]) -> Iterable[str]:
    yield from (sentence for _, sentence in explain(error, kind))
    yield from (f"it {entry['ctx']['error']}." for entry in error.errors() if not entry["loc"])
