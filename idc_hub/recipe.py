"""A recipe defines a condensation completely: one YAML file, checked before anything starts.

Section and appendix numbers in the descriptions of the keys refer to the paper (arXiv 2505.21099).
There are three presets. The defaults below are `preset: default`; the others replace the values listed in `PRESETS`.
A key that is written out overrides every preset.
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
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from idc_hub.baselines import SelectionMethod
from idc_hub.errors import RecipeError
from idc_hub.recipe_reader import (
    Count,
    Draft,
    Fraction,
    Name,
    Numeral,
    Odd,
    Real,
    Sha256,
    Text,
    Weight,
    Whole,
    as_list,
    explain,
    find_recipe,
    format_value,
    is_strangers,
    label_of,
    real,
    sections_of,
    whole,
)

_MODULE_PATH = r"[^\W\d]\w*(\.\w+)*"


def _layer(value: object) -> int | str:
    if isinstance(value, str) and re.fullmatch(_MODULE_PATH, value):
        return value
    try:
        block = whole(value)
    except ValueError:
        block = 0
    if block < 1:
        raise ValueError(
            "should be pixels, residual, first, last, body, the path of a module or the number of a block, from 1"
        )
    return block


def _layers(value: object) -> int | str | tuple[int | str, ...]:
    if not isinstance(value, list | tuple):
        return _layer(value)
    layers = tuple(_layer(entry) for entry in value)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError("should be a layer or a list of different ones")
    return layers


def _scale(value: object) -> float | tuple[float, float]:
    if not isinstance(value, list | tuple):
        value = [value]
    ends = [real(end) for end in value]
    if len(ends) not in (1, 2) or not all(0 < end < math.inf for end in ends) or ends != sorted(set(ends)):
        raise ValueError("should be a number above 0, or two in ascending order")
    return ends[0] if len(ends) == 1 else (ends[0], ends[1])


def _batch(value: object) -> int | str:
    try:
        size = 1 if value == "auto" else whole(value)
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError("should be auto or a whole number from 1")
    return "auto" if value == "auto" else size


def _zooms(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or len(set(values)) < len(values) or not set(values) <= {1, 0.75, 0.5, 0.25}:
        raise ValueError("should be a list of different ones of 1, 0.75, 0.5 and 0.25")
    return values


def _version_name(value: str) -> str:
    if value in ("data", "default"):
        raise ValueError("should be another name: the Hub reserves this one")
    return value


_Layer = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=f"^{_MODULE_PATH}$")] | Numeral
_Zoom = Annotated[float, Field(gt=0, le=1)] | Numeral
_Layers = _Layer | Annotated[list[_Layer], Field(min_length=1)]


_Scale = Annotated[float, Field(gt=0)] | Numeral
_Scales = _Scale | Annotated[list[_Scale], Field(min_length=1, max_length=2)]


class Section(BaseModel):
    """Base of all parts of a recipe: unknown keys are errors, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Source(Section):
    """The photographs. Not part of `lr_recipe_hash`: a Run checks each photograph against its own sha256."""

    path: Text
    """Where the photographs are: a folder, a zip, a Hub dataset id, or package:NAME/SUBDIR for a folder of an
    installed Python package. A relative path starts at the current directory."""
    include: Annotated[tuple[Text, ...], BeforeValidator(as_list, json_schema_input_type=list[Text] | Text)] = ()
    """Patterns (globs) for the paths of the photographs to use, inside the source; empty: all of them."""
    exclude: Annotated[tuple[Text, ...], BeforeValidator(as_list, json_schema_input_type=list[Text] | Text)] = ()
    """Patterns (globs) for the paths of the photographs to leave out."""
    config: Text | None = None
    """Config of a Hub dataset; null: its default, or its only one."""
    split: Text = "train"
    """Split of a Hub dataset."""
    column: Text | None = None
    """Image column of a Hub dataset; null: its only one."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub dataset; null: its main branch."""
    limit: Count | None = None
    """Use only the first photographs, in the order of their ids, up to this number; null: all."""


