"""A Recipe is everything that defines a condensation: one YAML file, checked before anything starts.

Section and appendix numbers in the descriptions of the keys refer to the paper (arXiv 2505.21099).
There are two presets: the defaults below are `preset: default`, and `preset: paper` replaces those that `PAPER`
lists. A key that is written out wins over either.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from idc_hub.errors import RecipeError
from idc_hub.recipe_reader import (
    Count,
    Draft,
    Fraction,
    Name,
    Odd,
    Real,
    Sha256,
    Switch,
    Text,
    Weight,
    Whole,
    explain,
    find_recipe,
    label_of,
    listed,
    sections_of,
    shown,
    whole,
)


def _layer(value: object) -> int | str:
    if isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.\w+)*", value):
        return value
    try:
        block = whole(value)
    except ValueError:
        block = 0
    if block < 1:
        raise ValueError(
            "should be pixels, first, last, body, the path of a module or the number of a block, from 1 on"
        )
    return block


def _layers(value: object) -> int | str | tuple[int | str, ...]:
    if not isinstance(value, list | tuple):
        return _layer(value)
    layers = tuple(_layer(entry) for entry in value)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError("should be a layer or a list of different ones")
    return layers


def _version_name(value: str) -> str:
    if value in ("data", "default"):
        raise ValueError("should be another name: the Hub keeps this one for itself")
    return value


class Section(BaseModel):
    """What all parts of a recipe share: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Source(Section):
    """The photographs. Not part of `lr_recipe_hash`: a Run holds each photograph to its own sha256."""

    path: Text
    """Where the photographs are: a folder, a zip, a Hub dataset id, or package:NAME/SUBDIR for a folder of an
    installed Python package. A relative path starts at the current directory."""
    include: Annotated[tuple[Text, ...], BeforeValidator(listed)] = ()
    """File name patterns (globs) of the photographs to take; empty: all of them."""
    split: Text = "train"
    """Split of a Hub dataset."""
    column: Text | None = None
    """Image column of a Hub dataset; null: its only one."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub dataset; null: its main branch."""
    limit: Count | None = None
    """Take only the first so many photographs, in the order of their ids; null: all."""


class Patches(Section):
    """How photographs become LR patches, and how many synthetic ones stand for them (sections 3.1 and 4)."""

    size: Count = 64
    """Side of an LR patch, in LR pixels; the HR patch is `scale` times as large."""
    stride: Count = 32
    """Distance between neighboring windows, in LR pixels."""
    tail: Switch = True
    """Add one window flush with the far edge where the stride leaves pixels over."""
    ratio: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """Condensation ratio r: synthetic patches per real patch (section 3.1)."""
    min_per_image: Annotated[Whole, Field(ge=0)] = 0
    """Synthetic patches that every photograph gets at least."""
    complexity: Literal["all", "above-mean"] = "above-mean"
    """Which real patches the synthetic ones stand for: all of a photograph (the paper), or those whose edges, by their
    mean Sobel response, are at least as strong as the mean of its patches. The ratio counts all in either case."""
    rounding: Literal["cumulative", "floor", "round", "ceil"] = "cumulative"
    """How ratio x windows becomes whole: cumulative keeps the total over all photographs exact, the others
    round for each photograph alone."""


class Features(Section):
    """The network f whose feature maps are matched (section 3.1, appendix C.1)."""

    network: Text = "edsr-small"
    """The feature extractor: a bundled name, a folder, a Hub id, a checkpoint file or package.module:build."""
    weights_sha256: Sha256 | None = None
    """SHA-256 of the extractor's weights file; null: filled in when a Run begins."""
    layer: Annotated[int | str | tuple[int | str, ...], BeforeValidator(_layers)] = "first"
    """Whose output is the feature map: a block counted from 1, the first, the last (appendix C.1), or the
    body, which ends with the closing convolution and the skip. Early blocks see color best. Of any network: the
    path of an inner module, such as layers.3 (as PyTorch's `named_modules` counts). `pixels` are the LR pixels
    themselves. The maps of a list of layers are stacked: [pixels, first]."""
    statistics: Literal["real", "own", "joint", "none"] = "real"
    """Whose mean and deviation normalize the channels of the feature maps (batch normalization, section 3.2):
    those of the real patches, each side's own, those of both together, or nobody's."""
    real_patches: Count | None = None
    """Use at most so many real patches of a photograph, drawn once; null: all (the paper)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the network, and what real feature maps are kept in; bf16 is automatic mixed precision."""


