"""The time that a condensation will take: its parts, how they add up, and a calibration on a small photograph."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import idc_hub
from idc_hub.images.files import write_png
from idc_hub.recipe import Recipe
from idc_hub.runs import forecast
from idc_hub.runs.forecast import Sample, shortened
from idc_hub.runs.worker import find_photographs
from idc_hub.verbs.condense import CondensePlan


def recipe(path: Path | str = "photographs", **optimizer: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "forecast",
            "source": {"path": str(path)},
            "patches": {"size": 16, "stride": 16, "ratio": 0.2, "complexity": "all"},
            "transform": {"kernel_size": 3, "channels": 8},
            "loss": {"frequencies": 8, "bank_size": 4},
            "assignment": {"groups": 2, "warmup": 0.2, "interval": 0.02, "events": 20},
            "optimizer": {"steps": 1000, "initial": "real", **optimizer},
            "workers": {"log_every": 100},
        }
    )


def test_the_parts_add_up() -> None:
    few = Sample(fixed=1.5, draw=0.4, plain=0.1, event=0.3, partners=0.02, paired=0.12)
    many = Sample(fixed=2.0, draw=0.5, plain=0.3, event=0.5, partners=0.06, paired=0.36)
    # 64 real patches where 16 and 32 were measured, 5 synthetic ones where 1 and 3 were, 1,000 steps. Tiles are paired
    # at events 2 .. 21, after a fifth of the steps: 59 % of them in the mean.
    fixed = 3.0 + (4 + 4) * 0.7
    steps = 1000 * (0.41 * 0.5 + 0.59 * 0.6) * 1.02
    partners = (4 * 20 / 2 + 4) * 0.10
    events = 21 * 0.9
    measured = 4 * 5 * 0.5 / 4
    found = forecast._seconds(64, 5, {(16, 1): [few], (32, 3): [many]}, recipe())
    assert found == pytest.approx(fixed + steps + partners + events + measured)


def test_what_is_cut_into_pieces_takes_a_third_longer_and_makes_partners_again_at_every_step() -> None:
    sample = Sample(fixed=0, draw=0, plain=3.0, event=0, partners=0.5, paired=3.0)
    changed = recipe().model_copy(update={"patches": recipe().patches.model_copy(update={"size": 64})})
    # One size was measured: everything grows in proportion.
    plain, measured = 3.0 * 20, 4 * 5 / 4
    expected = 1000 * plain * 1.02 * 4 / 3 + 0.59 * 1000 * 0.5 * 20 + measured * plain
    assert forecast._seconds(64, 20, {(16, 1): [sample]}, changed) == pytest.approx(expected)


def test_where_nothing_is_grouped_or_paired_all_steps_are_plain() -> None:
    sample = Sample(fixed=0, draw=0, plain=0.1, event=0.5, partners=0.5, paired=0.9)
    changed = recipe()
    changed = changed.model_copy(update={"loss": changed.loss.model_copy(update={"group_weight": 0, "pair_weight": 0})})
    expected = 1000 * 0.1 * 1.02 + 4 * 5 * 0.1 / 4
    assert forecast._seconds(16, 1, {(16, 1): [sample]}, changed) == pytest.approx(expected)


def test_choosing_the_first_patches_looks_at_the_real_side_of_four_draws_more() -> None:
    sample = Sample(fixed=1.0, draw=0.4, plain=0.1, event=0.3, partners=0.02, paired=0.12)
    chosen, drawn = (
        forecast._seconds(16, 1, {(16, 1): [sample]}, recipe(initial=initial)) for initial in ("cf-greedy", "real")
    )
    assert chosen - drawn == pytest.approx(4 * 0.4)
    changed = shortened(recipe(initial="cf-greedy"))  # what is counted here must not be in the samples
    assert changed.optimizer.initial == "real"


def test_the_shortened_recipe_groups_and_pairs_everything_before_its_last_steps() -> None:
    changed = shortened(recipe())
    assert changed.assignment.event_steps(changed.optimizer.steps) == (3, 4)
    assert changed.patches == recipe().patches
    assert changed.transform == recipe().transform


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three photographs of noise, each with 9 real patches."""
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for name in ("a", "b", "c"):
        picture = rng.integers(0, 256, (192, 192, 3), dtype=np.uint8)
        write_png(tmp_path / "photographs" / f"{name}.png", picture)
    return tmp_path / "photographs"


def test_a_dry_run_predicts_seconds_and_writes_nothing(photographs: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def predicted(steps: int) -> float:
        plan = idc_hub.condense(recipe(photographs, steps=steps), run_dir=run_dir, dry_run=True, progress=False)
        assert isinstance(plan, CondensePlan)
        return plan.predicted_seconds

    assert 0 < predicted(1000) < predicted(100_000)
    assert not run_dir.exists()


def test_workers_share_the_photographs_but_not_one_photograph(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the clock is replaced: a step takes .01 s, all else nothing.
    monkeypatch.setattr(Sample, "take", lambda *ignored: Sample(0, 0, 0.01, 0, 0, 0.01))
    network = torch.nn.Identity()
    found, _ = find_photographs(recipe(photographs), progress=False)
    instances = [replace(instance, count=1) for instance in found]

    def seconds(processes: int) -> float:
        return forecast.predict_seconds(recipe(photographs), instances, network, processes, torch.device("cpu"))

    # 1,000 steps, 2 % more for logging, 5 held-out sets at 4 draws for a quarter of a step each: 10.25 s a photograph.
    assert seconds(1) == pytest.approx(30.75)
    assert seconds(2) == pytest.approx(15.375)
    assert seconds(8) == pytest.approx(10.25)


@pytest.mark.parametrize(("limit", "sides", "scale"), [(1e9, [8, 16, 16], 1), (-1.0, [8, 8, 8], 4)])
def test_a_slow_extractor_is_tried_on_a_quarter_of_the_pixels(
    monkeypatch: pytest.MonkeyPatch, limit: float, sides: list[int], scale: int
) -> None:
    seen: list[int] = []

    def take(lr: torch.Tensor, *ignored: object) -> Sample:
        seen.append(lr.shape[-1])
        return Sample(0, 0, 0, 0, 0, 0)

    monkeypatch.setattr(forecast, "SLOW", limit)
    monkeypatch.setattr(forecast, "ROUNDS", 1)
    monkeypatch.setattr(Sample, "take", take)
    lr = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    samples, found = forecast._calibrate(lr, torch.nn.Identity(), recipe())
    assert list(samples) == [(16, 1), (32, 2)]
    assert seen == sides
    assert found == scale