class Patches(Section):
    """How photographs become real LR patches, and how many synthetic ones represent them (sections 3.1 and 4)."""

    size: Count = 64
    """Side of an LR patch, in LR pixels; the HR patch is `scale` times as large."""
    stride: Count = 32
    """Distance between neighboring patches, in LR pixels. Where it leaves pixels over, one more patch is flush with the
    far edge."""
    ratio: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """Condensation ratio r: synthetic patches per real patch (section 3.1), over all photographs together."""
    scales: Annotated[
        tuple[Annotated[Real, Field(gt=0, le=1)], ...],
        BeforeValidator(as_list, json_schema_input_type=list[_Zoom] | _Zoom),
        AfterValidator(_zooms),
    ] = (1.0,)
    """Sizes of the photographs to cut real patches from: 1, 0.75, 0.5 and 0.25 of their size, shrunk by bicubic before
    LR is made. A photograph that is too small for a patch at one of them has none there. The ratio counts only the
    real patches at the largest of them, so that more scales make no larger set."""
    min_per_image: Annotated[Whole, Field(ge=0)] = 0
    """Minimum number of synthetic patches of a photograph."""
    complexity: Literal["all", "above-mean", "hardness"] = "hardness"
    """Which real patches the synthetic ones represent: all of a photograph (the paper), or those at or above the
    photograph's mean in the strength of their edges (Sobel; above-mean) or in the error of bicubic upscaling against
    their own HR (hardness). The ratio always counts all. Of the selections only cf-greedy follows it."""


class Features(Section):
    """The network f whose feature maps are matched (section 3.1, appendix C.1)."""

    network: Text = "edsr-small"
    """The feature extractor: a bundled name, a folder, a Hub id, a checkpoint file or package.module:build."""
    weights_sha256: Sha256 | None = None
    """SHA-256 of the extractor's weights file; null: filled in when a Run begins."""
    layer: Annotated[int | str | tuple[int | str, ...], BeforeValidator(_layers, json_schema_input_type=_Layers)] = (
        "first"
    )
    """The layer whose output is the feature map: a block counted from 1, the first, the last (appendix C.1), or the
    body, which ends with the closing convolution and the skip connection. Early blocks represent color best. Of any
    network: the path of an inner module, such as layers.3 (as in PyTorch's `named_modules`). `pixels` are the LR pixels
    themselves, `residual` what the network's SR output adds to bicubic upscaling. A list of layers stacks their maps:
    [pixels, first]."""
    statistics: Literal["real", "own", "joint", "none"] = "real"
    """Mean and deviation that normalize the channels of the feature maps (batch normalization, section 3.2): those
    of the real patches, each side's own, those of both sides together, or none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network and of the stored real feature maps; bf16 is automatic mixed precision."""


class Transform(Section):
    """How feature maps become local features: random local Fourier features (RLFF) or an alternative of table 7."""

    kind: Literal["rlff", "identity", "dct", "dwt"] = "rlff"
    """Random rows of the Fourier matrix of local neighborhoods (section 3.2), the channels of the feature maps, random
    rows of the cosine matrix, or Haar wavelets at full resolution (table 7: x1, x2, x3). Identity and dwt draw
    nothing and ignore kernel_size, channels and rows."""
    unfold: Literal["pixels", "tiles", "patches"] = "pixels"
    """What one sample of the distributions is: the local feature of a pixel (section 3.2, unfolding), those of a tile
    together (table 2: v2, v6), or those of a whole patch (v1), which excludes groups and pairs."""
    kernel_size: Odd = 7
    """Side k of the local neighborhood, in feature-map pixels (appendix C.1: 7)."""
    channels: Count = 256
    """Number of filters to draw, C_out (appendix C.1: 256)."""
    rows: Literal["literal", "unique"] = "unique"
    """For rlff: draw from all 2C' rows of equation 4, where nearly every row has a mirrored twin, or from an orthogonal
    half of them."""
    padding: Literal["reflect", "zero", "valid"] = "reflect"
    """Padding beyond the border of the feature map; valid leaves the border out."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of local features and their products with frequencies; bf16 is several times faster where the hardware
    supports it. Sums, cosines, sines and means are always fp32."""

    @property
    def neighborhood(self) -> int:
        """Side of the area that one local feature sees, in feature-map pixels; Haar's 2 x 2 is stored in 3 x 3."""
        return {"identity": 1, "dwt": 3}.get(self.kind, self.kernel_size)

    def local_channels(self, channels: int) -> int:
        """Channels of the local features of feature maps with `channels` channels."""
        return {"identity": channels, "dwt": 4 * channels}.get(self.kind, self.channels)


