"""How a network is trained: settings that come with idc-hub by name, from a YAML file, or from the command line.

`recipes/training/` holds the configurations of the paper (arXiv 2505.21099, tables 3 and 6).
"""

import difflib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field

from idc_hub.errors import RecipeError
from idc_hub.recipe import Section
from idc_hub.recipe_reader import Count, Draft, Fraction, Real, Whole, as_list, bundled_recipes


def _increasing(fractions: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in pairwise(fractions)):
        raise ValueError("should increase")
    return fractions


def _no_is_a_word(value: object) -> object:
    return "no" if value is False else value  # what YAML makes of it


class TrainingRecipe(Section):
    """How to train: random aligned crops, L1 loss, Adam, a moving average of the weights."""

    steps: Count = 20_000
    """Steps of the optimizer."""
    batch_size: Count = 16
    """Crops in a step, over all processes."""
    accumulate: Count = 1
    """Parts that a process computes its share of a step in, one after the other: more of them need less memory."""
    crop: Count = 48
    """Side of a crop, in LR pixels."""
    learning_rate: Annotated[Real, Field(gt=0)] = 2e-4
    """Adam's step size at the start."""
    decay: Literal["cosine", "milestones"] = "cosine"
    """How the learning rate falls: half a cosine down to 0, or times gamma at each milestone."""
    milestones: Annotated[tuple[Fraction, ...], BeforeValidator(as_list), AfterValidator(_increasing)] = (
        0.5,
        0.8,
        0.9,
        0.95,
    )
    """When gamma is applied, as fractions of the steps."""
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.5
    """Factor at each milestone."""
    ema: Annotated[Real, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of the weights, which is what is saved."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights and of every crop."""
    mixed_precision: Annotated[Literal["no", "bf16"], BeforeValidator(_no_is_a_word)] = "no"
    """Compute the network in bfloat16 (the weights, the loss and the optimizer stay float32)."""
    checkpoint_every: Count = 1_000
    """Steps between checkpoints: what an interruption can cost at most."""
    log_every: Count = 100
    """Steps between lines of `metrics.jsonl` and of the trackers."""

    @classmethod
    def load(cls, name: str | Path | None = None, overrides: Iterable[str] = ()) -> Self:
        """Read and check a training recipe.

        Args:
            name: The name of a bundled one, or a YAML file; None: the default values.
            overrides: `key=value`, values as in YAML; they win over the file.

        Raises:
            RecipeError: With every problem of the file and the overrides, one a line.
        """
        path = None if name is None else _find(name)
        draft = Draft(path.name if path else "training", sections=())
        if path:
            draft.read(path)
        for override in overrides:
            draft.override(override)
        recipe = draft.validated(cls)
        draft.raise_problems()
        return recipe


def bundled_training_recipes() -> dict[str, Path]:
    """The training recipes that ship with idc-hub: name to YAML file."""
    folder = next(iter(bundled_recipes().values())).parent / "training"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find(name: str | Path) -> Path:
    bundled = bundled_training_recipes()
    if str(name) in bundled:
        return bundled[str(name)]
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(Path(name).stem, bundled, 1)
    hint = f"Did you mean {near[0]}?" if near else f"The bundled ones: {', '.join(bundled)}."
    raise RecipeError(f"There is no training recipe {name}: neither a bundled name nor a file.", hint)