class Transform(Section):
    """What turns feature maps into local features: random local Fourier features, or an alternative of table 7."""

    kind: Literal["rlff", "identity", "dct", "dwt"] = "rlff"
    """Random rows of the Fourier matrix of local neighborhoods (section 3.2), the feature maps' own channels, random
    rows of the cosine matrix, or Haar wavelets at full resolution (table 7: x1, x2, x3). Identity and dwt draw no
    rows: there kernel_size, channels, rows and replacement change nothing."""
    unfold: Literal["pixels", "tiles", "patches"] = "pixels"
    """What one sample of the distributions is: the local feature of a pixel (section 3.2, unfolding), those of a
    tile together (table 2: v2, v6), or those of a whole patch (v1), where there can be neither groups nor pairs."""
    kernel_size: Odd = 7
    """Side k of the local neighborhood, in feature-map pixels (appendix C.1: 7)."""
    channels: Count = 256
    """Rows drawn, C_out (appendix C.1: 256)."""
    rows: Literal["literal", "unique"] = "unique"
    """Draw from all 2C' rows of equation 4, where nearly every row has a twin, or from an orthogonal half; of rlff."""
    replacement: Switch = False
    """Draw rows with replacement."""
    padding: Literal["reflect", "zero", "valid"] = "reflect"
    """What stands beyond the border of the feature map; valid leaves the border out."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of local features and of their products with frequencies; bf16 is several times as fast where
    the processor has it. Sums, cosines, sines and means are fp32 in either case."""

    @property
    def neighborhood(self) -> int:
        """Side of what one local feature sees, in feature-map pixels; Haar's 2 x 2 stands in 3 x 3."""
        return {"identity": 1, "dwt": 3}.get(self.kind, self.kernel_size)

    def local_channels(self, channels: int) -> int:
        """Channels of the local features of feature maps with `channels`."""
        return {"identity": channels, "dwt": 4 * channels}.get(self.kind, self.channels)


class Loss(Section):
    """The three distances that are minimized (section 3.3)."""

    distance: Literal["ncfd", "mmd", "mse"] = "ncfd"
    """What the instance and the group distance compare (section 3): characteristic functions by amplitude and phase,
    the same functions by their squared difference (maximum mean discrepancy), or mean local features."""
    alpha: Weight = 0.2
    """Share of the amplitude in the distance of characteristic functions (equation 3, appendix C.1)."""
    beta: Weight = 0.8
    """Share of the phase (equation 3, appendix C.1)."""
    row_norm: Literal["row", "global", "none"] = "global"
    """Divide local features by their own L2 norm, by one norm of the real side, or not at all."""
    frequencies: Count = 1024
    """Frequencies t at which characteristic functions are compared (equation 3)."""
    frequency_scale: Annotated[Real, Field(gt=0)] = 1.0
    """Standard deviation of the frequencies."""
    draws: Literal["bank", "fresh"] = "bank"
    """Where Fourier rows and frequencies come from: a fixed bank, or fresh at every step."""
    bank_size: Count = 16
    """Draws in the bank; they are used in turn, in an order that is shuffled at every pass."""
    shared_frequencies: Switch = True
    """Use the same frequencies for the instance and the group distance."""
    instance_weight: Weight = 300.0
    """w_ins, weight of the distance over all of the photograph (equation 6, appendix C.1: 300)."""
    group_weight: Weight = 300.0
    """w_group, weight of the distance group by group (equation 7, appendix C.1: 300)."""
    group_reduction: Literal["sum", "mean"] = "mean"
    """Sum the groups' distances (equation 7), or average them: together they then weigh as much as the instance."""
    pair_weight: Weight = 1000.0
    """w_pair, weight of the L1 distance of pairs (equation 8, appendix C.1: 300k)."""
    pair_reduction: Literal["mean", "literal", "group-mean", "group-mean-twice"] = "mean"
    """How equation 8 is read: one mean over all pairs and elements; elements summed, as printed; elements
    averaged; elements averaged and divided by the size of the group once more."""
    deformation: Literal["none", "translation"] = "none"
    """Let each real partner move a little before the pair is compared (appendix B)."""
    deformation_weight: Weight = 1.0
    """Weight of the squared length of that movement, in feature-map pixels (appendix B)."""