class Loss(Section):
    """The three distances that are minimized (section 3.3)."""

    distance: Literal["ncfd", "mmd", "mse"] = "ncfd"
    """What the instance and the group distance compare (section 3): characteristic functions by amplitude and phase,
    the same functions by their squared difference (maximum mean discrepancy), or mean local features."""
    alpha: Weight = 0.2
    """Weight of the amplitude in the distance of characteristic functions (equation 3, appendix C.1)."""
    beta: Weight = 0.8
    """Weight of the phase (equation 3, appendix C.1)."""
    phase_penalty: Weight = 0.0
    """Weight of the squared difference of phases, which is added to the distance of characteristic functions (FAST,
    arXiv 2511.19476: 0.3). Unlike the phase in equation 3 it does not fade where the functions are small; it fades
    below 0.05, where phases of so few samples are random. 0: off."""
    row_norm: Literal["row", "global", "none"] = "global"
    """Divide each sample by its own L2 norm, all samples by one norm of the real side, or none."""
    frequencies: Count = 1024
    """Number of frequencies t at which characteristic functions are compared (equation 3)."""
    frequency_scale: Annotated[float | tuple[float, float], BeforeValidator(_scale, json_schema_input_type=_Scales)] = (
        1.0
    )
    """Standard deviation of the frequencies; a range, such as [0.02, 1]: one deviation for each frequency, log-uniform
    between the two. Small ones compare means and contrast, large ones detail; noise shows only at small ones."""
    frequency_kind: Literal["iid", "orthogonal"] = "iid"
    """Draw frequencies independently, or in blocks of orthogonal ones with the same distribution of each (Yu et al.,
    arXiv 1610.09072): less noise at the same number."""
    draws: Literal["bank", "fresh"] = "bank"
    """Take filters and frequencies from a fixed bank of draws, or draw them afresh at every step."""
    bank_size: Count = 16
    """Draws in the bank. Each pass over the bank uses all of them in a new random order."""
    instance_weight: Weight = 300.0
    """w_ins, weight of the distance over the whole photograph (equation 6, appendix C.1: 300)."""
    group_weight: Weight = 300.0
    """w_group, weight of the distances within groups (equation 7, appendix C.1: 300)."""
    group_reduction: Literal["sum", "mean"] = "mean"
    """Sum the groups' distances (equation 7), or average them so that together they weigh as much as the instance."""
    pair_weight: Weight = 1000.0
    """w_pair, weight of the L1 distance of pairs (equation 8, appendix C.1: 300k)."""
    pair_reduction: Literal["mean", "literal", "group-mean", "group-mean-twice"] = "mean"
    """Reading of equation 8: one mean over all pairs and elements; elements summed, as printed; elements averaged;
    elements averaged and divided by the size of the group once more."""


