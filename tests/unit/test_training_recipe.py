"""Training recipes: what they accept, how they refuse, and that the bundled ones are the paper's."""

import re
from pathlib import Path
from typing import Any

import pytest

from idc_hub.errors import RecipeError
from idc_hub.training.loop import learning_rate
from idc_hub.training.recipe import TrainingRecipe, bundled_training_recipes


@pytest.mark.parametrize("wrong", [{"step": 5}, {"steps": 0}, {"decay": "linear"}, {"ema": 1.0}, {"crop": 0}], ids=str)
def test_a_recipe_with_a_wrong_key_or_value_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingRecipe(**wrong)


def test_all_that_is_wrong_with_a_recipe_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("steps: 20k\nlearning_rate: fast\nmilestones: [0.8, 0.5]\nbatchsize: 3\n")
    with pytest.raises(RecipeError) as caught:
        TrainingRecipe.load(path, ["ema=1", "crop=48px"])
    assert str(caught.value).splitlines() == [
        "my.yaml:2  learning_rate is fast; it should be a number.",
        "my.yaml:3  milestones is [0.8, 0.5]; it should increase.",
        "my.yaml:4  batchsize is not a recipe key. Did you mean batch_size?",
        "override ema=1  ema is 1; it should be less than 1.",
        "override crop=48px  crop is 48px; it should be a number.",
    ]


def test_recipes_by_name_and_file(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("steps: 30k\nmixed_precision: bf16\n")
    mine = TrainingRecipe.load(tmp_path / "my.yaml", ["learning_rate=1e-3", "mixed_precision=no"])
    assert (mine.steps, mine.learning_rate, mine.mixed_precision, mine.ema) == (30_000, 1e-3, "no", 0.999)
    assert TrainingRecipe.load() == TrainingRecipe()
    with pytest.raises(RecipeError, match=r"There is no training recipe swinir-lite-x4.*Did you mean swinir-light-x4"):
        TrainingRecipe.load("swinir-lite-x4")


@pytest.mark.parametrize(
    ("name", "steps", "rate", "batch", "halved"),
    [
        ("edsr-baseline-x4", 300_000, 1e-4, 16, [200_000]),
        ("swinir-light-x4", 500_000, 2e-4, 32, [250_000, 400_000, 450_000, 475_000]),
        ("mambairv2-light-x4", 500_000, 1e-4, 32, [250_000, 400_000, 450_000, 475_000]),
        ("edsr-x4", 300_000, 1e-4, 16, [200_000]),
        ("swinir-m-x4", 500_000, 2e-4, 32, [250_000, 400_000, 450_000, 475_000]),
        ("mambairv2-x4", 500_000, 1e-4, 32, [250_000, 400_000, 450_000, 475_000]),
    ],
)
def test_the_papers_configurations(name: str, steps: int, rate: float, batch: int, halved: list[int]) -> None:
    """Steps and learning rates: tables 3 and 6 of the paper; the rest: what the networks' authors train with."""
    settings = TrainingRecipe.load(name)
    assert (settings.steps, settings.learning_rate, settings.batch_size) == (steps, rate, batch)
    assert (settings.crop, settings.ema, settings.accumulate) == (48, 0.999, 1)
    factor = 1.0
    for step in halved:
        assert learning_rate(settings, step - 1) == pytest.approx(rate * factor)
        factor /= 2
        assert learning_rate(settings, step) == pytest.approx(rate * factor)
    assert learning_rate(settings, steps - 1) == pytest.approx(rate * factor)


def test_the_readme_tells_the_truth_about_training_recipes() -> None:
    bundled = bundled_training_recipes()
    readme = (bundled["edsr-x4"].parents[1] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(training/[\w-]+\.yaml\) \| `([\w-]+)` \| (.*) \|$", readme, re.MULTILINE)
    assert {name for name, *_ in rows} == bundled.keys()
    for name, network, figures in rows:
        assert name == f"{network}-x4"
        settings = TrainingRecipe.load(name)
        steps, batch, rate, halved = figures.split(" | ")
        assert (int(steps.replace(",", "")), int(batch)) == (settings.steps, settings.batch_size)
        assert float(rate) == settings.learning_rate
        milestones = [int(step.replace(",", "")) for step in halved.split(", ")]
        assert milestones == [round(fraction * settings.steps) for fraction in settings.milestones]
