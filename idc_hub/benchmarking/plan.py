"""A benchmark plan: which sets, HR versions, students and seeds are compared. One YAML file, checked at the start.

`Plan.cells` lists the single runs that a plan stands for, in the order in which they are worth having.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from idc_hub.errors import IDCError
from idc_hub.networks import NETWORKS
from idc_hub.recipe import Patches, Recipe, Section
from idc_hub.recipe_reader import Count, Draft, Name, Real, Text, Whole, as_list, explain, sections_of
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

    method: Literal["whole", "random", "herding", "herding-deepcore", "k-center", "dcsr", "cf-greedy"] | None = None
    """Which real patches are chosen (`idc select`); instead of a recipe."""
    recipe: Text | None = None
    """A recipe to condense by: a bundled name or a YAML file; instead of a method."""
    set: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = ()
    """`section.key=value` of the recipe, after the plan's own."""
    ratios: Ratios | None = None
    """Ratios of this set; null: the plan's. The set `whole` has none."""
    hr: Names | None = None
    """HR versions of this set, by the plan's names; null: all that it can have."""
    seeds: Count | None = None
    """How many different sets are made, with the seeds 0, 1 ...; students of further seeds use them again.
    null: one for each of the plan's seeds; of the whole there is one."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.method is None) == (self.recipe is None):
            raise ValueError("should name either a method or a recipe")
        if self.method == "whole" and (self.ratios or self.seeds):
            raise ValueError("should have neither ratios nor seeds: the whole is all patches")
        return self


class Plan(Section):
    """Everything that defines a benchmark."""

    name: Name
    """What the benchmark is called."""
    scale: Literal[2, 3, 4] = 4
    """How many times larger HR is than LR."""
    source: Text
    """The photographs, as in a recipe. A relative path starts at the current directory."""
    set: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = ()
    """`section.key=value` of the recipes of all sets, such as patches.size=48."""
    ratios: Ratios = (0.1,)
    """Patches of a set per patch of the whole."""
    hr: Annotated[dict[Name, Text], Field(min_length=1)]
    """HR versions: a name, and the teacher; `real: real` are the photographs' own pixels."""
    sets: dict[Name, SetPlan]
    """The sets to compare: a name, and how it is made."""
    students: Annotated[dict[Text, dict[str, Any]], BeforeValidator(_names), Field(min_length=1)]
    """Networks to train: a name, and what differs from `training`; or a list of names."""
    training: TrainingRecipe = TrainingRecipe()
    """How students are trained; the seed is the student's."""
    learning_rates: Annotated[tuple[Real, ...], BeforeValidator(as_list)] = ()
    """Learning rates to draw training curves at: each set's first ratio with the first HR version and seed."""
    seeds: Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], BeforeValidator(as_list), AfterValidator(_distinct)] = (
        0,
        1,
        2,
    )
    """Seeds of the students, and of the sets."""
    testsets: Names
    """Folders of HR images."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a plan.

        Raises:
            RecipeError: With every problem of the file, one a line.
        """
        draft = Draft(path.name, sections_of(cls))
        draft.read(path)
        sets = draft.values.get("sets")
        if isinstance(sets, dict):
            draft.values["sets"] = _valid_sets(sets, draft)
        plan = draft.validated(cls)
        for key, sentence in plan._contradictions():
            draft.complain(key, sentence)
        draft.raise_problems()
        return plan

    def cells(self) -> list["Cell"]:
        """All single runs: seed by seed, so that all sets can be compared as early as possible; curves last."""
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
        """The ratios that a set is made at."""
        return (1.0,) if entry.method == "whole" else entry.ratios or self.ratios

    def hr_of(self, entry: SetPlan) -> tuple[str, ...]:
        """Names of the HR versions that a set gets; real ones first, since they are made with the set."""
        names = entry.hr or tuple(name for name in self.hr if name != REAL or not entry.recipe)
        return tuple(sorted(names, key=lambda name: name != REAL))

    def recipe_of(self, cell: "Cell") -> Recipe:
        """The recipe of a set that is condensed.

        Its windows, and how patches are shared out, are those of a selection whatever the recipe says, so that a ratio
        means as many patches of the same photographs for every set; the overrides have the last word.

        Raises:
            RecipeError: It cannot be loaded with these overrides.
            HubError: It is on the Hub, which does not answer.
        """
        entry = self.sets[cell.set]
        assert entry.recipe is not None
        shared = Patches().model_dump(exclude={"ratio", "complexity"})
        windows = [f"patches.{key}={value}" for key, value in shared.items()]
        place = [f"scale={self.scale}", f"seed={cell.set_seed}", f"source.path={self.source}"]
        teacher = [f"teacher.network={self.hr[cell.hr]}", f"teacher.hr_version={cell.hr}"]
        return Recipe.load(
            entry.recipe, [*windows, *place, *self.set, *entry.set, f"patches.ratio={cell.ratio}", *teacher]
        )

    def training_of(self, cell: "Cell") -> TrainingRecipe:
        """How a cell's student is trained."""
        rate = {} if cell.learning_rate is None else {"learning_rate": cell.learning_rate}
        values = self.training.model_dump() | self.students[cell.student] | rate | {"seed": cell.seed}
        return TrainingRecipe.model_validate(values)

    def _set_seed(self, entry: SetPlan, seed: int) -> int:
        if entry.method == "whole":
            return 0
        return seed % entry.seeds if entry.seeds else seed

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """What is right on its own and cannot go together: the key, and a sentence."""
        for name, teacher in self.hr.items():
            if (name == REAL) != (teacher == REAL):
                yield (
                    f"hr.{name}",
                    f"hr.{name} is {teacher}; the photographs' own pixels, and only they, are `real: real`.",
                )
        for name, entry in self.sets.items():
            yield from ((f"sets.{name}", f"sets.{name}: {sentence}") for sentence in self._problems_of(name, entry))
        for name, overrides in self.students.items():
            yield from ((f"students.{name}", sentence) for sentence in self._problems_of_student(name, overrides))
        if "seed" in self.training.model_fields_set:
            yield "training", "training.seed is not used: the students' seeds are `seeds`."
        names = [Path(testset).name for testset in self.testsets]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield "testsets", f"testsets has two folders called {name}; rename one."

    def _problems_of(self, name: str, entry: SetPlan) -> Iterator[str]:
        unknown = [hr for hr in entry.hr or () if hr not in self.hr]
        if unknown:
            yield f"there is no HR version {', '.join(unknown)}; the plan's `hr` has {', '.join(self.hr)}."
            return
        if entry.recipe and REAL in (entry.hr or ()):
            yield "condensed patches have no real HR; give it a teacher's."
        elif not self.hr_of(entry):
            yield "the plan's `hr` names no teacher, and condensed patches have no real HR."
        elif entry.recipe:
            try:
                seed = self._set_seed(entry, self.seeds[0])
                self.recipe_of(Cell(name, self.hr_of(entry)[0], "", 0, self.ratios_of(entry)[0], seed))
            except IDCError as error:
                yield str(error)

    def _problems_of_student(self, name: str, overrides: Mapping[str, Any]) -> Iterator[str]:
        if name not in NETWORKS:
            yield f"students: there is no network {name}. The networks: {', '.join(NETWORKS)}."
        if "seed" in overrides:
            yield f"students.{name}.seed is not used: the students' seeds are `seeds`."
        try:
            TrainingRecipe.model_validate({**self.training.model_dump(), **overrides})
        except ValidationError as error:
            for _, sentence in explain(error, TrainingRecipe):
                yield f"students.{name}: {sentence}"