class AssignmentSettings(Section):
    """How tiles are grouped and paired, and when (section 3.3, appendix B)."""

    groups: Count = 16
    """K-means groups of real tiles, M (appendix C.1: 16)."""
    tile: Count = 4
    """Side p of a local feature patch, in feature-map pixels (appendix C.1: 4)."""
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.2
    """Time of the first event, as a fraction of the steps (appendix C.1: 4k of 20k)."""
    interval: Fraction = 0.02
    """Time between events, as a fraction of the steps (appendix C.1: 400 of 20k)."""
    events: Annotated[Count, Field(le=10_000)] = 25
    """Number of events, each of which groups another share of the tiles (appendix C.1: 25)."""

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
    """Adam on the synthetic patches, which are clamped to [0, 1] after every step (appendix C.1)."""

    steps: Count = 200
    """Optimization steps per photograph (appendix C.1: 20k). Few small steps keep patches that start as real ones
    natural."""
    learning_rate: Annotated[Real, Field(gt=0)] = 1e-3
    """Adam's step size, in pixel values of [0, 1] (appendix C.1: 1e-2); for parametrization maco in radians."""
    milestones: Annotated[
        tuple[Fraction, ...], BeforeValidator(as_list, json_schema_input_type=list[Fraction] | Fraction)
    ] = (0.75, 0.85, 0.95)
    """When gamma is applied, as fractions of the steps (appendix C.1: 15k, 17k and 19k of 20k)."""
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """Factor on the learning rate at each milestone (appendix C.1: 0.1)."""
    initial: Literal["noise", "leaves", "real", "cf-greedy"] = "cf-greedy"
    """Synthetic patches at the start: noise, dead leaves (random disks that hide one another: natural edges and
    spectrum without a photograph), random real patches, or the real patches whose joint characteristic function is
    closest to the whole photograph's."""
    parametrization: Literal["pixels", "fourier", "maco"] = "pixels"
    """What Adam changes: pixels, the Fourier spectrum in decorrelated colors, divided by 1/f so that coarse structures
    change more than fine ones, or only the phases of that spectrum, with the photograph's mean magnitudes (MACO, arXiv
    2306.06805). With the last two, initial noise has a natural spectrum and the photograph's colors."""

    def milestone_steps(self) -> tuple[int, ...]:
        """Steps, counted from 0, at which the learning rate is multiplied by gamma."""
        return tuple(math.floor(milestone * self.steps + 0.5) for milestone in self.milestones)


class SelectionSettings(Section):
    """What the methods `hardness` and `filtered` choose; part of `lr_recipe_hash` for the method that uses them."""

    hardness: Literal["bicubic", "edsr-small"] = "bicubic"
    """For hardness: what enlarges LR patches, at x4 also a small network. The larger its error against their own HR
    (RMS), the harder a patch."""
    drop_top: Annotated[Real, Field(ge=0, lt=1)] = 0.05
    """For hardness: fraction of all patches, the hardest ones, to leave out (Moser et al., arXiv 2403.17083: 5 %)."""
    spread: Weight = 1.0
    """For hardness: least distance between two patches of a photograph, down or across, in sides of a patch. At 1 they
    do not overlap. Where too few patches are left, closer ones follow, the hardest first."""
    max_blockiness: Weight = 30.0
    """For filtered: traces of JPEG's 8 x 8 blocks in HR, a sum of 64 ratios, at most (BHI: 30)."""
    min_entropy: Weight = 5.0
    """For filtered: entropy of the gray levels of HR, in bits per pixel, at least (traiNNer-redux: 5)."""
    min_contrast: Weight = 15.0
    """For filtered: standard deviation of the gray levels of HR, at least (traiNNer-redux: 15)."""
    min_sharpness: Weight = 50.0
    """For filtered: variance of the Laplacian over the pixels of HR, in squared gray levels, at least; blur makes it
    small (traiNNer-redux: 50)."""
    max_sharpness: Weight = 3000.0
    """For filtered: the same number at most; sharpening and noise make it large (traiNNer-redux: 3000)."""
    max_aliasing: Weight = 0.35
    """For filtered: ratio of the mean amplitude of the frequencies beyond 3/4 of Nyquist in HR to that of all, at most
    (traiNNer-redux: 0.35)."""