class Assignment(Section):
    """Which tile belongs to which group and real partner, and since when (section 3.3, appendix B)."""

    groups: Count = 16
    """K-means groups of real tiles, M (appendix C.1: 16)."""
    tile: Count = 4
    """Side p of a local feature patch, in feature-map pixels (appendix C.1: 4)."""
    space: Literal["features", "transform"] = "features"
    """Where distances to groups are measured: feature maps (appendix B) or local Fourier features."""
    quotas: Literal["proportional", "final"] = "proportional"
    """Hold group sizes proportional to the real ones at every event, or only at the last."""
    pairing: Literal["greedy", "hungarian"] = "greedy"
    """Nearest partner first, or the assignment with the least total distance."""
    unique_content: Switch = False
    """Count a real tile that several overlapping patches show as one partner."""
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.2
    """When the first event happens, as a fraction of the steps (appendix C.1: 4k of 20k)."""
    interval: Fraction = 0.02
    """Time between events, as a fraction of the steps (appendix C.1: 400 of 20k)."""
    events: Count = 25
    """Times at which another share of the tiles is grouped (appendix C.1: 25)."""

    def event_steps(self, steps: int) -> tuple[int, ...]:
        """Steps at which tiles are grouped and paired.

        Args:
            steps: Steps of the whole optimization.

        Returns:
            `events + 1` steps, counted from 0. Event k pairs what event k-1 grouped; the last one only pairs.
        """
        times = (self.warmup + self.interval * event for event in range(self.events + 1))
        return tuple(math.floor(time * steps + 0.5) for time in times)


class Optimizer(Section):
    """Adam on the pixels of the synthetic patches (appendix C.1)."""

    steps: Count = 200
    """Optimization steps a photograph (appendix C.1: 20k). Few and small ones keep chosen patches natural."""
    learning_rate: Annotated[Real, Field(gt=0)] = 1e-3
    """Adam's step size, in pixel values of [0, 1] (appendix C.1: 1e-2)."""
    milestones: Annotated[tuple[Fraction, ...], BeforeValidator(listed)] = (0.75, 0.85, 0.95)
    """When gamma is applied, as fractions of the steps (appendix C.1: 15k, 17k and 19k of 20k)."""
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """Factor at each milestone (appendix C.1: 0.1)."""
    clamp: Literal["step", "end"] = "step"
    """Hold pixels to [0, 1] after every step or only at the end."""
    initial: Literal["noise", "real", "cf-greedy"] = "cf-greedy"
    """Synthetic patches at the start: noise, real patches drawn at random, or the real patches whose
    characteristic function is nearest to that of the whole photograph."""

    def milestone_steps(self) -> tuple[int, ...]:
        """Steps, counted from 0, at which the learning rate is multiplied by gamma."""
        return tuple(math.floor(milestone * self.steps + 0.5) for milestone in self.milestones)


class TeacherChoice(Section):
    """What makes HR patches from the finished LR patches. Not part of `lr_recipe_hash`: HR can always be remade."""

    network: Text = "edsr-small"
    """The upsampling network (section 3.1, second stage): a bundled name, `bicubic`, a folder, a Hub id, a
    checkpoint file or package.module:build; of a selection also `real`, the photographs' own HR."""
    hr_version: Annotated[Name, AfterValidator(_version_name)] | None = None
    """Name of the HR version, a config on the Hub; null: the teacher's name."""


class Workers(Section):
    """How the work is done. Not part of `lr_recipe_hash`."""

    threads: Count = 1
    """CPU threads of a worker."""
    checkpoint_every: Count = 100
    """Steps between saved states of an unfinished photograph."""
    log_every: Count = 20
    """Steps between lines of a photograph's metrics."""


PAPER: dict[str, dict[str, Any]] = {
    "patches": {"complexity": "all"},
    "features": {"layer": "last"},
    "transform": {"rows": "literal", "padding": "zero"},
    "loss": {"row_norm": "row", "draws": "fresh", "group_reduction": "sum", "pair_weight": 300_000.0},
    "optimizer": {"steps": 20_000, "learning_rate": 1e-2, "initial": "noise"},
}
"""What `preset: paper` fills in where a key is not given; the other values are the same in both presets."""


LATER = {
    "method": "idc",
    "patches.complexity": "all",
    "features.precision": "fp32",
    "transform.precision": "fp32",
    "transform.kind": "rlff",
    "transform.unfold": "pixels",
    "loss.distance": "ncfd",
}
"""Keys that came after the first sets were made, and what those were made with: there the hash stays what it was."""