@dataclass(frozen=True)
class Cell:
    """One single run: one student on one set with one HR version.

    Attributes:
        set: Name of the set.
        hr: Name of the HR version.
        student: Name of the network.
        seed: The student's seed.
        ratio: Patches of the set per patch of the whole.
        set_seed: Seed that the set is made with.
        learning_rate: Only for training curves; None: that of the training recipe.
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
        """The student's folder, below that of all students."""
        rate = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        return Path(self.run_name) / self.hr / f"{self.student}{rate}-s{self.seed}"

    def __str__(self) -> str:
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate:g}"
        return f"{self.run_name} | {self.hr} | {self.student}, seed {self.seed}{rate}"


def _valid_sets(sets: Mapping[str, Any], draft: Draft) -> dict[str, SetPlan]:
    """The sets that are right on their own; of the others the draft gets every problem."""
    valid = {}
    if not sets:
        draft.complain("sets", "sets is empty; write at least `random: {method: random}`.")
    for name, values in sets.items():
        if not isinstance(values, Mapping):
            draft.complain(f"sets.{name}", f"sets.{name} should say how it is made, such as {{method: random}}.")
            continue
        try:
            valid[name] = SetPlan.model_validate(values)
        except ValidationError as error:
            for sentence in _sentences(error):
                draft.complain(f"sets.{name}", f"sets.{name}: {sentence}")
    return valid


def _sentences(error: ValidationError) -> Iterable[str]:
    yield from (sentence for _, sentence in explain(error, SetPlan))
    yield from (f"it {entry['ctx']['error']}." for entry in error.errors() if not entry["loc"])