class TeacherChoice(Section):
    """What makes HR patches from the finished LR patches. Not part of `lr_recipe_hash`: HR can be remade."""

    network: Text = "edsr-small"
    """The upsampling network (section 3.1, second stage): a bundled name, `bicubic`, a folder, a Hub id, a
    checkpoint file or package.module:build; for a selection of real patches also `real`, the photographs' own HR."""
    hr_version: Annotated[Name, AfterValidator(_version_name)] | None = None
    """Name of the HR version, a config on the Hub; null: the teacher's name."""


class Workers(Section):
    """How the work is done. Not part of `lr_recipe_hash`."""

    threads: Count = 1
    """CPU threads of a worker."""
    batch: Annotated[int | Literal["auto"], BeforeValidator(_batch, json_schema_input_type=Count | Literal["auto"])] = (
        "auto"
    )
    """Photographs that a worker condenses together: one pass through the network at each step for all of them. auto: 1
    on a CPU, as many as the free memory holds on a GPU. Batches of other sizes differ by rounding."""
    cuda_graph: bool = True
    """On a GPU, run each step as one CUDA graph: faster. A network that cannot be captured runs without, and a warning
    says so."""
    tf32: bool = False
    """On a GPU, compute fp32 convolutions and matrix products in TF32: faster, with 10 bits of precision instead of 23.
    run.json records it."""
    fused: bool = False
    """On a GPU, sum cosines and sines in Triton kernels that keep them out of memory. Off by default, because the
    kernels have never run on a GPU. If they do not work, a warning says so, and the plain sums are used. run.json
    records it."""
    checkpoint_every: Count = 100
    """Steps between checkpoints of an unfinished photograph."""
    log_every: Count = 20
    """Steps between lines of a photograph's metrics."""


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {
        "patches": {"complexity": "all"},
        "features": {"layer": "last"},
        "transform": {"rows": "literal", "padding": "zero"},
        "loss": {"row_norm": "row", "draws": "fresh", "group_reduction": "sum", "pair_weight": 300_000.0},
        "optimizer": {"steps": 20_000, "learning_rate": 1e-2, "initial": "noise"},
    },
    "synthetic": {
        "patches": {"complexity": "above-mean"},
        "optimizer": {"learning_rate": 1e-2, "initial": "leaves", "parametrization": "fourier"},
    },
}
"""What each preset fills in where a key is not given; all other values are the same in all presets."""

LATER_KEYS: dict[str, Any] = {
    "loss.frequency_kind": "iid",
    "loss.phase_penalty": 0.0,
    "optimizer.parametrization": "pixels",
    "patches.scales": [1.0],
}
"""Keys that are newer than some Runs. With these values, which is how such Runs were made, `lr_keys` leaves them out,
so that the Runs keep their hash."""

_SELECTION_KEYS = {"hardness": ["hardness", "drop_top", "spread"]}
_SELECTION_KEYS["filtered"] = [key for key in SelectionSettings.model_fields if key not in _SELECTION_KEYS["hardness"]]