class Recipe(Section):
    """Everything that defines a condensation."""

    name: Name
    """Name of the Run and of its directory: lower case letters, digits and hyphens."""
    preset: Literal["default", "paper"] = "default"
    """Values for the keys that are not given: what measures best, or what the paper says."""
    method: Literal["idc", "whole", "random", "herding", "herding-deepcore", "k-center", "dcsr", "cf-greedy"] = "idc"
    """How LR patches are made: optimized by instance data condensation, or chosen among the real ones by a baseline
    (appendix C.2; `idc select`). whole takes all, cf-greedy chooses in each photograph as condensation does, the
    others choose from the pool of all photographs and may leave some without patches."""
    scale: Annotated[Literal[2, 3, 4], BeforeValidator(whole)] = 4
    """How many times larger HR is than LR."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw."""
    source: Source
    patches: Patches = Patches()
    features: Features = Features()
    transform: Transform = Transform()
    loss: Loss = Loss()
    assignment: Assignment = Assignment()
    optimizer: Optimizer = Optimizer()
    teacher: TeacherChoice = TeacherChoice()
    workers: Workers = Workers()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        return _with_preset(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if conflicts := list(_conflicts(self.patches, self.transform, self.loss, self.assignment, self.optimizer)):
            sentences = " ".join(sentence for _, sentence in conflicts)
            raise PydanticCustomError("conflicts", "{sentences}", {"sentences": sentences})
        return self

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read and check a recipe.

        Args:
            name: What `find_recipe` accepts: a bundled name, a YAML file, a folder or a Hub dataset id. A file may
                begin with `base: NAME`, a bundled recipe or a YAML file beside it, whose values it starts from.
            overrides: `section.key=value` (or `seed=3`), values as in YAML; they win over the file.

        Raises:
            RecipeError: With every problem of the file and the overrides, one a line.
            HubError: If the Hub does not answer or refuses.
        """
        path = find_recipe(name)
        draft = Draft(label_of(path), _SECTIONS)
        draft.read(path)
        draft.start_from_base(path)
        for override in overrides:
            draft.override(override)
        return cls._checked(draft)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Self:
        """Check a recipe that stands in a dict of sections; overrides and errors as those of `load`."""
        draft = Draft("recipe", _SECTIONS)
        draft.values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
        for override in overrides:
            draft.override(override)
        return cls._checked(draft)

    @classmethod
    def _checked(cls, draft: Draft) -> Self:
        try:
            recipe = cls.model_validate(draft.values)
        except ValidationError as error:
            wrong = set()
            for key, sentence in explain(error, cls):
                draft.complain(key, sentence)
                wrong.add(key.partition("[")[0])
            for key, sentence in _conflicts_of_the_rest(draft.values, wrong):
                draft.complain(key, sentence)
            draft.raise_problems()
            raise
        draft.raise_problems()
        return recipe

    def to_yaml(self) -> str:
        """The whole recipe, every key written out, in the order of this file."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)

    def lr_keys(self) -> dict[str, Any]:
        """What determines the LR patches, as `section.key` to plain values.

        The name of the extractor is left out once the digest of its weights is known: the digest says more. So is
        a key of `LATER` at the value that stands there.
        """
        values = self.model_dump(mode="json")
        keys: dict[str, Any] = {"method": self.method, "scale": self.scale, "seed": self.seed}
        for section in ("patches", "features", "transform", "loss", "assignment", "optimizer"):
            keys |= {f"{section}.{key}": value for key, value in values[section].items()}
        if self.features.weights_sha256 is not None:
            del keys["features.network"]
        return {key: value for key, value in keys.items() if key not in LATER or value != LATER[key]}

    @property
    def lr_recipe_hash(self) -> str:
        """SHA-256 (hex) of `lr_keys()` as sorted JSON. The same hash means the same LR patches."""
        return hashlib.sha256(json.dumps(self.lr_keys(), sort_keys=True).encode()).hexdigest()

    def differing(self, other: "Recipe") -> list[str]:
        """What of `lr_keys()` changes from this recipe to `other`, as lines like "loss.alpha 0.2 -> 0.5"."""
        mine, theirs = LATER | self.lr_keys(), LATER | other.lr_keys()
        return [
            f"{key} {shown(mine.get(key))} -> {shown(theirs.get(key))}"
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key) != theirs.get(key)
        ]

    def with_extractor(self, weights_sha256: str) -> Self:
        """A copy that holds the extractor to these weights.

        Raises:
            RecipeError: If the recipe names the digest of other weights.
        """
        if self.features.weights_sha256 not in (None, weights_sha256):
            raise RecipeError(
                f"The weights of {self.features.network} have the sha256 {weights_sha256}, but the recipe "
                f"{self.name} was made with {self.features.weights_sha256}.",
                "Name the network it was made with, or set features.weights_sha256=null.",
            )
        return self.model_copy(update={"features": self.features.model_copy(update={"weights_sha256": weights_sha256})})