class Recipe(Section):
    """Everything that defines a condensation.

    However it is made, from a file, a dict or keyword arguments, an invalid recipe raises a RecipeError that lists
    every problem, one per line.
    """

    name: Name
    """Name of the Run and of its directory: lower case letters, digits and hyphens."""
    preset: Literal["default", "paper", "synthetic"] = "default"
    """Values for the keys that are not given: what measures best, what the paper says, or a start without any
    photograph's pixels, so that no patch is a copy."""
    method: Literal["idc", SelectionMethod] = "idc"
    """How LR patches are made: optimized by instance data condensation, or by a baseline (`idc select`). whole takes
    all real patches. cf-greedy selects within each photograph, as condensation does. random, herding, k-center, dcsr
    (appendix C.2), hardness (what upscaling gets most wrong) and filtered (random ones without technical defects)
    select from the pool of all photographs and may leave some photographs without patches. leaves draws dead leaves,
    random disks that hide one another: it uses the number of a photograph's patches, but none of its pixels."""
    scale: Annotated[Literal[2, 3, 4], BeforeValidator(whole, json_schema_input_type=Literal[2, 3, 4] | Numeral)] = 4
    """Ratio of HR size to LR size."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw."""
    source: Source
    patches: Patches = Patches()
    features: Features = Features()
    transform: Transform = Transform()
    loss: Loss = Loss()
    assignment: AssignmentSettings = AssignmentSettings()
    optimizer: Optimizer = Optimizer()
    selection: SelectionSettings = SelectionSettings()
    teacher: TeacherChoice = TeacherChoice()
    workers: Workers = Workers()

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill in the preset, check each value and their combinations, and report all problems together."""
        if isinstance(values, cls):
            return values
        if not isinstance(values, Draft | Mapping):
            raise RecipeError(f"A recipe consists of keys and values; {format_value(values)} does not.")
        draft = values if isinstance(values, Draft) else Draft("recipe", _SECTIONS, values)
        invalid: set[str] = set()
        recipe: Self | None = None
        try:
            recipe = handler(_with_preset(draft.values))
        except ValidationError as error:
            for key, sentence in explain(error, cls):
                draft.complain(key, sentence)
                invalid.add(key.partition("[")[0])
        for key, sentence in _conflicts(draft.values, invalid):
            draft.complain(key, sentence)
        draft.raise_problems()
        assert recipe is not None
        return recipe

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = (), *, trust_recipe: bool = False) -> Self:
        """Read and check a recipe.

        Args:
            name: What `find_recipe` accepts: a bundled name, a YAML file, a folder or a Hub dataset id. A file may
                begin with `base: NAME`, a bundled recipe or a YAML file beside it, whose values it inherits.
            overrides: `section.key=value` (or `seed=3`), values as in YAML; they override the file.
            trust_recipe: Accept `package.module:build` as a network in a recipe that came with a dataset repository.

        Raises:
            RecipeError: With every problem of the file and the overrides, one per line; or it names code and is not
                trusted.
            HubError: If the Hub does not answer or refuses.
        """
        path = find_recipe(name)
        draft = Draft(label_of(path), _SECTIONS)
        draft.read(path)
        draft.start_from_base(path)
        overrides = list(overrides)
        for override in overrides:
            draft.override(override)
        if is_strangers(path) and not trust_recipe:
            draft.refuse_code(overrides)
        return cls.model_validate(draft)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Self:
        """Check a recipe given as a dict of sections; overrides and errors as in `load`."""
        draft = Draft("recipe", _SECTIONS, values)
        for override in overrides:
            draft.override(override)
        return cls.model_validate(draft)

    def to_yaml(self) -> str:
        """The complete recipe, every key written out, in the order of this file."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)

    def lr_keys(self) -> dict[str, Any]:
        """What determines the LR patches, as `section.key` to plain values.

        Once the digest of the extractor's weights is known it replaces the extractor's name.
        """
        values = self.model_dump(mode="json")
        keys: dict[str, Any] = {"method": self.method, "scale": self.scale, "seed": self.seed}
        for section in ("patches", "features", "transform", "loss", "assignment", "optimizer"):
            keys |= {f"{section}.{key}": value for key, value in values[section].items()}
        if self.features.weights_sha256 is not None:
            del keys["features.network"]
        for key, value in LATER_KEYS.items():
            if keys[key] == value:
                del keys[key]
        keys |= {f"selection.{key}": values["selection"][key] for key in _SELECTION_KEYS.get(self.method, ())}
        return keys

    @property
    def grid(self) -> dict[str, Any]:
        """How LR patches are cut: the arguments of `images.patches.places`."""
        patches = self.patches
        return {"scale": self.scale, "size": patches.size, "stride": patches.stride, "zooms": patches.scales}

    @property
    def lr_recipe_hash(self) -> str:
        """SHA-256 (hex) of `lr_keys()` as sorted JSON. The same hash means the same LR patches."""
        return hashlib.sha256(json.dumps(self.lr_keys(), sort_keys=True).encode()).hexdigest()

    def differing(self, other: "Recipe") -> list[str]:
        """The changes of `lr_keys()` from this recipe to `other`, as lines like "loss.alpha 0.2 -> 0.5"."""
        mine, theirs = self.lr_keys(), other.lr_keys()
        return [
            f"{key} {format_value(mine.get(key))} -> {format_value(theirs.get(key))}"
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key) != theirs.get(key)
        ]

    def with_extractor(self, weights_sha256: str) -> Self:
        """A copy that is tied to these weights of the extractor.

        Raises:
            RecipeError: If the recipe already names the digest of other weights.
        """
        if self.features.weights_sha256 not in (None, weights_sha256):
            raise RecipeError(
                f"The weights of {self.features.network} have the sha256 {weights_sha256}, but the recipe "
                f"{self.name} was made with {self.features.weights_sha256}.",
                "Name the network it was made with, or set features.weights_sha256=null.",
            )
        return self.model_copy(update={"features": self.features.model_copy(update={"weights_sha256": weights_sha256})})