_SECTIONS = sections_of(Recipe)


def _with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections that are absent or empty become {}, and keys that are not given come from the preset."""
    filled = {key: value for key, value in values.items() if value is not None or key not in _SECTIONS}
    for name in _SECTIONS:
        given = filled.get(name, {})
        if isinstance(given, Section):
            given = given.model_dump(exclude_unset=True)
        preset = PAPER.get(name, {}) if values.get("preset") == "paper" else {}
        filled[name] = {**preset, **given} if isinstance(given, Mapping) else given
    return filled


def _conflicts(
    patches: Patches, transform: Transform, loss: Loss, assignment: Assignment, optimizer: Optimizer
) -> Iterator[tuple[list[str], str]]:
    """Values that are right on their own and cannot go together: the keys, and a sentence."""
    size, tile, kernel, steps = patches.size, assignment.tile, transform.neighborhood, optimizer.steps
    if patches.stride > size:
        keys = ["patches.stride", "patches.size"]
        yield keys, f"patches.stride {patches.stride} is more than patches.size {size}: pixels are left out."
    usable = size - kernel + 1 if transform.padding == "valid" else size
    if kernel > size:
        keys = ["transform.kernel_size", "patches.size"]
        yield keys, f"transform.kernel_size {kernel} is more than patches.size {size}."
    elif tile > usable:
        keys = ["assignment.tile", "patches.size", "transform.kernel_size", "transform.padding"]
        yield keys, f"assignment.tile {tile} does not fit into a feature map of {usable} x {usable} pixels."
    if loss.alpha == loss.beta == 0:
        yield ["loss.alpha", "loss.beta"], "loss.alpha and loss.beta are both 0: nothing would be compared."
    if loss.instance_weight == loss.group_weight == loss.pair_weight == 0:
        keys = ["loss.instance_weight", "loss.group_weight", "loss.pair_weight"]
        yield keys, "loss.instance_weight, group_weight and pair_weight are 0: nothing would be optimized."
    if transform.unfold == "patches" and (loss.group_weight or loss.pair_weight):
        keys = ["transform.unfold", "loss.group_weight", "loss.pair_weight"]
        yield keys, "transform.unfold patches leaves no tiles to group and pair: set group_weight and pair_weight to 0."
    keys = ["assignment.events", "assignment.interval", "assignment.warmup", "optimizer.steps"]
    events = assignment.event_steps(steps)
    if assignment.interval * steps < 1:
        yield keys, f"assignment.interval {assignment.interval} is less than one of {steps} optimizer.steps."
    elif events[-1] > steps:
        span = f"{assignment.events} assignment.events last from step {events[0]} to {events[-1]}"
        yield keys, f"{span} of {steps} optimizer.steps. Keep warmup + events x interval at 1 or below."
    if any(later <= earlier for earlier, later in pairwise(optimizer.milestone_steps())):
        milestones = list(optimizer.milestones)
        keys = ["optimizer.milestones", "optimizer.steps"]
        yield keys, f"optimizer.milestones {milestones} should increase, by one step at least."


def _conflicts_of_the_rest(values: Mapping[str, Any], wrong: set[str]) -> Iterator[tuple[str, str]]:
    """Contradictions among the right values while others are wrong, each under a key that was written."""
    filled = _with_preset(values)
    sections: list[Any] = []
    for name in ("patches", "transform", "loss", "assignment", "optimizer"):
        given = filled[name] if isinstance(filled[name], Mapping) else {}
        right = {key: value for key, value in given.items() if f"{name}.{key}" not in wrong}
        sections.append(_SECTIONS[name].model_validate(right))
    for keys, sentence in _conflicts(*sections):
        if wrong.isdisjoint(keys) and wrong.isdisjoint(key.partition(".")[0] for key in keys):
            written = (k for k in keys if k.partition(".")[2] in (values.get(k.partition(".")[0]) or {}))
            yield next(written, keys[0]), sentence