_SECTIONS = sections_of(Recipe)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, with which an editor completes, describes and checks keys.

    It accepts every file that `Recipe.load` accepts: every spelling of a value, and missing keys that a preset, a base
    or an override fills in. It does not find every problem that the reader finds, such as contradictions between values
    and numbers out of range that are written as text.
    """
    schema = _with_standard_bounds(Recipe.model_json_schema())
    for name in _SECTIONS:
        reference = {"$ref": schema["properties"][name]["$ref"]}
        schema["properties"][name] = {"anyOf": [reference, {"type": "null"}]}
    for section in schema["$defs"].values():
        section.pop("required", None)
    base = {
        "type": "string",
        "description": "A bundled recipe, or a YAML file beside this one, to inherit values from.",
    }
    schema["properties"] = {"base": base, **schema["properties"]}
    schema["required"] = ["name"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _with_standard_bounds(schema: Any) -> Any:
    """Give bounds their JSON schema names, which pydantic does not where a number may also be text."""
    names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    if isinstance(schema, dict):
        return {names.get(key, key): _with_standard_bounds(value) for key, value in schema.items()}
    return [_with_standard_bounds(entry) for entry in schema] if isinstance(schema, list) else schema


def _with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace missing and null sections by {} and fill in missing keys from the preset."""
    filled = {key: value for key, value in values.items() if value is not None or key not in _SECTIONS}
    for name in _SECTIONS:
        given = filled.get(name, {})
        preset = PRESETS.get(str(values.get("preset")), {}).get(name, {})
        filled[name] = {**preset, **given} if isinstance(given, Mapping) else given
    return filled


def _conflicts(values: Mapping[str, Any], invalid: set[str]) -> Iterator[tuple[str, str]]:
    """Combinations of valid values that cannot work: a key that was written, and a sentence.

    Args:
        values: The recipe as given.
        invalid: Keys that are invalid on their own; a combination that involves one of them is not reported.
    """
    filled = _with_preset(values)
    sections: list[Any] = []
    for name in ("patches", "transform", "loss", "assignment", "optimizer"):
        given = filled[name] if isinstance(filled[name], Mapping) else {}
        valid = {key: value for key, value in given.items() if f"{name}.{key}" not in invalid}
        sections.append(_SECTIONS[name].model_validate(valid))
    for keys, sentence in _contradictions(*sections):
        if invalid.isdisjoint(keys) and invalid.isdisjoint(key.partition(".")[0] for key in keys):
            written = (k for k in keys if k.partition(".")[2] in (values.get(k.partition(".")[0]) or {}))
            yield next(written, keys[0]), sentence


def _contradictions(
    patches: Patches, transform: Transform, loss: Loss, assignment: AssignmentSettings, optimizer: Optimizer
) -> Iterator[tuple[list[str], str]]:
    """Contradictions between valid sections: the keys involved, and a sentence."""
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
    if loss.phase_penalty and loss.distance != "ncfd":
        keys = ["loss.phase_penalty", "loss.distance"]
        yield keys, f"loss.phase_penalty is part of loss.distance ncfd, not of {loss.distance}."
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
